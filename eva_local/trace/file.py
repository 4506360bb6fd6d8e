"""The trace file: JSON Lines, a header, one line a step, and an end.

Every line is written at once, so an interrupted run leaves a file that can be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from eva_local.errors import InputError
from eva_local.jsonl import JsonlFile
from eva_local.trace.checked import Checked, checked_lines
from eva_local.types import (
    Ballot,
    Candidate,
    FinishReason,
    Message,
    Role,
    Step,
    Trace,
    Usage,
)

SCHEMA = 1
# Enough for every number in a trace, and half the file.
_DIGITS = 6
_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled")
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


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
    steps: tuple[Step, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    notes: tuple[str, ...] = ()


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
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"the trace {path} cannot be read: {reason}") from error
    parsed, torn = checked_lines(path, data)
    notes = ["the last line is incomplete and was left out"] if torn else []
    if not parsed:
        raise InputError(f"{path} holds no trace; eva-local run --trace {path} writes one")
    header = _header(parsed[0])
    steps: list[Step] = []
    finish: FinishReason | None = None
    usage: Usage | None = None
    for line in parsed[1:]:
        if finish is not None:
            raise line.problem("stands after the end of the trace")
        if line.word("kind", ("step", "end")) == "step":
            steps.append(_step(line, header.members))
        else:
            finish, usage = _end(line, header.members)
    if finish is None:
        notes.append("the run was interrupted: the end of the answer is missing")
    return TraceFile(
        ensemble=header.ensemble,
        members=header.members,
        pivot=header.pivot,
        prompt=header.prompt,
        settings=header.settings,
        steps=tuple(steps),
        finish_reason=finish,
        usage=usage,
        notes=tuple(notes),
    )


def _header(line: Checked) -> TraceFile:
    line.word("kind", ("trace",))
    schema = line.whole("schema")
    if schema != SCHEMA:
        raise line.problem(f"has schema {schema}, and this eva-local reads schema {SCHEMA}")
    members = line.texts("members")
    return TraceFile(
        ensemble=line.text("ensemble"),
        members=members,
        pivot=line.word("pivot", members),
        prompt=line.text("prompt") if line.has("prompt", str) else _messages(line),
        settings=line.table("settings"),
        steps=(),
    )


def _messages(line: Checked) -> tuple[Message, ...]:
    return tuple(
        Message(message.word("role", _ROLES), message.text("content"))
        for message in line.parts("prompt")
    )


def _step(line: Checked, members: tuple[str, ...]) -> Step:
    ballots = tuple(_ballot(part, members) for part in line.parts("ballots"))
    top = _candidates(line)
    return Step(
        piece=line.hexadecimal("hex"),
        text=line.text("text"),
        probability=line.share("probability"),
        stayed=tuple(ballot.stayed for ballot in ballots),
        trace=Trace(top, ballots) if ballots else None,
    )


def _ballot(part: Checked, members: tuple[str, ...]) -> Ballot:
    return Ballot(
        member=part.word("member", members),
        top=_candidates(part),
        chosen=part.share("chosen"),
        stayed=part.flag("stayed"),
        reason=part.text("reason"),
        weight=part.share("weight"),
        seconds=part.number("seconds"),
    )


def _candidates(part: Checked) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(entry.hexadecimal("hex"), entry.share("probability"))
        for entry in part.parts("top")
    )


def _end(line: Checked, members: tuple[str, ...]) -> tuple[FinishReason, Usage | None]:
    finish = line.word("finish_reason", _FINISH_REASONS)
    if line.has("usage", type(None)):
        return finish, None
    usage = line.part("usage")
    if usage.texts("members") != members:
        raise usage.problem("names other members than the header")
    return finish, Usage(
        members=members,
        prompt_tokens=usage.wholes("prompt_tokens"),
        cached_tokens=usage.wholes("cached_tokens"),
        filtered=usage.wholes("filtered"),
        decode_seconds=usage.numbers("decode_seconds"),
        prompt_seconds=usage.numbers("prompt_seconds"),
        steps=usage.whole("steps"),
        seconds=usage.number("seconds"),
        first_seconds=usage.number("first_seconds"),
        steps_alone=usage.whole("steps_alone"),
    )
