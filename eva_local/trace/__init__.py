"""Why each symbol of an answer was chosen: a file that is written step by step, and its page.

The file is JSON Lines: a header, one line a step, written at once, and an end. The page is one
HTML file that needs nothing else: no network, no other file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs, to_builtins

from eva_local.errors import InputError, refusing
from eva_local.jsonl import Checked, JsonlFile, checked_lines, json_line
from eva_local.pages.frame import shipped, template
from eva_local.reading import Amount, Number, shown
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
    disagreement: Amount | None = None


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
        end = {"kind": "end", "finish_reason": step.finish_reason, "usage": to_builtins(step.usage)}
        self.append({"kind": "step", **_line(step)}, *([end] if step.finish_reason else []))


def _line(step: Step) -> dict[str, Any]:
    trace = step.trace or Trace((), ())
    keys = ("piece", "text", "reasoning", "probability", "disagreement", "dissenters")
    said = {key: getattr(step, key) for key in keys}
    carrier = trace.carrier if trace.ballots else None
    line: dict[str, Any] = _filed({**said, "carrier": carrier, **asdict(trace)})
    return line


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
    try:
        json_line(header.header())
    except (ValueError, RecursionError) as error:
        raise first.problem(f"holds what no trace says: {error}") from error
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
    others = tuple(one.member for one in ballots if one.top and one.top[0].piece != piece)
    told = Step(piece, line.text, line.probability, stayed, trace=trace, dissenters=others)
    return replace(told, reasoning=line.reasoning, disagreement=line.disagreement)


def _refuse_strangers(line: Checked, names: Iterable[str], members: tuple[str, ...]) -> None:
    for name in names:
        if name not in members:
            raise line.problem(f"names {shown(name)}, which is no member of the header")


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """A member's part in an answer.

    `carried` counts the tokens to which it gave the largest part of their probability, `filtered`
    those where its vote was dropped. `weight` and `decode_ms` are means over the steps in which
    it was asked; the first, which reads the prompt, is left out of `decode_ms` if there are more.
    """

    name: str
    carried: int
    filtered: int
    weight: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a trace; `probability` is the mean of the chosen symbols', fused.

    `disputed` counts the steps in which a vote was filtered or a member would have chosen
    another symbol. `tokens` leaves END out, as `Usage.steps` does.
    """

    tokens: int
    disputed: int
    probability: float
    members: tuple[MemberSummary, ...]


def trace_page(trace: TraceFile) -> str:
    """Return the page of a trace, as HTML."""
    style, script = sources("trace")
    # An HTML parser takes ASCII without `<` for nothing but text.
    data = json.dumps(page_data(trace), separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c")
    return template("trace/page.html").render(style=style, script=script, data=data)


def sources(package: str, *more: str) -> tuple[str, str]:
    """Return style and script of a page with tokens: what all have, `more` scripts, its own."""
    styles = ("pages/palette.css", "trace/shared.css", f"{package}/page.css")
    scripts = ("trace/shared.js", *more, f"{package}/page.js")
    return "".join(map(shipped, styles)), "\n".join(map(shipped, scripts))


def page_data(trace: TraceFile) -> dict[str, object]:
    """Return what the page shows, as the script reads it: steps as they stand in the file."""
    return {
        **trace.header(),
        "finish": trace.finish_reason,
        "usage": to_builtins(trace.usage),
        "notes": trace.notes,
        "summary": asdict(summarize(trace.members, trace.steps)),
        "steps": list(map(_line, trace.steps)),
    }


def verdict(ballot: Ballot) -> Literal["stayed", "filtered", "absent"]:
    """Return what became of a member's vote; absent is who was not asked."""
    if ballot.stayed:
        return "stayed"
    # A member that was not asked (a gate) has no candidates and cost nothing.
    return "filtered" if ballot.top or ballot.seconds > 0 else "absent"


def disputed(step: Step) -> bool:
    """Return whether a vote was filtered or a member would have chosen another symbol."""
    ballots = step.trace.ballots if step.trace else ()
    return bool(step.dissenters) or any(verdict(ballot) == "filtered" for ballot in ballots)


def summarize(members: Sequence[str], steps: Sequence[Step]) -> Summary:
    """Return the numbers of an answer."""
    traces = [step.trace for step in steps if step.trace is not None]
    parts = []
    for name in members:
        votes = [one for trace in traces for one in trace.ballots if one.member == name]
        asked = [vote for vote in votes if verdict(vote) != "absent"]
        seconds = [vote.seconds for vote in asked]
        carried = sum(trace.carrier == name for trace in traces)
        filtered = sum(not vote.stayed for vote in asked)
        weight = fmean([vote.weight for vote in asked] or [0.0])
        decoding = fmean(seconds[1:] or seconds or [0.0])
        parts.append(MemberSummary(name, carried, filtered, weight, 1000 * decoding))
    return Summary(
        tokens=sum(bool(step.piece) for step in steps),
        disputed=sum(map(disputed, steps)),
        probability=fmean([step.probability for step in steps] or [0.0]),
        members=tuple(parts),
    )
