"""What damaged data are put to: files, rows and requests, on the tiny models.

Of an answer it is checked what must be so whatever the data were.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from eva_local.alignment.mapping import Mapping, surface_refined
from eva_local.api import Ensemble
from eva_local.batch.forms import Wishes, lines_of
from eva_local.batch.job import Errand, carry_out
from eva_local.chat import log
from eva_local.chat.log import Conversation, Event, Log
from eva_local.config.config import load_config
from eva_local.config.specs import LoadSettings
from eva_local.errors import EvaError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run
from eva_local.models.header import read_header, refusal
from eva_local.openai.request import CHAT
from eva_local.opening import open_ensemble
from eva_local.server.app import make_app
from eva_local.server.service import Service
from eva_local.trace import TraceFile, TraceWriter, read_trace, trace_page
from eva_local.types import Message, Sampling
from tools.fire import mutate
from tools.fire.campaign import Campaign, check
from tools.fire.hammer import hammer
from tools.tiny_gguf import write_tiny_gguf

_N_TOKENS = 3


def opened(models: Path, n_slots: int = 4) -> Ensemble:
    """Open the tiny ensemble."""
    return open_ensemble(load_config(models / "models.toml").ensemble("pair"), parallel=n_slots)


class Damaged:
    """A subject with samples that are damaged in some ways and put into a file."""

    ways: Sequence[mutate.Mutation] = mutate.JSON

    def __init__(self, folder: Path, models: Path) -> None:
        """Make the samples."""
        self.folder, self.models = folder, models
        self.path = folder / "damaged"
        self.samples: Sequence[bytes] = self.made()

    def made(self) -> Sequence[bytes]:
        """Return samples without a fault."""
        raise NotImplementedError

    def case(self, chance: Random) -> bytes:
        """Return a damaged sample."""
        return mutate.damaged(chance, self.ways, self.samples)

    def judge(self, data: bytes) -> bool:
        """Read the data as a file."""
        self.path.write_bytes(data)
        return self.look()

    def look(self) -> bool:
        """Judge the file."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what was opened."""


# Of a GGUF file: its version, what its counts and lengths are, and the types of its values.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def fields_of_gguf(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return where each count, length and type of a header stands, and in how many bytes.

    With them goes where the header ends.
    """
    found = [(4, 4), (8, 8), (16, 8)]
    at = 24

    def number(width: int) -> int:
        nonlocal at
        found.append((at, width))
        at += width
        return int.from_bytes(data[at - width : at], "little")

    def text() -> None:
        nonlocal at
        length = number(8)
        at += length

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number(4), number(8)
            for _ in range(count):
                value(inner)
        else:
            found.append((at, _SIZES[kind]))
            at += _SIZES[kind]

    n_tensors, n_values = struct.unpack("<QQ", data[8:24])
    for _ in range(n_values):
        text()
        value(number(4))
    for _ in range(n_tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found, at


class Headers(Damaged):
    """GGUF headers, as they are read before a model is opened."""

    ways = mutate.BYTES

    def made(self) -> Sequence[bytes]:
        """Return headers of several architectures, with the first of what follows."""
        self.samples, self.fields = [], []
        for architecture in ("llama", "gemma3", "lfm2"):
            path = self.folder / f"{architecture}.gguf"
            data = write_tiny_gguf(path, architecture, n_ctx=256).read_bytes()
            fields, end = fields_of_gguf(data)
            self.fields.append(fields)
            self.samples.append(self.kept(data, end))
        return self.samples

    def kept(self, data: bytes, end: int) -> bytes:
        """Return of a file what a case has of it."""
        return data[: end + 64]

    def case(self, chance: Random) -> bytes:
        """Return a header in which bytes, or counts, lengths and types are wrong."""
        place = chance.randrange(len(self.samples))
        data, fields = bytearray(self.samples[place]), self.fields[place]
        if chance.random() < 0.4:
            return mutate.damaged(chance, self.ways, self.samples)
        # Most of the fields are lengths of tokens: what stands before and behind is as likely.
        few = (fields[:60], fields[-60:], fields)
        for _ in range(chance.choice((1, 1, 2, 4))):
            at, width = chance.choice(chance.choice(few))
            odd = chance.choice((0, 1, 2, 8, 9, 13, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            near = int.from_bytes(data[at : at + width], "little") + chance.choice((-1, 1, 64))
            number = chance.choice((odd, odd, near)) % (1 << 8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
        return bytes(data)

    def look(self) -> bool:
        """Read the header; what is told of it must be sane."""
        header = read_header(self.path)
        refusal(self.path)
        check(header.parameters >= 0, f"{header.parameters} parameters")
        check((header.n_vocab or 0) >= 0, f"a vocabulary of {header.n_vocab}")
        return True


class Files(Headers):
    """Whole GGUF files, as llama.cpp opens them, and a few tokens written with them."""

    def kept(self, data: bytes, _: int) -> bytes:
        """Return all of a file."""
        return data

    def look(self) -> bool:
        """Open the file and decode."""
        read_header(self.path)
        settings = LoadSettings(n_ctx=64, n_batch=32, threads=1)
        with LlamaModel(self.path, settings) as model:
            tokens = model.tokenizer.encode(b"the light and")
            (row,) = model.decode([Run(0, 0, tokens)])
            check(row is not None and len(row) == len(model.vocabulary), "logits are missing")
        return True


class Mappings(Damaged):
    """Files of mappings: bytes of the archive, and arrays and values within it."""

    ways = mutate.BYTES

    def made(self) -> Sequence[bytes]:
        """Return two mappings of the tiny models."""
        small, found = LoadSettings(n_ctx=64), []
        files = (self.models / "one.gguf", self.models / "two.gguf")
        one, two = (LlamaModel(path, small, vocabulary_only=True) for path in files)
        for pair in ((one, two), (two, one)):
            surface_refined(pair[0].tokenizer, pair[1].tokenizer).save(self.path)
            found.append(self.path.read_bytes())
        one.close()
        two.close()
        return found

    def case(self, chance: Random) -> bytes:
        """Return a damaged archive, or a whole one of damaged arrays."""
        if chance.random() < 0.4:
            return super().case(chance)
        with np.load(io.BytesIO(chance.choice(self.samples))) as file:
            arrays = {name: file[name] for name in file.files}
        for _ in range(chance.choice((1, 1, 2))):
            name = chance.choice([*arrays])
            arrays[name] = _damaged_array(chance, arrays[name])
            if chance.random() < 0.1:
                arrays[chance.choice([*arrays])] = arrays[name]
            if chance.random() < 0.05:
                del arrays[name]
                break
        data = io.BytesIO()
        chance.choice((np.savez, np.savez_compressed))(data, **arrays)
        return data.getvalue()

    def look(self) -> bool:
        """Read the mapping; its rows must keep law 3."""
        found = Mapping.load(self.path)
        counts = np.diff(found.indptr)
        check((counts >= 0).all() and counts.sum() == len(found.indices), "rows are out of order")
        rows = np.repeat(np.arange(len(counts)), counts)
        sums = np.bincount(rows, found.weights, len(counts))
        check((found.weights >= 0).all(), "a weight is below zero, or no number")
        check(np.abs(sums[counts > 0] - 1 < 1e-3).all(), "a row does not sum to 1")
        check(not len(found.indices) or found.indices.max() < found.n_symbols, "out of range")
        return True


def _damaged_array(chance: Random, array: Any) -> Any:
    array = np.atleast_1d(array)
    if array.dtype == np.uint8:
        text = mutate.damaged(chance, mutate.JSON, [array.tobytes()])
        return np.frombuffer(text, dtype=np.uint8)
    kind = chance.choice(("int8", "uint64", "float16", "float64", "complex64", "bool", "<U3"))
    odd = (
        -1,
        0,
        1,
        2**31 - 1,
        -(2**31),
        *((np.nan, np.inf, 1e30) if array.dtype.kind == "f" else ()),
    )
    way = chance.randrange(6)
    if way == 0 and len(array):
        array = array.copy()
        for _ in range(chance.choice((1, 3))):
            array[chance.randrange(len(array))] = np.asarray(chance.choice(odd)).astype(array.dtype)
        return array
    if way == 1:
        with np.errstate(all="ignore"):
            return array.astype(kind)
    if way == 2:
        return array[: chance.randrange(len(array) + 1)]
    if way == 3:
        return chance.choice((array[None], array[:0], array[::-1], np.asarray(1, array.dtype)))
    if way == 4:
        return np.concatenate([array, array])
    return array.byteswap().view(array.dtype.newbyteorder())


class Configs(Damaged):
    """models.toml, read with nothing beside it but what is shipped."""

    ways = mutate.TOML

    def made(self) -> Sequence[bytes]:
        """Return a small file and a rich one."""
        small = (self.models / "models.toml").read_bytes()
        return [small, _RICH.replace("{folder}", str(self.models)).encode()]

    def look(self) -> bool:
        """Read the file; every ensemble that it names can be had, or is refused by name."""
        try:
            config = load_config(self.path, {})
        except EvaError as error:
            check("damaged" in str(error), f"the file is not named: {str(error)[:200]}")
            raise
        for name in config.ensembles:
            spec = config.ensemble(name)
            names = [member.name for member in spec.members]
            check(names and len(set(names)) == len(names), f"{name} has members {names}")
            check(spec.pivot in names, f"the pivot of {name} is {spec.pivot}")
        check(config.members(), "the default ensemble is nobody")
        json.dumps({key: str(each.value) for key, each in config.settings.items()})
        return True


_RICH = """\
schema = 1
[defaults]
ensemble = "trio"
n_ctx = 512
temperature = 0.7
seed = 3
top_p = 0.9
weights = "running"
tensor_split = [1, 2]

[models.one]
path = "{folder}/one.gguf"
sha256 = "aa00000000000000000000000000000000000000000000000000000000000000"
description = "the first"
[models.two]
path = "{folder}/two.gguf"
n_ctx = 128
chat_template_kwargs = { enable_thinking = false }
[models.hub]
hub = "owner/model"
file = "sub/m-Q4_K_M.gguf"
revision = "main"
size = 1000
[models.wheel]
wheel = "weights-part{n}==1.0"
file = "part{n}/data/part{i:02}.bin"
parts = 3
sha256 = "bb00000000000000000000000000000000000000000000000000000000000000"

[ensembles.trio]
members = ["one", "two", "hub"]
pivot = "two"
weights = [1.0, 0.5, 2]
combine = "geometric"
[ensembles.roles]
members = [{ model = "one", name = "calm", system = "Be calm." }, { model = "one", name = "bold" }]
space = "bytes"
weights = [1.5, -0.5]
combine = "geometric"
"""


_STEPS = ("the light", " and er", "ing é中", "z")


class Traces(Damaged):
    """Trace files, and their pages."""

    def made(self) -> Sequence[bytes]:
        """Return traces of answers of the tiny ensemble."""
        found: list[bytes] = []
        sampling = Sampling(max_tokens=_N_TOKENS, temperature=1.0, seed=1)
        with opened(self.models) as ensemble:
            spec = ensemble.spec
            for text in _STEPS:
                asked = [Message("user", text)] if len(found) % 2 else text
                said = asked if isinstance(asked, str) else tuple(asked)
                head = TraceFile(spec.name, ensemble.members, spec.pivot, said, asdict(spec.fusion))
                with TraceWriter(self.path, head) as writer:
                    for step in ensemble.stream(asked, sampling, trace=True):
                        writer.write(step)
                found.append(self.path.read_bytes())
        return found

    def look(self) -> bool:
        """Read the trace and make its page."""
        found = read_trace(self.path)
        page = trace_page(found)
        n_lines = self.path.read_bytes().count(b"\n") + 1
        check(len(found.steps) <= n_lines, "more steps than lines")
        check(page.isascii() or page.encode(), "the page is no text")
        return True


class Chats(Damaged):
    """Files of conversations."""

    def made(self) -> Sequence[bytes]:
        """Return conversations: plain, with a system message, changed, thought about."""
        conversations = [
            [("user", "a"), ("answer", "b"), ("user", "c é中"), ("answer", "d")],
            [("system", "Be brief."), ("user", "a"), ("answer", "b"), ("undo", ""), ("user", "x")],
            [("user", "a"), ("answer", "b"), ("answer", "c"), ("system", ""), ("undo", "")],
        ]
        found = []
        for events in conversations:
            shelf = self.folder / "chats"
            with Log.begin(shelf, "pair", Conversation()) as file:
                for kind, text in events:
                    file.save(Event(kind, text, "hm" if kind == "answer" else ""))  # type: ignore[arg-type]  # a kind
            found.append(file.path.read_bytes())
            file.path.unlink()
        return found

    def look(self) -> bool:
        """Read the conversation, save it again, and read that."""
        saved = log.read(self.path)
        turns = saved.conversation.turns
        check(all(turn.answer is not None for turn in turns[:-1]), "a turn has no answer")
        shelf = self.folder / "again"
        with Log.begin(shelf, saved.ensemble, saved.conversation) as file:
            pass
        again = log.read(file.path).conversation
        file.path.unlink()
        check(again == saved.conversation, f"{again} was {saved.conversation}")
        return True


def _lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


_SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}}
_ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
_PARTS = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
_ROWS = (
    _lines(
        {"id": "a", "prompt": "the light", "max_tokens": 3},
        {"id": 2, "messages": _ASKED},
        {"prompt": "z", "temperature": 0.5, "seed": 1, "stop": ["e", "\n"], "top_p": 0.9},
        {"id": "j", "prompt": "q", "json_schema": _SCHEMA},
        {"id": "g", "prompt": "q", "grammar": 'root ::= [a-c]+ | "x"', "logprobs": 2},
        {"id": "b", "prompt": "q", "logit_bias": {"e": 3}, "min_p": 0.1, "repeat_penalty": 1.1},
    ),
    _lines(
        {"custom_id": "1", "url": CHAT, "body": {"messages": _PARTS, "max_tokens": 2}},
        {"custom_id": "2", "method": "POST", "url": "/v1/completions", "body": {"prompt": "the"}},
    ),
    b'id,prompt,max_tokens,temperature\na,"the, ""light""",2,0\nb,"two\nlines",,1\nc,x,3,\n',
    b"the light\nand er\n\n\xc3\xa9\xe4\xb8\xad\nlast",
)


class Rows(Damaged):
    """Files of rows, answered."""

    def made(self) -> Sequence[bytes]:
        """Return one of each form."""
        self._ensemble = opened(self.models)
        self._ensemble.__enter__()
        return _ROWS

    def look(self) -> bool:
        """Answer the rows; each has one line of output."""
        target = self.folder / "out.jsonl"
        for path in (target, target.with_name(f"{target.name}.manifest.json")):
            path.unlink(missing_ok=True)
        wishes = Wishes(Sampling(max_tokens=_N_TOKENS))
        errand = Errand(str(self.path), str(target), self._ensemble.spec, wishes)
        forms: list[str] = []

        lent = nullcontext(self._ensemble)
        progress = carry_out(errand, lambda _: lent, told=lambda _: forms.append(""))
        results = [json.loads(line) for line in target.read_bytes().splitlines()]
        check(progress.finished and len(results) == progress.n_done, "rows are lost")
        ids = [(str(r.get("custom_id") or r["id"]), r.get("row_hash")) for r in results]
        check(len(set(ids)) == len(ids), f"a row is answered twice: {ids}")
        head = self.path.read_bytes()
        if not any(b"row_hash" in line for line in (head,)) and head.lstrip()[:1] == b"{":
            with self.path.open("rb") as file:
                n_rows = sum(1 for _ in lines_of(file))
            check(len(results) == n_rows, f"{n_rows} rows have {len(results)} answers")
        return True

    def close(self) -> None:
        """Close the models."""
        self._ensemble.close()


_ANSWER = {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_CALLED = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "4"},
]
_ALL = {"n": 2, "seed": 1, "temperature": 1, "stop": ["e"], "logit_bias": {"270": 2}}
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_ECHO = {"echo": True, "logprobs": 1, "max_tokens": 0}
_DRAWN = {"top_p": 0.9, "min_p": 0.1, "grammar": "root ::= [a-z]+"}
_BODIES: Sequence[tuple[str, dict[str, Any]]] = (
    (CHAT, {"messages": _ASKED}),
    (
        CHAT,
        {"model": "pair/two", "messages": _ASKED, "logprobs": True, "top_logprobs": 2} | _STREAM,
    ),
    (
        CHAT,
        {
            "messages": _PARTS,
            "weights": [1, 2],
            "response_format": {"type": "json_schema", "json_schema": _ANSWER},
        }
        | _ALL,
    ),
    (CHAT, {"messages": _CALLED, "tools": [{"type": "function", "function": _FUNCTION}]}),
    ("/v1/completions", {"prompt": ["the", [260, 270]], "echo": True, "logprobs": 1} | _DRAWN),
    ("/v1/completions", {"prompt": "the light"} | _ECHO),
    (
        "/v1/responses",
        {"input": _ASKED, "instructions": "y", "max_output_tokens": 3, "stream": True},
    ),
    ("/tokenize", {"prompt": "the light é"}),
    ("/detokenize", {"tokens": [260, 270]}),
    ("/api/chat", {"model": "pair", "messages": _ASKED, "options": {"num_predict": 2}}),
    ("/api/generate", {"model": "pair", "prompt": "x", "stream": False, "options": {"seed": 1}}),
    ("/api/show", {"model": "pair"}),
    ("/v1/embeddings", {"model": "pair", "input": "x"}),
)


class Bodies(Damaged):
    """Bodies of HTTP requests, put to the whole application."""

    def made(self) -> Sequence[bytes]:
        """Return a body of each kind behind its path and a line end."""
        self._ensemble = opened(self.models)
        self._ensemble.__enter__()
        self._service = Service()
        self._service.open([self._ensemble], 64)
        self._app = make_app(self._service)
        self._loop = asyncio.new_event_loop()
        sampling = {"max_tokens": _N_TOKENS}
        found = []
        for path, body in _BODIES:
            whole = (
                body if path.startswith(("/tok", "/detok", "/api", "/v1/resp")) else sampling | body
            )
            found.append(f"{path}\n{json.dumps(whole, ensure_ascii=False)}".encode())
        return found

    def case(self, chance: Random) -> bytes:
        """Return a path and a damaged body."""
        path, _, body = chance.choice(self.samples).partition(b"\n")
        bodies = [each.partition(b"\n")[2] for each in self.samples]
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            body = chance.choice(self.ways)(chance, body, bodies)
        return path + b"\n" + body

    def judge(self, data: bytes) -> bool:
        """Post the body."""
        path, _, body = data.partition(b"\n")
        status, answer = self._loop.run_until_complete(posted(self._app, path.decode(), body))
        self.said = status, answer
        check(status in (200, 400, 404, 413, 422, 503), f"status {status}: {answer[:500]!r}")
        check(self._service.named(None).slots.taken == 0, "a slot is kept")
        if status == 200:
            check(b"server_error" not in answer, f"a stream ends in {answer[-500:]!r}")
            for line in _told(answer):
                json.loads(line)
            return True
        error = json.loads(answer)["error"]
        message = error if isinstance(error, str) else error["message"]
        check(message and "Traceback" not in message, f"status {status} says {answer[:300]!r}")
        # Of the embeddings nothing is answered, whatever is asked.
        return path.endswith(b"embeddings") and error["code"] == "not_supported"

    def close(self) -> None:
        """Close the models."""
        self._loop.close()
        self._ensemble.close()


def _told(answer: bytes) -> list[bytes]:
    """Return the values of JSON in an answer: one, one a line, or those of its events."""
    if answer.startswith((b"data:", b"event:", b":")):
        found = re.findall(rb"^data: (.*)$", answer, re.MULTILINE)
        return [each for each in found if each != b"[DONE]"]
    return [line for line in answer.split(b"\n") if line.strip()] if b"}\n{" in answer else [answer]


async def posted(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Post a body to an application; return the status and the whole answer."""
    given = asyncio.Queue[dict[str, Any]]()
    given.put_nowait({"type": "http.request", "body": body, "more_body": False})
    status, parts = 0, []

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    scope |= {"headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http"}
    await app(scope, given.get, send)
    return status, b"".join(parts)


#: What is damaged, by name, and how many times where nobody says.
SUBJECTS: dict[str, tuple[Callable[[Path, Path], Damaged], int]] = {
    "GGUF headers": (Headers, 10_000),
    "GGUF files in llama.cpp": (Files, 1_000),
    "mapping files": (Mappings, 10_000),
    "models.toml": (Configs, 10_000),
    "rows": (Rows, 3_000),
    "trace files": (Traces, 10_000),
    "chat logs": (Chats, 10_000),
    "HTTP bodies": (Bodies, 10_000),
}


def damage(campaign: Campaign, only: str | None = None) -> None:
    """Put damaged data of all kinds, or of one, to the program."""
    for what, (maker, n) in SUBJECTS.items():
        if only in (None, what):
            hammer(campaign, "damage", what, maker, n if campaign.n is None else campaign.n)
