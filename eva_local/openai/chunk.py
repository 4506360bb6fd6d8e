"""Answers that are told as they are written, as OpenAI's API streams them."""

from __future__ import annotations

from collections.abc import Sequence

from eva_local.openai.answer import Letterhead, Token, Tokens, shown_piece
from eva_local.openai.request import CHAT
from eva_local.types import Ballot, Candidate, Step

# Enough for every number of a page, and half the bytes.
_DIGITS = 4


class Choice:
    """One answer of those that are streamed together."""

    def __init__(
        self, head: Letterhead, index: int, *, told: bool = False, traced: bool = False
    ) -> None:
        """Begin the answer number `index`; `told` adds logprobs, `traced` why each was chosen."""
        self._head = head
        self._index = index
        self._told = told
        self._traced = traced
        self._tokens = Tokens()

    def opening(self) -> dict[str, object]:
        """Return what comes before the text of a chat's answer."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk({"delta": delta, "logprobs": None})

    def echo(self, text: str, tokens: Sequence[Token], *, last: bool) -> dict[str, object]:
        """Return the prompt of a plain completion, in front of its answer; or as the `last`."""
        self._tokens = Tokens(text)
        logprobs = self._head.logprobs(tokens) if tokens else None
        return self._chunk({"text": text, "logprobs": logprobs}, "length" if last else None)

    def step(self, step: Step) -> dict[str, object] | None:
        """Return what a step says; None where there is nothing to say yet."""
        tokens = self._tokens.push(step) if self._told else []
        if not (step.text or tokens or self._traced or step.finish_reason):
            return None
        part: dict[str, object] = {"text": step.text}
        if self._head.endpoint == CHAT:
            part = {"delta": {"content": step.text} if step.text else {}}
        part["logprobs"] = self._head.logprobs(tokens) if tokens else None
        if self._traced:
            part["eva"] = trace_of(step)
        return self._chunk(part, step.finish_reason)

    def _chunk(
        self, part: dict[str, object], finish_reason: str | None = None
    ) -> dict[str, object]:
        choice = {"index": self._index, **part, "finish_reason": finish_reason}
        return self._head.chunk([choice])


def trace_of(step: Step) -> dict[str, object]:
    """Return why the symbol of a traced step was chosen."""
    trace = step.trace
    return {
        "piece": shown_piece(step.piece),
        "bytes": list(step.piece),
        "probability": _number(step.probability),
        "text": step.text,
        "top": _top(trace.top) if trace else [],
        "members": [_member(ballot) for ballot in trace.ballots] if trace else [],
        "decided_by": trace.carrier if trace and trace.ballots else None,
    }


def _member(ballot: Ballot) -> dict[str, object]:
    return {
        "name": ballot.member,
        "weight": _number(ballot.weight),
        "stayed": bool(ballot.stayed),
        "reason": ballot.reason,
        "chosen": _number(ballot.chosen),
        "top": _top(ballot.top),
    }


def _top(candidates: Sequence[Candidate]) -> list[list[object]]:
    return [[shown_piece(each.piece), _number(each.probability)] for each in candidates]


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
