"""The trace file: JSON Lines, a header, one line a step, and an end.

Every line is written at once, so an interrupted run leaves a file that can be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from msgspec import Meta, Struct

from eva_local.errors import InputError, refusing
from eva_local.jsonl import JsonlFile
from eva_local.reading import Number, shown
from eva_local.trace.checked import Checked, checked_lines
from eva_local.types import (
    Ballot,
    Candidate,
    FinishReason,
    Message,
    Step,
    Trace,
    Usage,
)

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


class _Entry(Struct):
    hex: Hexadecimal
    probability: Probability


class _VoteEntry(Struct):
    member: str
    top: list[_Entry]
    chosen: Probability
    stayed: bool
    reason: str
    weight: Probability
    seconds: Number


class _StepLine(_Entry):
    text: str
    top: list[_Entry]
    ballots: list[_VoteEntry]


class _EndLine(Struct):
    finish_reason: FinishReason
    usage: Usage | None


class TraceWriter:
    """A trace file that is being written; a context manager."""

    def __init__(
        self,
        path: Path,
        *,
        ensemble: str,
        members: Sequence[str],
        pivot: str,
        prompt: str | Sequence[Message],
        settings: Mapping[str, object],
    ) -> None:
        """Begin the file anew with its header; raise InputError where that cannot be done."""
        self._file = JsonlFile(
            path,
            f"the trace {path} cannot be written",
            busy=f"the trace {path} is being written by another process",
        )
        header = {
            "schema": SCHEMA,
            "kind": "trace",
            "ensemble": ensemble,
            "members": list(members),
            "pivot": pivot,
            "prompt": prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt],
            "settings": dict(settings),
        }
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._file.restart()
            self._file.append(header)
            stack.pop_all()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def write(self, step: Step) -> None:
        """Append a step, and the end of the file after the last one."""
        lines = [_step_line(step)]
        if step.finish_reason is not None:
            usage = None if step.usage is None else asdict(step.usage)
            lines.append({"kind": "end", "finish_reason": step.finish_reason, "usage": usage})
        self._file.append(*lines)

    def close(self) -> None:
        """Close the file; do nothing if it is closed."""
        self._file.close()


def _step_line(step: Step) -> dict[str, object]:
    trace = step.trace
    return {
        "kind": "step",
        **_piece(step.piece),
        "text": step.text,
        "probability": _number(step.probability),
        "carrier": trace.carrier if trace and trace.ballots else None,
        "top": [_candidate_line(candidate) for candidate in trace.top] if trace else [],
        "ballots": [_ballot_line(ballot) for ballot in trace.ballots] if trace else [],
    }


def _ballot_line(ballot: Ballot) -> dict[str, object]:
    return {
        "member": ballot.member,
        "top": [_candidate_line(candidate) for candidate in ballot.top],
        "chosen": _number(ballot.chosen),
        "stayed": bool(ballot.stayed),
        "reason": ballot.reason,
        "weight": _number(ballot.weight),
        "seconds": _number(ballot.seconds),
    }


def _candidate_line(candidate: Candidate) -> dict[str, object]:
    return {**_piece(candidate.piece), "probability": _number(candidate.probability)}


def _piece(piece: bytes) -> dict[str, object]:
    """Return a piece for people and, exact, for programs."""
    return {"piece": piece.decode("utf-8", "backslashreplace"), "hex": piece.hex()}


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def read_trace(path: Path) -> TraceFile:
    """Read a trace file.

    Of a file whose writer was interrupted, what is there is returned, with notes; anything
    else that is not as `TraceWriter` writes it raises InputError with the line.
    """
    with refusing(f"the trace {path} cannot be read"):
        data = path.read_bytes()
    parsed, torn = checked_lines(path, data)
    notes = ["the last line is incomplete and was left out"] if torn else []
    if not parsed:
        raise InputError(f"{path} holds no trace; eva-local run --trace {path} writes one")
    first, *others = parsed
    first.refuse_other_header("trace", SCHEMA)
    header = first.read(TraceFile)
    _refuse_strangers(first, [header.pivot], header.members)
    steps: list[Step] = []
    end: _EndLine | None = None
    for line in others:
        if end is not None:
            raise line.problem("stands after the end of the trace")
        if line.kind("step", "end") == "step":
            step = _step(line.read(_StepLine))
            ballots = step.trace.ballots if step.trace else ()
            _refuse_strangers(line, [ballot.member for ballot in ballots], header.members)
            steps.append(step)
        else:
            end = line.read(_EndLine)
            if end.usage is not None and end.usage.members != header.members:
                raise line.problem("names other members in its usage than the header")
    if end is None:
        notes.append("the run was interrupted: the end of the answer is missing")
    return replace(
        header,
        steps=tuple(steps),
        finish_reason=None if end is None else end.finish_reason,
        usage=None if end is None else end.usage,
        notes=tuple(notes),
    )


def _candidates(entries: Sequence[_Entry]) -> tuple[Candidate, ...]:
    return tuple(Candidate(bytes.fromhex(each.hex), each.probability) for each in entries)


def _step(line: _StepLine) -> Step:
    ballots = tuple(
        Ballot(
            each.member,
            _candidates(each.top),
            each.chosen,
            each.stayed,
            each.reason,
            each.weight,
            each.seconds,
        )
        for each in line.ballots
    )
    return Step(
        piece=bytes.fromhex(line.hex),
        text=line.text,
        probability=line.probability,
        stayed=tuple(ballot.stayed for ballot in ballots),
        trace=Trace(_candidates(line.top), ballots) if ballots else None,
    )


def _refuse_strangers(line: Checked, names: Iterable[str], members: tuple[str, ...]) -> None:
    for name in names:
        if name not in members:
            raise line.problem(f"names {shown(name)}, which is no member of the header")
