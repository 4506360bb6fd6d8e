"""What each contestant made of each row, kept in a file of JSON lines so that runs go on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from eva_local.errors import refusing
from eva_local.jsonl import JsonlFile, checked_lines
from eva_local.reading import Number, Whole

# Results that were made in another way have another key: by other software, or by other rules
# within a version, which the number tells.
_MADE_BY = [2, version("eva-local"), version("llama-cpp-python")]


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant made of one row.

    `text` is a generated answer. `log_likelihoods`, in nats, and `n_bytes` are of each choice,
    or of the one text that was scored. `filtered` counts the votes of each member that were
    dropped in `steps` steps.
    """

    steps: Whole
    filtered: tuple[Whole, ...]
    seconds: Number
    text: str = ""
    log_likelihoods: tuple[Number, ...] = ()
    n_bytes: tuple[Whole, ...] = ()


class _Key(Struct):
    key: str


class Results(JsonlFile):
    """A file of results, each under the key of what it depends on; `fresh` does all again.

    Every result is written at once, by as many processes as there are; what is there stays.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        refusal = f"the results {path} cannot be kept"
        with refusing(refusal):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines, _ = checked_lines(path, path.read_bytes() if path.exists() else b"")
        #: Of several results of one key the last counts.
        self.known = {} if fresh else {line.read(_Key).key: line.read(Result) for line in lines}
        super().__init__(path, refusal)

    def add(self, key: str, result: Result, about: Mapping[str, str]) -> None:
        """Keep a result; `about` says in words what it is of."""
        self.known[key] = result
        self.append({"key": key, **about, **asdict(result)})


def key_of(*parts: object) -> str:
    """Return a short name of everything that a result depends on."""
    text = json.dumps([*_MADE_BY, *parts], sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def votes_filtered(results: Sequence[Result]) -> float | None:
    """Return the share of votes that were dropped; None where a member was alone."""
    members = len(results[0].filtered)
    votes = members * sum(result.steps for result in results)
    if members < 2 or not votes:
        return None
    return sum(sum(result.filtered) for result in results) / votes
