"""A trace as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from eva_local.pages.frame import filled, palette, shipped, source_hash
from eva_local.trace.file import TraceFile
from eva_local.types import Ballot, Candidate, Step


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """A member's part in an answer.

    `carried` counts the tokens to which it gave the largest part of their probability,
    `filtered` those where its vote was dropped, `weight` and `decode_ms` are means over the
    steps in which it was asked; the first step, which reads the prompt, is left out of
    `decode_ms` where there are others.
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
    style, script = sources("eva_local.trace")
    parts = {
        "STYLE_HASH": source_hash(style),
        "SCRIPT_HASH": source_hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _embedded(page_data(trace)),
    }
    return filled(shipped("eva_local.trace", "page.html"), parts)


def sources(package: str) -> tuple[str, str]:
    """Return style and script of a page with tokens: what all have, and page.css and page.js.

    What all have is the palette, tokens, what a card says of one, and the object `eva`.
    """
    style = palette() + shipped("eva_local.trace", "shared.css")
    script = shipped("eva_local.trace", "shared.js")
    return style + shipped(package, "page.css"), script + shipped(package, "page.js")


def summarize(members: Sequence[str], steps: Sequence[Step]) -> Summary:
    """Return the numbers of an answer."""
    return Summary(
        tokens=sum(bool(step.piece) for step in steps),
        disputed=sum(map(disputed, steps)),
        probability=_mean([step.probability for step in steps]),
        members=tuple(_member(name, steps) for name in members),
    )


def page_data(trace: TraceFile) -> dict[str, object]:
    """Return what the page shows, as the script reads it."""
    return {
        **trace.header(),
        "finish": trace.finish_reason,
        "usage": None if trace.usage is None else asdict(trace.usage),
        "notes": trace.notes,
        "text": "".join(step.text for step in trace.steps),
        "summary": asdict(summarize(trace.members, trace.steps)),
        "steps": [
            _step_data(step, shown, whole, trace.members)
            for step, (shown, whole) in zip(trace.steps, _readable(trace.steps), strict=True)
        ],
    }


def _step_data(step: Step, shown: str, whole: bool, members: Sequence[str]) -> dict[str, object]:
    trace = step.trace
    return {
        "shown": shown,
        "whole": whole,
        "hex": step.piece.hex(" "),
        "probability": step.probability,
        "carrier": members.index(trace.carrier) if trace else -1,
        "disputed": disputed(step),
        "top": _candidates_data(trace.top if trace else (), step.piece),
        "ballots": [
            {
                "member": members.index(ballot.member),
                "top": _candidates_data(ballot.top, step.piece),
                "chosen": ballot.chosen,
                "verdict": verdict(ballot),
                "reason": ballot.reason,
                "weight": ballot.weight,
                "ms": 1000 * ballot.seconds,
            }
            for ballot in (trace.ballots if trace else ())
        ],
    }


def _candidates_data(candidates: Sequence[Candidate], chosen: bytes) -> list[list[object]]:
    """Return each candidate's text, probability, and whether it is the chosen one."""
    return [
        [one.piece.decode("utf-8", "surrogateescape"), one.probability, one.piece == chosen]
        for one in candidates
    ]


def _readable(steps: Sequence[Step]) -> Iterator[tuple[str, bool]]:
    """Yield what each piece shows, and whether it ends with a whole character.

    A character that several pieces make is shown by the last of them. Bytes that are no
    UTF-8 become lone surrogates, which the page shows as hexadecimal.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for number, step in enumerate(steps, 1):
        shown = decoder.decode(step.piece, final=number == len(steps))
        yield shown, not decoder.getstate()[0]


def verdict(ballot: Ballot) -> Literal["stayed", "filtered", "absent"]:
    """Return what became of a member's vote; absent is who was not asked."""
    if ballot.stayed:
        return "stayed"
    # A member that was not asked (a gate) has no candidates and cost nothing.
    return "filtered" if ballot.top or ballot.seconds > 0 else "absent"


def disputed(step: Step) -> bool:
    """Return whether a vote was filtered or a member would have chosen another symbol."""
    return step.trace is not None and any(
        verdict(ballot) == "filtered" or (ballot.top and ballot.top[0].piece != step.piece)
        for ballot in step.trace.ballots
    )


def _member(name: str, steps: Sequence[Step]) -> MemberSummary:
    traces = [step.trace for step in steps if step.trace is not None]
    votes = [one for trace in traces for one in trace.ballots if one.member == name]
    asked = [vote for vote in votes if verdict(vote) != "absent"]
    seconds = [vote.seconds for vote in asked]
    return MemberSummary(
        name=name,
        carried=sum(trace.carrier == name for trace in traces),
        filtered=sum(not vote.stayed for vote in asked),
        weight=_mean([vote.weight for vote in asked]),
        decode_ms=1000 * _mean(seconds[1:] or seconds),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _embedded(data: object) -> str:
    """Return data as JSON that an HTML parser takes for nothing but text: ASCII without `<`."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
