"""A trace as one HTML file that needs nothing else: no network, no other file."""

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal

from eva_local.pages.frame import shipped, template
from eva_local.trace.file import TraceFile
from eva_local.types import Ballot, Candidate, Step, Trace


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
    """Return what the page shows, as the script reads it."""
    return {
        **trace.header(),
        "finish": trace.finish_reason,
        "usage": None if trace.usage is None else asdict(trace.usage),
        "notes": trace.notes,
        "text": "".join(step.text for step in trace.steps),
        "summary": asdict(summarize(trace.members, trace.steps)),
        "steps": list(_steps_data(trace)),
    }


def _steps_data(trace: TraceFile) -> Iterator[dict[str, object]]:
    # Bytes that are no UTF-8 become lone surrogates, which the page shows as hexadecimal.
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for step, after in zip(trace.steps, [*trace.steps[1:], None], strict=False):
        # Thought and answer are two texts, and so are thoughts of members by themselves.
        last = after is None or _text(step) != _text(after)
        why = step.trace or Trace((), ())
        yield {
            # A character that several pieces make is shown by the last of them, the whole one.
            "shown": decoder.decode(step.piece, final=last),
            "whole": not decoder.getstate()[0],
            "hex": step.piece.hex(" "),
            "thought": step.reasoning is not None,
            "probability": step.probability,
            "carrier": trace.members.index(why.carrier) if why.ballots else -1,
            "disputed": disputed(step),
            "top": _candidates_data(why.top, step.piece),
            "ballots": [
                {
                    "member": trace.members.index(ballot.member),
                    "top": _candidates_data(ballot.top, step.piece),
                    "chosen": ballot.chosen,
                    "verdict": verdict(ballot),
                    "reason": ballot.reason,
                    "weight": ballot.weight,
                    "ms": 1000 * ballot.seconds,
                }
                for ballot in why.ballots
            ],
        }


def _text(step: Step) -> tuple[bool, object]:
    voters = [ballot.member for ballot in step.trace.ballots] if step.trace else []
    return step.reasoning is None, voters[0] if len(voters) == 1 else None


def _candidates_data(candidates: Sequence[Candidate], chosen: bytes) -> list[list[object]]:
    return [
        [one.piece.decode("utf-8", "surrogateescape"), one.probability, one.piece == chosen]
        for one in candidates
    ]


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
        weight, decoding = _mean([vote.weight for vote in asked]), _mean(seconds[1:] or seconds)
        parts.append(MemberSummary(name, carried, filtered, weight, 1000 * decoding))
    return Summary(
        tokens=sum(bool(step.piece) for step in steps),
        disputed=sum(map(disputed, steps)),
        probability=_mean([step.probability for step in steps]),
        members=tuple(parts),
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
