"""Law 1 on random texts: the tokens of every member join to the bytes of the text, always.

In the pivot's space a member writes some of its own tokens, any at all or those of a random text,
and another of another vocabulary follows. In bytes, members follow random bytes with rows of
tokens, whose logits are random numbers. Nothing is decoded, so that many texts can be had; the
tokenisers and vocabularies are llama.cpp's.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from eva_local.cache.context import Context
from eva_local.config.config import load_config, shipped
from eva_local.config.specs import LoadSettings
from eva_local.errors import StoreError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Logits, Run
from eva_local.models.store import locate
from eva_local.spaces.base import Beginning
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace
from tools import build_llama
from tools.fire.campaign import ROOT, Campaign, WrongError, check
from tools.fire.hammer import hammer
from tools.recipe import REQUIREMENT, pinned

# Of each family of tokenisers one: SentencePiece with and without a space in front, byte-level.
_FAMILIES = (
    "gemma-4",
    "llama-bpe",
    "qwen2",
    "deepseek-llm",
    "falcon",
    "gpt-2",
    "phi-3",
    "llama-spm",
)
_DEMO = ("smollm2-135m", "gemma3-270m")
# Texts of one case.
TEXTS = 100
BYTE_TEXTS = 2
_N_TEXTS, _N_BYTE_TEXTS = 200_000, 4_000
# What careless programs stumble over.
_AWKWARD = (
    *(
        "😀",
        "👩‍👩‍👧",
        "🏳️‍🌈",
        "中文",
        "日本語",
        "é",
        "n\u0308",
        "\u0627",
        "שלום",
        "\u202e",
        "▁",
        "Ġ",
    ),
    *("\x00", "\x1b[31m", "\r\n", "\n\n", "\t", "  ", "    ", " the", "the", " unbelievable"),
    *("\ufffd", "<|im_end|>", "</s>", "<s>", "<unk>", "<0x0A>", "\U000e0001", "\U0004ffff"),
    *("\ufdfa", "12345", "'s", "\u3000"),
)


class Paper:
    """A model with a real vocabulary and tokeniser, and with random numbers for logits."""

    chat_template: str | None = None
    n_ctx, n_batch, n_branches, n_snapshots = 1 << 20, 512, BRANCHES, 0
    can_roll_back = True

    def __init__(self, path: Path) -> None:
        """Read the vocabulary of a file."""
        self._file = LlamaModel(path, LoadSettings(n_ctx=64), vocabulary_only=True)
        self.path = path
        self.vocabulary, self.tokenizer = self._file.vocabulary, self._file.tokenizer
        self.speakable = np.flatnonzero(self.vocabulary.speakable)
        self.may_speak = self.vocabulary.speakable.tolist()
        #: What llama.cpp would hold, by sequence.
        self.held: dict[int, list[int]] = {}
        self._numbers = np.random.default_rng(0)
        #: Whether somebody looks at the logits.
        self.is_asked = False

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Hold the tokens; return random logits."""
        found: list[Logits | None] = []
        for run in runs:
            row = self.held.setdefault(run.seq_id, [])
            check(len(row) == run.start, f"a run begins at {run.start}, and {len(row)} are held")
            row += run.tokens
            found.append(self._random() if run.logits and self.is_asked else None)
        return found

    def _random(self) -> Logits:
        return self._numbers.normal(0, 4, len(self.vocabulary)).astype(np.float32)

    def holds(self, seq_id: int, start: int) -> int:
        """Return `start`: any token can be gone on from."""
        return min(start, len(self.held.get(seq_id, ())))

    def remove(self, seq_id: int, start: int) -> int:
        """Forget positions from `start` on."""
        kept = self.holds(seq_id, start)
        del self.held.setdefault(seq_id, [])[kept:]
        return kept

    def copy(self, source: int, target: int, length: int = -1) -> int:
        """Let one sequence begin as another one."""
        row = self.held.get(source, [])
        self.held[target] = row[: len(row) if length < 0 else length]
        return len(self.held[target])

    def snapshot(self, seq_id: int, *, lasting: bool) -> None:
        """Do nothing: no snapshot is needed."""

    def close(self) -> None:
        """Free the vocabulary."""
        self._file.close()


def random_bytes(chance: Random, missing: frozenset[int]) -> bytes:
    """Return a text: of awkward characters, of any characters, perhaps cut or no UTF-8 at all."""
    parts = []
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        way = chance.random()
        if way < 0.5:
            parts.append(chance.choice(_AWKWARD))
        elif way < 0.8:
            parts.append("".join(chance.choices("abcdefghijklmnopqrstuvwxyz ., \n", k=8)))
        else:
            most = chance.choice((0x7F, 0x2FF, 0xFFFF, 0x10FFFF))
            parts.append("".join(chr(chance.randrange(most)) for _ in range(3)))
    data = "".join(parts).encode("utf-8", "replace")
    if chance.random() < 0.2:
        data = data[chance.randrange(2) : -1] + chance.randbytes(chance.randrange(4))
    return bytes(byte for byte in data if byte not in missing) if missing else data


class Law:
    """A subject: each case is the seed of many texts."""

    def __init__(self, folder: Path, models: Path) -> None:
        """Open the vocabularies."""
        del folder
        self.models = [Paper(path) for path in self.files(models)]
        self.samples: Sequence[bytes] = (b"first",)

    def files(self, models: Path) -> Sequence[Path]:
        """Return the files whose vocabularies are used."""
        return (models / "one.gguf", models / "two.gguf")

    def case(self, chance: Random) -> bytes:
        """Return the seed of a case."""
        return chance.randbytes(8)

    def judge(self, data: bytes) -> bool:
        """Follow the texts of a case."""
        chance = Random(data)
        for _ in range(self.n_texts):
            self.follow(chance)
        return True

    n_texts = TEXTS

    def follow(self, chance: Random) -> None:
        """Let members follow one text."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the vocabularies."""
        for model in self.models:
            model.close()


class PivotLaw(Law):
    """Law 1 in the pivot's space, and of the tokenisers themselves."""

    def files(self, models: Path) -> Sequence[Path]:
        """Return the tiny models, and what real vocabularies are at hand."""
        return (*super().files(models), *sorted((models / "vocabularies").glob("*.gguf")))

    def follow(self, chance: Random) -> None:
        """Write a text in a pivot's tokens; another model follows it."""
        pivot, member = chance.choice(self.models), chance.choice(self.models)
        missing = pivot.tokenizer.missing_bytes | member.tokenizer.missing_bytes
        pieces = pivot.vocabulary.pieces
        if chance.random() < 0.5:
            data = random_bytes(chance, missing)
            symbols = pivot.tokenizer.encode(data)
            joined = pivot.vocabulary.join(symbols)
            check(joined == data, f"{pivot.path.name} reads {data!r} as {joined!r}")
        else:
            ids = pivot.speakable
            drawn = [int(ids[chance.randrange(len(ids))]) for _ in range(chance.randrange(1, 7))]
            symbols = [each for each in drawn if missing.isdisjoint(pieces[each])]
        contexts = [Context(model) for model in (pivot, member)]
        for context, model in zip(contexts, (pivot, member), strict=True):
            model.held.clear()
            context.start([int(model.speakable[0])])
        text = b""
        for symbol in symbols:
            text += pieces[symbol]
            contexts[0].append_token(symbol)
            contexts[1].append(pieces[symbol])
            for context, model in zip(contexts, (pivot, member), strict=True):
                tokens = context.tokens[1:]
                joined = model.vocabulary.join(tokens)
                is_text = all(map(model.may_speak.__getitem__, tokens))
                if not is_text or not joined == text == bytes(context.text):
                    names = f"{pivot.path.name} to {model.path.name}"
                    raise WrongError(f"{names}: {text!r} is {joined!r}, {list(tokens)}")
            if chance.random() < 0.3 and pivot is not member:
                self._decode(member, contexts[1])

    def _decode(self, model: Paper, context: Context) -> None:
        run = context.pending()
        model.decode([run])
        context.decoded(run)
        check(model.held[0] == list(context.tokens), f"{model.path.name} holds another text")


class ByteLaw(Law):
    """Law 1 in the space of bytes."""

    n_texts = BYTE_TEXTS

    def __init__(self, folder: Path, models: Path) -> None:
        """Make the space."""
        super().__init__(folder, models)
        self._space = ByteSpace(self.models)
        for model in self.models:
            model.is_asked = True

    def follow(self, chance: Random) -> None:
        """Let all members follow random bytes."""
        states = self._space.states(0)
        missing = frozenset[int]().union(*(m.tokenizer.missing_bytes for m in self.models))
        data = random_bytes(chance, missing)[:48]
        for model, state in zip(self.models, states, strict=True):
            model.held.clear()
            state.start(Beginning([int(model.speakable[0])]))
            self._read(model, state)
        settled = chance.random() < 0.5
        for end, byte in enumerate(data, 1):
            for model, state in zip(self.models, states, strict=True):
                state.commit(byte)
                if settled and chance.random() < 0.3:
                    state.settle()
                self._read(model, state)
                check(bytes(state.beam.text) == data[:end], f"{state.beam.text!r} is the text")
                rows = [model.vocabulary.join(row[1:]) for row in state.rows()]
                if not rows or not all(map(data[:end].startswith, rows)):
                    raise WrongError(f"{model.path.name} follows {data[:end]!r} with {rows}")

    def _read(self, model: Paper, state: Any) -> None:
        while not state.ready:
            for run in state.pending(None):
                (logits,) = model.decode([run])
                state.take(run, logits)


def vocabularies(folder: Path) -> Sequence[Path]:
    """Gather real vocabularies: of llama.cpp's source, where it is kept, and of demo models."""
    folder.mkdir(parents=True, exist_ok=True)
    version, _ = pinned((ROOT / REQUIREMENT).read_text(encoding="utf-8"))
    source = build_llama.kept_source(version, Path.home() / ".cache" / "eva-local" / "wheels")
    if source.exists():
        with tarfile.open(source) as archive:
            for file in archive:
                named = re.search(r"/vendor/llama.cpp/models/ggml-vocab-(.*)\.gguf$", file.name)
                if named and named[1] in _FAMILIES:
                    file.name = f"{named[1]}.gguf"
                    archive.extract(file, folder, filter="data")
    models = load_config(shipped("models.toml"), {}).models
    for name in _DEMO:
        with suppress(StoreError):
            (folder / f"{name}.gguf").symlink_to(locate(models[name]))
    return sorted(folder.glob("*.gguf"))


def law(campaign: Campaign) -> None:
    """Follow texts in both spaces; of `n` texts in the pivot's, a fiftieth is followed in bytes."""
    n = _N_TEXTS if campaign.n is None else campaign.n
    real = campaign.models / "vocabularies"
    found = [*real.glob("*.gguf")]
    # To read them takes longer than a few texts are worth.
    if n > 100 * TEXTS and not found:
        found = [*vocabularies(real)]
    what = f"pivot's space, {len(found) + 2} vocabularies"
    hammer(campaign, "law 1", what, PivotLaw, max(1, n // TEXTS), unit=TEXTS)
    n_bytes = max(1, n * _N_BYTE_TEXTS // _N_TEXTS // BYTE_TEXTS)
    hammer(campaign, "law 1", "space of bytes", ByteLaw, n_bytes, unit=BYTE_TEXTS)
