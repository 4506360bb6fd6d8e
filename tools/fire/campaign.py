"""What all parts have in common: a seed, a folder, tiny models, findings, the table in the end."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eva_local.engine.detokenizer import harmless_line
from eva_local.llama.backend import library
from tools.tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).resolve().parents[2]
EVA = (sys.executable, "-m", "eva_local")
# No command of this campaign takes as long, however busy the machine is.
PATIENCE_S = 600.0
_EVERY_S = 10.0

MODELS = """
schema = 1
[defaults]
n_ctx = 640
max_tokens = 12
batch_invariant = true
[models.one]
path = "{folder}/one.gguf"
[models.two]
path = "{folder}/two.gguf"
[ensembles.pair]
members = ["one", "two"]
[ensembles.bytes]
members = ["one", "two"]
space = "bytes"
"""
# What a base model without a template of its own cannot do is no matter of this campaign.
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


class WrongError(Exception):
    """What should not be: the text says what."""


@dataclass(frozen=True)
class Row:
    """A line of the table: of `n` trials of a part, what became of them, and in how long."""

    part: str
    what: str
    n: int
    outcome: str
    findings: int
    seconds: float


@dataclass(frozen=True)
class Finding:
    """What was found, how to have it again, and the file of the case."""

    part: str
    what: str
    case: str
    problem: str
    saved: str = ""


@dataclass
class Campaign:
    """A seeded campaign whose work and findings lie in a folder; `n` trials where it is given."""

    folder: Path
    seed: int = 0
    n: int | None = None
    workers: int = 2
    seconds: float = 600.0
    first: int = 0
    ensemble: str = "pair"
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    _told: float = 0.0

    @property
    def models(self) -> Path:
        """The folder of the tiny models and of models.toml, made when it is first needed."""
        folder = self.folder / "models"
        if not (folder / "models.toml").exists():
            make_models(folder)
        return folder

    def chance(self, *case: object) -> random.Random:
        """Return the random numbers of a case, the same in every run with this seed."""
        return random.Random("/".join(map(str, (self.seed, *case))))

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a command: folders of its own, one thread, no network."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("EVA_LOCAL_")}
        home = self.folder / "home"
        own = {
            "EVA_LOCAL_CONFIG": str(self.models / "models.toml"),
            "EVA_LOCAL_CACHE": str(home / "cache"),
            "EVA_LOCAL_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        own |= {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CONFIG", "STATE")}
        return {**kept, **own, **more}

    def scratch(self, *name: object) -> Path:
        """Return a folder for a case, made now."""
        folder = self.folder / "work" / "-".join(map(str, name))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, name: str, data: bytes) -> str:
        """Keep the input of a finding, and return where."""
        path = self.folder / "findings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def found(self, finding: Finding) -> None:
        """Note a finding, and tell of it at once."""
        self.findings.append(finding)
        problem = finding.problem[-2000:]
        print(f"FOUND {finding.part}, {finding.what}, {finding.case}: {problem}", file=sys.stderr)

    def told(self, part: str, what: str, done: int, n: int) -> None:
        """Tell how far a part is, now and then."""
        if time.monotonic() - self._told > _EVERY_S:
            self._told = time.monotonic()
            print(f"{part}: {what}: {done} of {n}", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Return all rows as a table of Markdown."""
        head = ("part", "what", "trials", "outcome", "findings", "seconds")
        lines = [head, ("---",) * len(head)]
        for row in self.rows:
            numbers = (f"{row.n:,}", row.outcome, str(row.findings), f"{row.seconds:.0f}")
            lines.append((row.part, row.what, *numbers))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def as_json(self) -> str:
        """Return the rows and findings."""
        said = {"seed": self.seed, "rows": list(map(asdict, self.rows))}
        return json.dumps({**said, "findings": list(map(asdict, self.findings))}, indent=1) + "\n"


def make_models(folder: Path) -> None:
    """Write two models of one layer with vocabularies of their own, and models.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    # What llama.cpp says is kept from here on.
    library()
    shape = {"n_layers": 1, "n_ctx": 640, "chat_template": TEMPLATE}
    words = (" the", " a", "ed", "ation")
    write_tiny_gguf(folder / "one.gguf", seed=1, **shape)  # type: ignore[arg-type]  # each its own
    write_tiny_gguf(folder / "two.gguf", seed=2, words=words, **shape)  # type: ignore[arg-type]
    (folder / "models.toml").write_text(MODELS.format(folder=folder), encoding="utf-8")


def run(
    call: Sequence[str], environment: Mapping[str, str], *, given: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; WrongError where it does not come to one."""
    try:
        return subprocess.run(
            [*call],
            env=dict(environment),
            input=given,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WrongError(f"did not end in {PATIENCE_S:.0f} s: {' '.join(call)}") from None


def check(truth: object, problem: str) -> None:
    """Raise WrongError where something is not so."""
    if not truth:
        raise WrongError(problem)


def check_refusal(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """Check that a command ended with one clear line, which holds one of the words, and a code."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("eva-local: ")]
    told = f"exit code {done.returncode}, said {done.stderr[-600:]!r}"
    check(done.returncode == code, told)
    check("Traceback" not in done.stderr and lines, told)
    check(not words or any(word in done.stderr for word in words), told)


def check_message(text: str) -> None:
    """Check that what is said of an error is one line that says something."""
    check(text.strip(), "an error says nothing")
    check("Traceback" not in text and len(text) < 20_000, f"an error says {text[:300]!r}")
    check("\n" not in harmless_line(text), f"an error has several lines: {text[:300]!r}")


def counted(outcomes: Iterable[tuple[str, int]]) -> str:
    """Word what became of trials."""
    return ", ".join(f"{count:,} {name}" for name, count in outcomes if count)
