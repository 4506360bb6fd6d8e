"""Disks that are full or read-only, clocks that jump, and memory that ends.

A full disk is a small tmpfs where this user may mount one, else a limit on the size of files; a
read-only folder is a tmpfs too, else one without the permission.
"""

from __future__ import annotations

import functools
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from eva_local.chat import log
from eva_local.errors import InputError
from eva_local.trace import read_trace
from tools.fire.campaign import (
    EVA,
    PATIENCE_S,
    ROOT,
    Campaign,
    Finding,
    Row,
    WrongError,
    check,
    check_refusal,
)
from tools.fire.kills import hub
from tools.tiny_gguf import write_tiny_gguf

_N = 3
_MIB = 1 << 20
# What a disk of a trial holds.
_DISK_BYTES = 2 * _MIB
_N_ROWS = 24
_REFUSED = (
    "make room",
    "No space left",
    "File too large",
    "Read-only file system",
    "Permission denied",
)
_CONFIG = 'schema = 1\n[models.far]\nhub = "owner/model"\nfile = "sub/m.gguf"\n'


class Disk:
    """A folder that can be made full or read-only."""

    def __init__(self, folder: Path) -> None:
        """Mount a small disk there, where that is allowed."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.mounted = not self._mount("-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs")
        self._ballast = folder / "ballast"
        self.most: int | None = None

    def _mount(self, *how: str) -> int:
        call = ["mount", *how, str(self.folder)]
        try:
            return subprocess.run(call, capture_output=True, check=False).returncode
        except FileNotFoundError:
            return 1

    def fill(self, left: int) -> None:
        """Leave room for so many bytes; without a disk of its own, a file may have that many."""
        if not self.mounted:
            self.most = left
            return
        free = shutil.disk_usage(self.folder).free
        with self._ballast.open("wb") as file:
            file.write(b"\0" * max(free - left, 0))

    def make_room(self) -> None:
        """Take away what fills it."""
        self.most = None
        self._ballast.unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nothing be written for the length of a `with` block."""
        self._protect(True)
        try:
            yield
        finally:
            self._protect(False)

    def _protect(self, on: bool) -> None:
        if self.mounted:
            check(not self._mount("-o", f"remount,{'ro' if on else 'rw'}"), "it is not remounted")
            return
        for path in (self.folder, *self.folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o555 if on else 0o755)

    def close(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


@dataclass
class Trial:
    """One trial: a disk, a folder beside it, and random numbers."""

    campaign: Campaign
    disk: Disk
    folder: Path
    chance: Random
    #: How things are on the disk: full, read-only, or good.
    state: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def on(self) -> Path:
        """The folder on the disk."""
        return self.disk.folder

    def run(self, *call: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whose files may have as many bytes as the disk lets them."""
        most = self.disk.most
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most or 0, most or 0))
        try:
            return subprocess.run(
                [*EVA, *call],
                env=self.campaign.environment(**self.environment, **more),
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=self.folder,
                timeout=PATIENCE_S,
                check=False,
                preexec_fn=None if most is None else limit,
            )
        except subprocess.TimeoutExpired:
            raise WrongError(f"{call} does not end") from None

    @property
    def full(self) -> bool:
        """Whether a disk is full, perhaps: there may be just enough room."""
        return self.state == "full"

    def check(self, done: subprocess.CompletedProcess[str], *, surely: bool = False) -> None:
        """Check that a command was refused, surely or perhaps; or done, where all is good."""
        if self.state == "good":
            check(done.returncode == 0, f"exit code {done.returncode}: {done.stderr}")
        elif done.returncode or surely or not self.full:
            check_refusal(done, *_REFUSED)

    @contextmanager
    def no_room(self, most: int) -> Iterator[None]:
        """Make the disk full but for up to `most` bytes, or read-only; or leave it good."""
        if self.state == "good":
            yield
            return
        if not self.full:
            with self.disk.read_only():
                yield
            return
        # Whole pages, as a disk has them, and no less often nothing.
        self.disk.fill(self.chance.choice((0, self.chance.randrange(most))))
        try:
            yield
        finally:
            self.disk.make_room()


def batch(trial: Trial) -> None:
    """Answer rows; what was written is whole, and goes on where there is room."""
    rows = trial.folder / "rows.jsonl"
    lines = (json.dumps({"id": n, "prompt": f"the {n} light"}) for n in range(_N_ROWS))
    rows.write_text("\n".join(lines), encoding="utf-8")
    out = trial.on / "out.jsonl"
    call = ("batch", str(rows), str(out), "--parallel", "4")
    if trial.chance.random() < 0.5:
        # An earlier run has begun it.
        (trial.folder / "few.jsonl").write_text("", encoding="utf-8")
        trial.disk.fill(6000)
        trial.run(*call)
        trial.disk.make_room()
    before = out.read_bytes() if out.exists() else b""
    with trial.no_room(12_000):
        done = trial.run(*call)
    trial.check(done)
    after = out.read_bytes() if out.exists() else b""
    check(after.startswith(before), "what was there is lost")
    for line in after.splitlines():
        json.loads(line)
    check(not after or after.endswith(b"\n"), f"a torn line stays: {after[-80:]!r}")
    done = trial.run(*call)
    check(done.returncode == 0, f"does not go on: {done.stderr}")
    found = [json.loads(line)["id"] for line in out.read_bytes().splitlines()]
    check(sorted(found) == [*range(_N_ROWS)], f"answered are {found}")
    check(out.read_bytes().startswith(after), "what was written is lost")


def traced(trial: Trial) -> None:
    """Write a trace, and its page."""
    path = trial.on / "trace.jsonl"
    with trial.no_room(20_000):
        done = trial.run("run", "--trace", str(path), "-n", "20", "the light")
    trial.check(done)
    if path.exists():
        with suppress(InputError):
            found = read_trace(path)
            check(found.steps or found.notes, "a trace of nothing is whole")
        check(path.read_bytes().endswith((b"\n", b"")), "a torn line stays")
    done = trial.run("run", "--trace", str(path), "-n", "5", "the light")
    check(done.returncode == 0 and not read_trace(path).notes, f"not written: {done.stderr}")
    with trial.no_room(4000):
        done = trial.run("trace", str(path))
    trial.check(done, surely=True)


def chat(trial: Trial) -> None:
    """Hold a conversation; it goes on, and says that it is not saved."""
    own = {"XDG_STATE_HOME": str(trial.on)}
    said = "\n".join(f"the {n}" for n in range(4))
    with trial.no_room(2000):
        done = trial.run("chat", given=said, **own)
    check(done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-400:]}")
    check(done.stdout.count("\n") >= 1, "nothing was answered")
    shelf = trial.on / "eva-local" / "chats"
    files = [*shelf.glob("*.jsonl")] if shelf.exists() else []
    check("Traceback" not in done.stderr, done.stderr[-800:])
    told = "cannot be saved" in done.stderr
    whole = False
    for path in files:
        with suppress(InputError):
            turns = log.read(path).conversation.turns
            whole = len(turns) == 4 and turns[-1].answer is not None
    check(told or whole, f"it is not saved, and nobody says so: {done.stderr[-300:]}")
    done = trial.run("chat", given=said, **own)
    check(done.returncode == 0 and "cannot be saved" not in done.stderr, done.stderr[-300:])


def pull(trial: Trial) -> None:
    """Fetch a model: refused before, or in the middle; the next pull gets it."""
    source = trial.folder / "far.gguf"
    write_tiny_gguf(source, n_layers=1, n_ctx=256)
    config = trial.folder / "models.toml"
    config.write_text(_CONFIG, encoding="utf-8")
    cache = (trial.folder if trial.state == "good" else trial.on) / "cache"
    own = {"EVA_LOCAL_CONFIG": str(config), "EVA_LOCAL_CACHE": str(cache)}
    own["HF_HOME"] = str(trial.folder / "hub")
    with hub(source.read_bytes()) as address:
        own["HF_ENDPOINT"] = address
        with trial.no_room(100_000):
            done = trial.run("pull", "far", **own)
        # Even an empty small disk has less room than is to stay free.
        trial.check(done, surely=True)
        # There must be room for more than the file, which a small disk has not.
        cache = trial.folder / "cache"
        own["EVA_LOCAL_CACHE"] = str(cache)
        trial.disk.most = trial.chance.randrange(1, 200_000) if trial.full else None
        done = trial.run("pull", "far", **own)
        if trial.full:
            trial.check(done, surely=True)
            check(not [*cache.glob("models/*.gguf")], "a file that is not whole has its name")
        trial.disk.most = None
        done = trial.run("pull", "far", **own)
        check(done.returncode == 0, f"does not go on: {done.stderr}")
    (there,) = cache.glob("models/*.gguf")
    check(there.read_bytes() == source.read_bytes(), "another file arrived")


def evaluation(trial: Trial) -> None:
    """Measure; results are kept as far as there is room, and gone on with."""
    rows = trial.folder / "rows.jsonl"
    lines = (json.dumps({"prompt": f"the {n}", "answers": [str(n)]}) for n in range(4))
    rows.write_text("\n".join(lines), encoding="utf-8")
    kept = trial.on / "kept.jsonl"
    figures, page = trial.on / "figures.json", trial.on / "page.html"
    call = ["eval", str(rows), "--results", str(kept), "--max-tokens", "4", "--json", str(figures)]
    call += ["--html", str(page)]
    with trial.no_room(6000):
        done = trial.run(*call)
    trial.check(done)
    for line in kept.read_bytes().splitlines() if kept.exists() else ():
        json.loads(line)
    done = trial.run(*call)
    check(done.returncode == 0, f"does not go on: {done.stderr}")
    json.loads(figures.read_bytes())


def mapping(trial: Trial) -> None:
    """Build a mapping, which is kept in the cache."""
    own = {"EVA_LOCAL_CACHE": str(trial.on / "cache")}
    call = ("run", "-n", "3", "the")
    with trial.no_room(3000):
        done = trial.run(*call, **own)
    trial.check(done)
    done = trial.run(*call, **own)
    check(done.returncode == 0, f"does not go on: {done.stderr}")
    left = [path.name for path in trial.on.rglob("*.part")]
    check(not left, f"left: {left}")


def added(trial: Trial) -> None:
    """Enter a model into the user's own file, which stays as it was where that fails."""
    file = trial.on / "models.toml"
    own = {"EVA_LOCAL_CONFIG": str(file)}
    before = '# mine\nschema = 1\n[models.mine]\npath = "/nowhere.gguf"\n' + "# so\n" * 800
    file.write_text(before, encoding="utf-8")
    call = ("add", str(trial.campaign.models / "one.gguf"), "-e", "new")
    with trial.no_room(2000):
        done = trial.run(*call, **own)
    trial.check(done)
    if done.returncode:
        check(file.read_text(encoding="utf-8") == before, "the file has changed")
        done = trial.run(*call, **own)
    check(done.returncode == 0, f"not added: {done.stderr}")
    text = file.read_text(encoding="utf-8")
    check(text.startswith(before), "what was there is lost")


_CASES: dict[str, Callable[[Trial], None]] = {
    "batch": batch,
    "trace and page": traced,
    "chat": chat,
    "pull": pull,
    "eval": evaluation,
    "mapping": mapping,
    "add": added,
}


def disks(campaign: Campaign, only: str | None = None) -> None:
    """Let each command, or one, meet a full disk and a read-only folder."""
    n = _N if campaign.n is None else campaign.n
    for what in ("full disk", "read-only folder"):
        for name, case in _CASES.items():
            if only not in (None, name):
                continue
            began, found, ways = time.monotonic(), 0, set[str]()
            for number in range(campaign.first, campaign.first + n):
                key = ("disks", what, name, number)
                folder = campaign.scratch(*(each.replace(" ", "-") for each in map(str, key)))
                disk = Disk(folder / "disk")
                ways.add("tmpfs" if disk.mounted else "a limit, or permissions")
                trial = Trial(campaign, disk, folder, campaign.chance(*key), what.split()[0])
                try:
                    case(trial)
                except WrongError as error:
                    found += 1
                    again = f"--part disks --seed {campaign.seed} --first {number} --n 1"
                    said = Finding("disks", f"{what}: {name}", again, str(error), str(folder))
                    campaign.found(said)
                finally:
                    disk.close()
                campaign.told("disks", f"{what}: {name}", number - campaign.first + 1, n)
            outcome = f"refused, then done; {', '.join(sorted(ways))}"
            seconds = time.monotonic() - began
            campaign.rows.append(Row("disks", f"{what}: {name}", n, outcome, found, seconds))


def clocks(campaign: Campaign, only: str | None = None) -> None:
    """Run commands, or one, while the clock jumps by hours and decades."""
    n = _N if campaign.n is None else campaign.n
    shim = campaign.scratch("clock") / "clock.so"
    call = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(shim),
        str(ROOT / "tools/fire/clock.c"),
        "-ldl",
    ]
    began, found = time.monotonic(), 0
    try:
        subprocess.run(call, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        campaign.rows.append(Row("clock", "all", 0, f"not run: no C compiler ({error})", 0, 0))
        return
    for name in (only,) if only else ("batch", "trace and page", "chat", "pull", "eval"):
        began, found = time.monotonic(), 0
        for number in range(campaign.first, campaign.first + n):
            folder = campaign.scratch("clock", name.replace(" ", "-"), number)
            own = {"LD_PRELOAD": str(shim), "FIRE_CLOCK": str(campaign.seed * 1000 + number)}
            chance = campaign.chance("clock", name, number)
            trial = Trial(campaign, Disk(folder / "disk"), folder, chance, "good", own)
            try:
                _told_time(trial)
                _CASES[name](trial)
            except WrongError as error:
                found += 1
                again = f"--part clocks --seed {campaign.seed} --first {number} --n 1"
                campaign.found(Finding("clock", name, again, str(error), str(folder)))
            finally:
                trial.disk.close()
            campaign.told("clock", name, number - campaign.first + 1, n)
        seconds = time.monotonic() - began
        campaign.rows.append(Row("clock", name, n, "done as with a steady clock", found, seconds))


def _told_time(trial: Trial) -> None:
    """Check that the clock of a command does jump."""
    code = "import time; print(len({time.time() // 1000 for _ in range(200)}))"
    environment = trial.campaign.environment(**trial.environment)
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    check(int(done.stdout) > 3, "the clock does not jump")


def memory(campaign: Campaign) -> None:
    """Run commands in processes that may take ever more memory: refused in one line, or done."""
    n = 8 * _N if campaign.n is None else campaign.n
    began, found, ended = time.monotonic(), 0, {0: 0, 2: 0}
    rows = campaign.scratch("memory") / "rows.jsonl"
    rows.write_text('{"prompt": "the light"}\n' * 20, encoding="utf-8")
    for number in range(campaign.first, campaign.first + n):
        chance = campaign.chance("memory", number)
        out = rows.with_name(f"{number}.jsonl")
        calls = (
            ("run", "-n", "5", "the light"),
            ("run", "-e", "bytes", "-n", "5", "the light"),
            ("batch", str(rows), str(out)),
        )
        call = chance.choice(calls)
        most = chance.uniform(0, 120)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tools.fire.starved", f"{most:.1f}", *call],
                env=campaign.environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE_S,
                check=False,
                cwd=ROOT,
            )
            ended[done.returncode] = ended.get(done.returncode, 0) + 1
            _check_starved(done, out)
        except (WrongError, subprocess.TimeoutExpired) as error:
            found += 1
            again = f"--part memory --seed {campaign.seed} --first {number} --n 1"
            problem = f"{most:.1f} MiB, {' '.join(call[:3])}: {error}"
            campaign.found(Finding("memory", call[0], again, problem))
        campaign.told("memory", "little memory", number - campaign.first + 1, n)
    codes = ", ".join(f"{count} ended with {code}" for code, count in sorted(ended.items()))
    seconds = time.monotonic() - began
    campaign.rows.append(Row("memory", "0 to 120 MiB to go", n, codes, found, seconds))


def _check_starved(done: subprocess.CompletedProcess[str], out: Path) -> None:
    """Check that a command, or each row of a batch that failed, says that memory has ended.

    What a step raises is logged before it is told.
    """
    if done.returncode == 1 and out.exists():
        rows = [json.loads(line) for line in out.read_bytes().splitlines()]
        told = [row["error"]["message"] for row in rows if "error" in row]
        check(told and all("enough memory" in each for each in told), f"rows say {told[:2]}")
    elif done.returncode:
        last = done.stderr.rstrip().rpartition("\n")[2]
        check(done.returncode == 2, f"exit code {done.returncode}: {done.stderr[-600:]}")
        check(last.startswith("eva-local: "), f"it says {done.stderr[-600:]}")
