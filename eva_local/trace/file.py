"""The trace file: JSON Lines, a header, one line a step, written at once, and an end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, structs, to_builtins

from eva_local.errors import InputError, refusing
from eva_local.jsonl import Checked, JsonlFile, checked_lines
from eva_local.reading import Number, shown
from eva_local.types import Ballot, Candidate, FinishReason, Message, Step, Trace, Usage

SCHEMA = 1
# Enough for every number in a trace, and half the file.
_DIGITS = 6
# Give or take rounding.
Probability = Annotated[float, Meta(ge=-1e-6, le=1 + 1e-6, description="from 0 to 1")]
Hexadecimal = Annotated[
    str, Meta(pattern=r"^([0-9a-fA-F]{2})*\Z", description="bytes in hexadecimal")
]


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace that was read; `finish_reason` and `usage` are None where it was interrupted.

    `notes` say in plain words what is missing. The `stayed` of a step are its ballots'.
    """

    ensemble: str
    members: tuple[str, ...]
    pivot: str
    prompt: str | tuple[Message, ...]
    settings: Mapping[str, object]
    steps: tuple[Step, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    notes: tuple[str, ...] = ()

    def header(self) -> dict[str, object]:
        """Return what is known before the first step, as the file and the page have it."""
        keys = ("ensemble", "members", "pivot", "prompt", "settings")
        return {key: to_builtins(getattr(self, key), enc_hook=str) for key in keys}


class _CandidateLine(Struct):
    hex: Hexadecimal
    probability: Probability


class _BallotLine(Struct):
    member: str
    top: list[_CandidateLine]
    chosen: Probability
    stayed: bool
    reason: str
    weight: Number
    seconds: Number


class _StepLine(Struct, tag_field="kind", tag="step"):
    hex: Hexadecimal
    text: str
    probability: Probability
    top: list[_CandidateLine]
    ballots: list[_BallotLine]
    reasoning: str | None = None


class _EndLine(Struct, tag_field="kind", tag="end"):
    finish_reason: FinishReason
    usage: Usage | None


class TraceWriter(JsonlFile):
    """A trace file that is written anew, with the header of `trace`; InputError if it cannot be."""

    def __init__(self, path: Path, trace: TraceFile) -> None:
        busy = f"the trace {path} is being written by another process"
        super().__init__(path, f"the trace {path} cannot be written", busy=busy)
        with self.closed_on_failure():
            self.restart()
            self.append({"schema": SCHEMA, "kind": "trace", **trace.header()})

    def write(self, step: Step) -> None:
        """Append a step, and the end of the file after the last one."""
        trace = step.trace or Trace((), ())
        said = {key: getattr(step, key) for key in ("piece", "text", "reasoning", "probability")}
        line = {**said, "carrier": trace.carrier if trace.ballots else None, **asdict(trace)}
        end = {"kind": "end", "finish_reason": step.finish_reason, "usage": to_builtins(step.usage)}
        self.append({"kind": "step", **_filed(line)}, *([end] if step.finish_reason else []))


def _filed(value: Any) -> Any:
    """Return plain data with numbers rounded, and pieces as text for people and in hexadecimal."""
    match value:
        case {"piece": bytes(piece), **others}:
            text = piece.decode("utf-8", "backslashreplace")
            return _filed({"piece": text, "hex": piece.hex(), **others})
        case dict():
            return {key: _filed(each) for key, each in value.items()}
        case list() | tuple():
            return list(map(_filed, value))
        case float():
            return float(f"{value:.{_DIGITS}g}")
    return value


def read_trace(path: Path) -> TraceFile:
    """Read a trace file.

    Of a file whose writer was interrupted, what is there is returned, with notes; anything
    else that is not as `TraceWriter` writes it raises InputError with the line.
    """
    with refusing(f"the trace {path} cannot be read"):
        parsed, torn = checked_lines(path, path.read_bytes())
    notes = ["the last line is incomplete and was left out"] if torn else []
    if not parsed:
        raise InputError(f"{path} holds no trace; eva-local run --trace {path} writes one")
    first, *others = parsed
    first.kind("trace", schema=SCHEMA)
    header = first.read(TraceFile)
    _refuse_strangers(first, [header.pivot], header.members)
    steps: list[Step] = []
    end: _EndLine | None = None
    for line in others:
        if end is not None:
            raise line.problem("stands after the end of the trace")
        if line.kind("step", "end") == "step":
            said = line.read(_StepLine)
            _refuse_strangers(line, [ballot.member for ballot in said.ballots], header.members)
            steps.append(_step(said))
        else:
            end = line.read(_EndLine)
            if end.usage is not None and end.usage.members != header.members:
                raise line.problem("names other members in its usage than the header")
    if end is None:
        notes.append("the run was interrupted: the end of the answer is missing")
    ending = {} if end is None else structs.asdict(end)
    return replace(header, steps=tuple(steps), notes=tuple(notes), **ending)


def _candidates(entries: Sequence[_CandidateLine]) -> tuple[Candidate, ...]:
    return tuple(Candidate(bytes.fromhex(each.hex), each.probability) for each in entries)


def _step(line: _StepLine) -> Step:
    ballots = tuple(
        Ballot(**structs.asdict(each) | {"top": _candidates(each.top)}) for each in line.ballots
    )
    trace = Trace(_candidates(line.top), ballots) if ballots else None
    piece, stayed = bytes.fromhex(line.hex), tuple(ballot.stayed for ballot in ballots)
    return Step(piece, line.text, line.probability, stayed, trace=trace, reasoning=line.reasoning)


def _refuse_strangers(line: Checked, names: Iterable[str], members: tuple[str, ...]) -> None:
    for name in names:
        if name not in members:
            raise line.problem(f"names {shown(name)}, which is no member of the header")
