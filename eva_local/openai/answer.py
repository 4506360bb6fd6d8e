"""Answers as OpenAI's API writes them: whole, or in the parts of a stream."""

import codecs
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

from eva_local.openai import shapes
from eva_local.openai.request import CHAT
from eva_local.types import Candidate, ScoredSymbol, Step, Trace, Usage, dispute

# What the parts of a chat's stream are.
_PART = "chat.completion.chunk"
# What OpenAI's API says of a probability of 0.
_NEVER = -9999.0
# Enough for every number of a trace's page, and half the bytes.
_DIGITS = 4

Body = dict[str, object]


@dataclass(frozen=True, slots=True)
class Token:
    """One symbol of an answer: its place in the text, in characters, and its logprob in nats."""

    piece: bytes
    start: int
    logprob: float | None
    top: tuple[Candidate, ...]
    #: How far the votes were apart, and who dissented, where that is told.
    dispute: Body = field(default_factory=dict)


class Answer:
    """One answer as it is written; `tokens` are there where probabilities are `told`.

    A symbol is among them once its beginning is shown: so those of a stop string, which is never
    shown, are left out, and so are END and the thought. Behind an echo all are told, whatever is
    shown: evaluation harnesses rely on one for each that was chosen.
    """

    def __init__(self, *, told: bool = False) -> None:
        self.told = told
        #: The steps; an echo, first, is one of none.
        self.steps: list[Step] = []
        self.tokens: list[Token] = []
        self._n_echoed: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[tuple[int, Token]] = []
        self._shown = self._at = self._start = 0

    def repeat(self, text: str, n_tokens: int, tokens: Sequence[Token], *, last: bool) -> None:
        """Put the prompt in front, with the tokens that are told of it; or as the `last`."""
        self.steps.append(Step(b"", text, 1.0, (), "length" if last else None))
        self.tokens += tokens
        self._n_echoed, self._start = n_tokens, len(text)

    def push(self, step: Step) -> list[Token]:
        """Take the next step; return the tokens that are told by it."""
        self.steps.append(step)
        if not self.told or step.reasoning is not None:
            return []
        is_all = self._n_echoed is not None
        if step.piece or is_all:
            told: Body = {"disagreement": step.disagreement, "dissenters": step.dissenters}
            logprob = _log_of(step.probability)
            token = Token(step.piece, self._start, logprob, step.top, told)
            self._waiting.append((self._at, token))
            self._at += len(step.piece)
            self._start += len(self._decoder.decode(step.piece))
        self._shown += len(step.text.encode("utf-8", "replace"))
        ready = [token for at, token in self._waiting if is_all or at < self._shown]
        del self._waiting[: len(ready)]
        self.tokens += ready
        return ready

    @property
    def text(self) -> str:
        """What was written, behind the echo."""
        return "".join(step.text for step in self.steps)

    @property
    def reasoning(self) -> str:
        """The thought before the answer."""
        return "".join(step.reasoning or "" for step in self.steps)

    @property
    def dispute(self) -> Body:
        """How far the votes were apart, and on which words; nothing where nowhere two voted."""
        mean, words = dispute(self.steps)
        return {} if mean is None else {"disagreement": mean, "disputed": words}

    @property
    def calls(self) -> Sequence[Mapping[str, Any]]:
        """The calls of functions that it ends with, once it has ended."""
        return self.steps[-1].tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, if it did; an echo alone is as long as was asked for."""
        return self.steps[-1].finish_reason

    @property
    def usage(self) -> Usage | None:
        """What it cost, once it is finished; an echo alone has none."""
        return self.steps[-1].usage

    @property
    def n_read(self) -> int:
        """The tokens of the prompt, as the first member reads it."""
        return self.usage.prompt_tokens[0] if self.usage else self._n_echoed or 0


@dataclass(slots=True)
class Letterhead:
    """What all bodies about a request begin with; `asked` says what is told beside the answers.

    Other protocols have letterheads of their own.
    """

    #: What a stream is, what it ends with, and has in it where nothing is heard for long.
    media: ClassVar[str] = "text/event-stream"
    done: ClassVar[bytes] = b"data: [DONE]\n\n"
    alive: ClassVar[bytes] = b": the members are reading\n\n"

    #: What the tokens are of that are counted.
    words: ClassVar[tuple[str, str]] = ("prompt", "completion")

    endpoint: str
    name: str
    created: int
    model: str
    asked: shapes.AnswerRequest = field(default_factory=shapes.AnswerRequest)

    @property
    def _is_counted(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def whole(self, answers: Sequence[Answer]) -> Body:
        """Return the answers, with logprobs where they are told."""
        choices = []
        for index, answer in enumerate(answers):
            tokens = answer.tokens if answer.told else None
            choices.append(self._choice(index, answer, answer, tokens))
            if self.asked.trace:
                choices[-1]["eva"] = [trace_of(step) for step in answer.steps if step.stayed]
        told: Body = {"usage": self.counts(answers), **self._timings(answers)}
        return self._body("chat.completion", *choices) | told

    def parts(self, index: int, answer: Answer, tokens: Sequence[Token]) -> Iterator[Body]:
        """Yield what the last step of an answer says, with the tokens that are told by it."""
        step = answer.steps[-1]
        if self.endpoint == CHAT and len(answer.steps) == 1:
            # Where a thought comes first, no content begins.
            content = "" if step.reasoning is None else None
            delta = {"role": "assistant", "content": content, "refusal": None}
            head: Body = {"index": index, "delta": delta}
            yield self._body(_PART, {**head, "logprobs": None, "finish_reason": None})
        if step.text or step.reasoning or tokens or self.asked.trace or step.finish_reason:
            choice = self._choice(index, answer, step, tokens or None)
            if self.asked.trace and step.stayed:
                choice["eva"] = trace_of(step)
            yield self._body(_PART, choice)

    def last(self, answers: Sequence[Answer]) -> Body | None:
        """Return the part that tells what the answers cost, where it is told."""
        told = self._timings(answers)
        if self._is_counted:
            told["usage"] = self.counts(answers)
        return self._body(_PART) | told if told else None

    def event(self, part: Body) -> bytes:
        """Return a part, or an error as OpenAI tells it, as the stream has it."""
        return b"data: " + json.dumps(part, separators=(",", ":")).encode() + b"\n\n"

    def counts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return what the answers cost, in tokens."""
        usages, n = [answer.usage for answer in answers if answer.usage], self.asked.n
        read, written = sum(a.n_read for a in answers[::n]), sum(u.steps for u in usages)
        cached = sum(u.cached_tokens[0] for u in usages[::n])
        n_thought = sum(usage.reasoning_steps for usage in usages)
        details: Body = {"reasoning_tokens": n_thought}
        if drafted := sum(usage.drafted for usage in usages):
            accepted = sum(usage.accepted for usage in usages)
            details["accepted_prediction_tokens"] = accepted
            details["rejected_prediction_tokens"] = drafted - accepted
        asked, said = self.words
        counts: Body = {f"{asked}_tokens": read, f"{said}_tokens": written}
        counts["total_tokens"] = read + written
        counts[f"{asked}_tokens_details"] = {"cached_tokens": cached}
        is_told = self.endpoint == CHAT or n_thought
        return counts | ({f"{said}_tokens_details": details} if is_told else {})

    def _timings(self, answers: Sequence[Answer]) -> Body:
        """Return how long the first answer took, in the words of llama-server."""
        if not self.asked.timings_per_token or (usage := answers[0].usage) is None:
            return {}
        cached, read = usage.cached_tokens[0], usage.prompt_tokens[0]
        times: Body = {"cache_n": cached}
        first, rest = usage.first_seconds, usage.seconds - usage.first_seconds
        for name, n, took in (("prompt", read - cached, first), ("predicted", usage.steps, rest)):
            times |= {f"{name}_n": n, f"{name}_ms": 1000 * took}
            times[f"{name}_per_second"] = n / max(took, 1e-9)
        return {"timings": times}

    def _choice(
        self, index: int, answer: Answer, said: Answer | Step, tokens: Sequence[Token] | None
    ) -> Body:
        """Return what an answer says, whole or in one step."""
        told: Body = {"reasoning_content": said.reasoning} if said.reasoning else {}
        logprobs: Body | None = None
        if self.endpoint != CHAT:
            told["text"] = said.text
            logprobs = None if tokens is None else _text_logprobs(tokens)
        else:
            if tokens is not None:
                disputed = self.asked.disagreement
                logprobs = {"content": chat_tokens(tokens, disputed=disputed), "refusal": None}
            if said is answer:
                content = said.text or (None if answer.calls else "")
                told |= {"role": "assistant", "content": content, "refusal": None}
                told |= {"tool_calls": answer.calls} if answer.calls else {}
                told = {"message": told}
            else:
                told |= {"content": said.text} if said.text else {}
                calls = [{"index": number, **call} for number, call in enumerate(answer.calls)]
                told = {"delta": told | ({"tool_calls": calls} if calls else {})}
        if self.asked.disagreement and answer.finish_reason:
            told |= answer.dispute
        reason = answer.finish_reason
        return {"index": index, **told, "logprobs": logprobs, "finish_reason": reason}

    def _body(self, chat: str, *choices: Body) -> Body:
        kind = chat if self.endpoint == CHAT else "text_completion"
        head = {"id": self.name, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({"usage": None} if self._is_counted else {})}


def tokens_of(symbols: Sequence[ScoredSymbol]) -> tuple[Token, ...]:
    """Return the symbols of a text that was scored, with their places in it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts = accumulate((len(decoder.decode(each.piece)) for each in symbols), initial=0)
    return tuple(
        Token(each.piece, start, each.log_probability, each.top)
        for each, start in zip(symbols, starts, strict=False)
    )


def chat_tokens(tokens: Iterable[Token], *, disputed: bool = False) -> list[Body]:
    """Return tokens with their log-probabilities, in nats, and whether they are `disputed`."""
    return [
        _told(token.piece, token.logprob)
        | {"top_logprobs": [_told(c.piece, _log_of(c.probability)) for c in token.top]}
        | (token.dispute if disputed else {})
        for token in tokens
    ]


def trace_of(step: Step) -> Body:
    """Return why the symbol of a traced step was chosen."""
    trace = step.trace or Trace((), ())
    return {
        "piece": _shown(step.piece),
        "bytes": list(step.piece),
        "probability": _number(step.probability),
        "disagreement": step.disagreement,
        "text": step.text,
        # The text of a step of the thought; null in the answer.
        "reasoning": step.reasoning,
        "top": _top(trace.top),
        "members": [
            {
                "name": ballot.member,
                "weight": _number(ballot.weight),
                "stayed": bool(ballot.stayed),
                "reason": ballot.reason,
                "chosen": _number(ballot.chosen),
                "top": _top(ballot.top),
            }
            for ballot in trace.ballots
        ],
        "decided_by": trace.carrier if trace.ballots else None,
    }


def _text_logprobs(tokens: Sequence[Token]) -> Body:
    return {
        "tokens": [_shown(token.piece) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            # Several symbols may look alike: the likeliest counts, which is the first.
            {_shown(c.piece): _log_of(c.probability) for c in reversed(token.top)}
            if token.logprob is not None
            else None
            for token in tokens
        ],
        "text_offset": [token.start for token in tokens],
    }


def _told(piece: bytes, logprob: float | None) -> Body:
    return {"token": _shown(piece), "logprob": logprob, "bytes": list(piece)}


def _log_of(probability: float) -> float:
    """Return the log-probability in nats; of what a grammar alone wanted, OpenAI's stand-in."""
    return math.log(probability) if probability > 0 else _NEVER


def _shown(piece: bytes) -> str:
    return piece.decode("utf-8", "backslashreplace")


def _top(candidates: Sequence[Candidate]) -> list[list[object]]:
    return [[_shown(each.piece), _number(each.probability)] for each in candidates]


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
