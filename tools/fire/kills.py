"""SIGKILL at random moments: nothing is lost, doubled or torn when the command is given again."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from eva_local.chat import log
from eva_local.chat.log import Turn
from eva_local.errors import InputError
from eva_local.trace import TraceFile, read_trace
from tools.fire.campaign import EVA, PATIENCE_S, Campaign, Finding, Row, WrongError, check, run
from tools.tiny_gguf import write_tiny_gguf

_N_KILLS = 500
# Kills of one story, after which its command may come to its end.
_MOST = 12
_SHARES = {"batch": 0.7, "chat": 0.1, "run --trace": 0.1, "pull": 0.1}
_N_ROWS = 120
_MESSAGES = tuple(f"the light {number}" for number in range(6))


@dataclass
class Attempt:
    """What a command said until its end, or until it was killed."""

    killed: bool
    code: int
    out: str
    err: str


@dataclass
class Kind:
    """A command that is killed: how often yet."""

    left: int
    name: str = ""
    done: int = 0
    stories: int = 0
    findings: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Stage:
    """Where one story is played: a folder, its random numbers, the kills that are left."""

    campaign: Campaign
    kind: Kind
    folder: Path
    chance: Random
    number: int
    left: int = _MOST
    #: How long the command takes that nobody kills, and how long it took this time.
    seconds: float = 2.0
    took: float | None = None

    def attempt(self, *call: str, given: str = "", **environment: str) -> Attempt:
        """Run a command and kill it at a random moment, unless it has come to its end by then."""
        with self.kind.lock:
            kills = self.left > 0 and self.kind.left > 0
            self.kind.left -= kills
        patience = self.chance.uniform(0, self.seconds) if kills else PATIENCE_S
        path = self.folder / "stdin"
        path.write_text(given, encoding="utf-8")
        out, err = self.folder / "stdout", self.folder / "stderr"
        with path.open("rb") as stdin, out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*EVA, *call],
                cwd=self.folder,
                env=self.campaign.environment(**environment),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
            killed, began = False, time.monotonic()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                killed = True
                process.kill()
                process.wait()
            # It may have ended on its own in between.
            killed = killed and process.returncode < 0
        with self.kind.lock:
            self.kind.done += killed and kills
            self.kind.left += kills and not killed
        if self.left == _MOST and not killed:
            # The machine may be busier, or less so, than it was.
            self.took = time.monotonic() - began
        self.left -= killed
        said = [each.read_text(encoding="utf-8", errors="replace") for each in (out, err)]
        check(kills or not killed, f"{call} does not end: {said[1][-500:]}")
        check(killed or process.returncode == 0, f"exit code {process.returncode}: {said[1]}")
        return Attempt(killed, process.returncode, *said)


def _whole(path: Path) -> bytes:
    """Return the whole lines of a file."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def _inputs(folder: Path) -> Mapping[str, Sequence[str]]:
    """Write inputs of batch jobs; return the arguments of each job, without the output."""
    rows = [{"id": f"r{n}", "prompt": f"the {n} light"} for n in range(_N_ROWS)]
    # Some fail, each time.
    odd = [row | ({"temperature": -1} if n % 10 == 3 else {}) for n, row in enumerate(rows)]
    table = ["id,prompt", *(f'r{n},"the {n}, light"' for n in range(_N_ROWS))]
    files = {
        "rows.jsonl": "\n".join(map(json.dumps, rows)),
        "odd.jsonl": "\n".join(map(json.dumps, odd)),
        "table.csv": "\n".join(table),
        "lines.txt": "\n".join(f"and {n} er" for n in range(_N_ROWS)),
    }
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    parallel = ("--parallel", "4")
    return {
        "rows": (str(folder / "rows.jsonl"), *parallel),
        "ordered": (str(folder / "rows.jsonl"), *parallel, "--ordered"),
        "table": (str(folder / "table.csv"), *parallel),
        "lines": (str(folder / "lines.txt"), *parallel, "--ordered"),
        # Several rows a text are not computed as if no other text were beside them.
        "bytes": (str(folder / "rows.jsonl"), "--parallel", "1", "-e", "bytes", "-n", "4"),
        "retried": (str(folder / "odd.jsonl"), *parallel, "--retry-errors"),
    }


def answers_in(path: Path) -> dict[str, object]:
    """Return what an output says of each row, by its id; each must be there once."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    found = {str(row["id"]): row.get("text", row.get("error")) for row in rows}
    check(len(found) == len(rows), f"a row is there twice: {len(rows)} lines, {len(found)} ids")
    return found


def _asked(path: Path) -> tuple[str, ...]:
    return ("run", "-n", "150", "--trace", str(path), "the light")


class Stories:
    """The stories of all kinds, and what they must come to; that is found out when it is needed."""

    def __init__(self, campaign: Campaign) -> None:
        """Write the inputs."""
        self.campaign = campaign
        self.folder = campaign.scratch("kills")
        self.jobs = _inputs(self.folder)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Any, float]] = {}
        self._playing: dict[tuple[int, str], str] = {}

    def _once(self, stage: Stage, name: str, find: Callable[[], Any]) -> Any:
        """Return what a command comes to that nobody kills; tell a stage how long it takes."""
        with self._lock:
            if name not in self._known:
                began = time.monotonic()
                found = find()
                self._known[name] = found, time.monotonic() - began
            found, stage.seconds = self._known[name]
            self._playing[stage.number, stage.kind.name] = name
            return found

    def learn(self, stage: Stage) -> None:
        """Note how long a command took that was not killed in a story."""
        with self._lock:
            name = self._playing.pop((stage.number, stage.kind.name), None)
            if name is not None and stage.took is not None:
                self._known[name] = self._known[name][0], stage.took

    def _run(self, *call: str, given: str = "", **environment: str) -> None:
        done = run((*EVA, *call), self.campaign.environment(**environment), given=given)
        # Rows that are meant to fail end with 1.
        check(done.returncode in (0, 1), f"{call} ended with {done.returncode}: {done.stderr}")

    def _answers(self, name: str) -> dict[str, object]:
        source, *options = self.jobs[name]
        out = self.folder / f"{name}.out.jsonl"
        self._run("batch", source, str(out), *options)
        return answers_in(out)

    def _turns(self) -> Sequence[Turn]:
        state = self.folder / "state"
        self._run("chat", "-e", "pair", given="\n".join(_MESSAGES), XDG_STATE_HOME=str(state))
        turns = log.newest(state / "eva-local" / "chats").conversation.turns
        check(len(turns) == len(_MESSAGES), "the chat has not answered all")
        return turns

    def _steps(self) -> Sequence[bytes]:
        path = self.folder / "trace.jsonl"
        self._run(*_asked(path))
        return [step.piece for step in read_trace(path).steps]

    def _fetched(self) -> bytes:
        path = self.folder / "far.gguf"
        data = path.read_bytes() if path.exists() else b""
        if not data:
            data = write_tiny_gguf(path, n_layers=3, width=256, n_ctx=256).read_bytes()
        folder = self.campaign.scratch("kills", "pull")
        stage = Stage(self.campaign, Kind(0), folder, Random(), 0)
        self._pulled(stage, data)
        return data

    def batch(self, stage: Stage) -> None:
        """Kill a batch job; in the end each row has the answer that it has without."""
        name = [*self.jobs][stage.number % len(self.jobs)]
        wanted = self._once(stage, name, lambda: self._answers(name))
        source, *options = self.jobs[name]
        out = stage.folder / "out.jsonl"
        while True:
            before = _whole(out)
            try:
                done = stage.attempt("batch", source, str(out), *options)
            except WrongError as error:
                # Rows that are meant to fail end with 1.
                if name != "retried" or "exit code 1:" not in str(error):
                    raise
                done = Attempt(False, 1, "", "")
            after = _whole(out)
            lines = map(json.loads, after.splitlines())
            answered = {str(row["id"]) for row in lines if "text" in row}
            earlier = {
                str(row["id"]) for row in map(json.loads, before.splitlines()) if "text" in row
            }
            check(earlier <= answered, f"lost: {sorted(earlier - answered)[:5]}")
            check(name == "retried" or after.startswith(before), "what was there has changed")
            if not done.killed:
                break
        check(out.read_bytes().endswith(b"\n"), "the last line is torn")
        found = answers_in(out)
        wrong = [key for key, text in wanted.items() if found.get(key) != text]
        check(not wrong and len(found) == len(wanted), f"{name}: wrong rows: {wrong[:5]}")
        check(not [*stage.folder.glob("*.part")], "a part of a file is left")

    def chat(self, stage: Stage) -> None:
        """Kill a chat; what was answered stays, and is said once."""
        state = stage.folder / "state"
        shelf = state / "eva-local" / "chats"
        wanted = self._once(stage, "chat", self._turns)
        n_told = n_answered = 0
        go_on: tuple[str, ...]
        while True:
            try:
                saved = log.newest(shelf)
                go_on = ("--continue",)
                turns = saved.conversation.turns
            except InputError:
                # Killed before anything was said.
                go_on, turns = (), ()
            answered = [turn for turn in turns if turn.answer is not None]
            check(len(answered) >= max(n_told, n_answered), f"{n_told} told, {len(answered)} kept")
            check(tuple(answered) == wanted[: len(answered)], "another conversation is kept")
            n_answered = n_told = len(answered)
            rest = "\n".join(_MESSAGES[n_answered:])
            done = stage.attempt(
                "chat", "-e", "pair", *go_on, given=rest, XDG_STATE_HOME=str(state)
            )
            if not done.killed:
                break
            # A line after each answer tells of it.
            n_told += sum(" · " in line for line in done.err.splitlines())
        turns = log.newest(shelf).conversation.turns
        check(turns == wanted, f"{[t.question for t in turns]} is kept")

    def traced(self, stage: Stage) -> None:
        """Kill `run --trace`; what was written is a beginning of the whole, and holds the shown."""
        path = stage.folder / "trace.jsonl"
        texts = self._once(stage, "trace", self._steps)
        while True:
            done = stage.attempt(*_asked(path))
            if not done.killed:
                break
            found: TraceFile | None = None
            try:
                found = read_trace(path) if path.exists() else None
            except InputError as error:
                check("holds no trace" in str(error), f"is not read: {error}")
            steps = found.steps if found else ()
            check([step.piece for step in steps] == texts[: len(steps)], "other steps")
            shown = "".join(step.text for step in steps)
            check(shown.startswith(done.out.rstrip("\n")), f"shown {done.out!r}, traced {shown!r}")
            check(
                not found or found.notes or found.finish_reason, "an end is missing, and not told"
            )
        found = read_trace(path)
        check([step.piece for step in found.steps] == texts and not found.notes, "not all is there")
        page = run((*EVA, "trace", str(path)), self.campaign.environment())
        check(page.returncode == 0, f"no page: {page.stderr}")

    def pull(self, stage: Stage) -> None:
        """Kill a pull; a file under its name is whole, and what was there is gone on with."""
        data = self._once(stage, "pull", self._fetched)
        self._pulled(stage, data)

    def _pulled(self, stage: Stage, data: bytes) -> None:
        cache = stage.folder / "cache" / "models"
        config = stage.folder / "models.toml"
        config.write_text(
            'schema = 1\n[models.far]\nhub = "owner/model"\nfile = "sub/m.gguf"\n', encoding="utf-8"
        )
        own = {"EVA_LOCAL_CONFIG": str(config), "EVA_LOCAL_CACHE": str(cache.parent)}
        own["HF_HOME"] = str(stage.folder / "hub")
        before = 0
        with hub(data) as address:
            while True:
                done = stage.attempt("pull", "far", **own, HF_ENDPOINT=address)
                parts = [path.stat().st_size for path in cache.glob(".*.work/*.part")]
                for path in cache.glob("*.gguf"):
                    check(path.read_bytes() == data, "a file that is not whole has its name")
                    parts.append(len(data))
                check(max(parts, default=0) >= before, f"{before} bytes were there, now {parts}")
                before = max(parts, default=0)
                if not done.killed:
                    break
        told = run((*EVA, "verify", "far"), self.campaign.environment(**own))
        check(told.returncode == 0, f"verify says {told.stdout} {told.stderr}")
        left = [
            path.name
            for path in cache.iterdir()
            if path.suffix not in (".gguf", ".sha256", ".lock")
        ]
        check(len([*cache.glob("*.gguf")]) == 1 and not left, f"left: {left}")


@contextmanager
def hub(data: bytes) -> Iterator[str]:
    """Serve one file as the hub does, slowly, on the loopback."""
    fields = {
        "X-Repo-Commit": "c0ffee" + "0" * 34,
        "X-Linked-Etag": f'"{sha256(data).hexdigest()}"',
        "X-Linked-Size": str(len(data)),
        "Accept-Ranges": "bytes",
    }

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            span = self.headers.get("Range")
            start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
            self.send_response(206 if span else 200)
            for name, value in fields.items():
                self.send_header(name, value)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            step = len(data) // 40
            try:
                for at in range(start, len(data), step):
                    self.wfile.write(data[at : at + step])
                    time.sleep(0.02)
            except OSError:
                # Whoever asked was killed.
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kills(campaign: Campaign, only: str | None = None) -> None:
    """Kill commands of all kinds, or of one, as often as asked for."""
    n = _N_KILLS if campaign.n is None else campaign.n
    shares = _SHARES if only is None else {only: 1.0}
    kinds = {name: Kind(max(1, round(n * share)), name) for name, share in shares.items()}
    wanted = sum(kind.left for kind in kinds.values())
    stories = Stories(campaign)
    plays: dict[str, Callable[[Stage], None]] = {
        "batch": stories.batch,
        "chat": stories.chat,
        "run --trace": stories.traced,
        "pull": stories.pull,
    }

    def play(name: str, number: int) -> None:
        kind = kinds[name]
        folder = campaign.scratch("kills", name.replace(" ", ""), number)
        stage = Stage(campaign, kind, folder, campaign.chance("kills", name, number), number)
        try:
            plays[name](stage)
        except WrongError as error:
            case = f"--part kills --seed {campaign.seed}, story {number}"
            campaign.found(Finding("kills", name, case, str(error), str(folder)))
            kind.findings += 1
        stories.learn(stage)
        kind.stories += 1

    def work(name: str, first: int) -> None:
        number = first
        while kinds[name].left > 0:
            play(name, number)
            number += campaign.workers
            campaign.told("kills", name, sum(k.done for k in kinds.values()), wanted)

    for name, kind in kinds.items():
        began = time.monotonic()
        with ThreadPoolExecutor(campaign.workers) as pool:
            for future in [pool.submit(work, name, first) for first in range(campaign.workers)]:
                future.result()
        outcome = f"{kind.stories} jobs done in the end"
        seconds = time.monotonic() - began
        campaign.rows.append(Row("kills", name, kind.done, outcome, kind.findings, seconds))
