"""Answers as OpenAI's API writes them: whole, or in the parts of a stream."""

import codecs
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

from eva_local.engine.grammar import BEGIN
from eva_local.openai.request import CHAT
from eva_local.openai.tools import calls_in, split
from eva_local.types import Candidate, ScoredSymbol, Step, Trace, Usage

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


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt in front of its answer; the tokens are there where probabilities are told."""

    text: str
    n_tokens: int
    tokens: tuple[Token, ...] = ()


class Answer:
    """One answer as it is written; `tokens` are there where probabilities are `told`.

    A symbol is among them once its beginning is shown: so those of a stop string, which is never
    shown, are left out, and so are END and the thought. Behind an echo all are told, whatever is
    shown: evaluation harnesses rely on one for each that was chosen.
    """

    def __init__(self, *, told: bool = False, functions: Sequence[str] = ()) -> None:
        self._functions = functions
        self._held, self._is_first = "", True
        #: The calls of functions that the answer ends with, once it has ended.
        self.calls: list[Body] = []
        self.echo: Echo | None = None
        self.steps: list[Step] = []
        #: The same steps with the text that is shown: nothing of a call.
        self.shown: list[Step] = []
        self.tokens: list[Token] = []
        self.told = told
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[tuple[int, Token]] = []
        self._shown = self._at = self._start = 0

    def repeat(self, echo: Echo) -> None:
        """Put the prompt in front."""
        self.echo = echo
        self.tokens += echo.tokens
        self._start = len(echo.text)

    def push(self, step: Step) -> list[Token]:
        """Take the next step; return the tokens that are told by it."""
        self.steps.append(step)
        self.shown.append(self._uncalled(step) if self._functions else step)
        if not self.told or step.reasoning is not None:
            return []
        is_all = self.echo is not None
        if step.piece or is_all:
            token = Token(step.piece, self._start, _log_of(step.probability), step.top)
            self._waiting.append((self._at, token))
            self._at += len(step.piece)
            self._start += len(self._decoder.decode(step.piece))
        self._shown += len(step.text.encode("utf-8", "replace"))
        ready = [token for at, token in self._waiting if is_all or at < self._shown]
        del self._waiting[: len(ready)]
        self.tokens += ready
        return ready

    def _uncalled(self, step: Step) -> Step:
        """Return a step without what may be a call; the last one has what was none."""
        text, self._held = split(self._held + step.text, is_first=self._is_first)
        self._is_first &= not text
        if step.finish_reason is not None:
            is_cut = step.finish_reason != "stop"
            self.calls = [] if is_cut else calls_in(self._held, self._functions)
            # A call that is cut off is none, and no text either.
            is_told = self.calls or (is_cut and self._held.lstrip().startswith(BEGIN))
            text += "" if is_told else self._held
        return replace(step, text=text)

    @property
    def text(self) -> str:
        """What was written, behind the echo."""
        return "".join([self.echo.text if self.echo else "", *(step.text for step in self.shown)])

    @property
    def reasoning(self) -> str:
        """The thought before the answer."""
        return "".join(step.reasoning or "" for step in self.steps)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; an echo alone is as long as was asked for."""
        reason = self.steps[-1].finish_reason if self.steps else "length"
        return "tool_calls" if self.calls else reason

    @property
    def usage(self) -> Usage | None:
        """What it cost, once it is finished; an echo alone has none."""
        return self.steps[-1].usage if self.steps else None

    @property
    def n_read(self) -> int:
        """The tokens of the prompt, as the first member reads it."""
        if self.usage is not None:
            return self.usage.prompt_tokens[0]
        return self.echo.n_tokens if self.echo else 0


@dataclass(slots=True)
class Letterhead:
    """What all bodies about a request begin with, and whether they tell cost, reasons and times.

    Other protocols have letterheads of their own.
    """

    #: What a stream is, what it ends with, and has in it where nothing is heard for long.
    media: ClassVar[str] = "text/event-stream"
    done: ClassVar[bytes] = b"data: [DONE]\n\n"
    alive: ClassVar[bytes] = b": the members are reading\n\n"

    endpoint: str
    name: str
    created: int
    model: str
    counted: bool = False
    traced: bool = False
    timed: bool = False
    #: Answers to each prompt.
    n: int = 1

    def whole(self, answers: Sequence[Answer]) -> Body:
        """Return the answers, with logprobs where they are told."""
        choices = []
        for index, answer in enumerate(answers):
            thought = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
            said: Body = {"text": answer.text, **thought}
            if self.endpoint == CHAT:
                content = (answer.text or None) if answer.calls else answer.text
                message: Body = {"role": "assistant", "content": content, "refusal": None}
                called = {"tool_calls": answer.calls} if answer.calls else {}
                said = {"message": {**message, **thought, **called}}
            tokens = answer.tokens if answer.told else None
            choices.append(self._choice(index, said, tokens, finish_reason=answer.finish_reason))
            if self.traced:
                choices[-1]["eva"] = [trace_of(step) for step in answer.steps]
        told: Body = {"usage": self.counts(answers), **self._timings(answers)}
        return self._body("chat.completion", choices) | told

    def opening(self, index: int, *, thinks: bool = False) -> Body:
        """Return what comes before a chat's answer; where it `thinks` first, no content begins."""
        delta = {"role": "assistant", "content": None if thinks else "", "refusal": None}
        return self._part(self._choice(index, {"delta": delta}))

    def parts(self, index: int, answer: Answer, tokens: Sequence[Token]) -> Iterator[Body]:
        """Yield what the last step of an answer says, with the tokens that are told by it."""
        if self.endpoint == CHAT and len(answer.steps) == 1:
            yield self.opening(index, thinks=answer.steps[0].reasoning is not None)
        if (part := self.step(index, answer.shown[-1], tokens, answer.calls)) is not None:
            yield part

    def echo(self, index: int, echo: Echo, *, last: bool) -> Body:
        """Return the prompt of a plain completion, in front of its answer; or as the `last`."""
        reason = "length" if last else None
        said: Body = {"text": echo.text}
        return self._part(self._choice(index, said, echo.tokens or None, finish_reason=reason))

    def step(
        self, index: int, step: Step, tokens: Sequence[Token] = (), calls: Sequence[Body] = ()
    ) -> Body | None:
        """Return what a step says, and the last one calls; None where there is nothing yet."""
        if not (step.text or step.reasoning or tokens or self.traced or step.finish_reason):
            return None
        thought = {"reasoning_content": step.reasoning} if step.reasoning else {}
        said: Body = {"text": step.text, **thought}
        if self.endpoint == CHAT:
            called: Body = {"tool_calls": [{"index": n, **c} for n, c in enumerate(calls)]}
            delta = {**thought, **({"content": step.text} if step.text else {})}
            said = {"delta": delta | (called if calls else {})}
        reason = "tool_calls" if calls else step.finish_reason
        choice = self._choice(index, said, tokens or None, finish_reason=reason)
        if self.traced:
            choice["eva"] = trace_of(step)
        return self._part(choice)

    def last(self, answers: Sequence[Answer]) -> Body | None:
        """Return the part that tells what the answers cost, where it is told."""
        told: Body = {"usage": self.counts(answers)} if self.counted else {}
        told |= self._timings(answers)
        return self._part() | told if told else None

    def event(self, part: Body) -> bytes:
        """Return a part, or an error as OpenAI tells it, as the stream has it."""
        return b"data: " + json.dumps(part, separators=(",", ":")).encode() + b"\n\n"

    def counts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return what the answers cost, in tokens."""
        usages = [answer.usage for answer in answers if answer.usage]
        read, written = sum(a.n_read for a in answers[:: self.n]), sum(u.steps for u in usages)
        cached = sum(u.cached_tokens[0] for u in usages[:: self.n])
        n_thought = sum(usage.reasoning_steps for usage in usages)
        details: Body = {"reasoning_tokens": n_thought}
        if drafted := sum(usage.drafted for usage in usages):
            accepted = sum(usage.accepted for usage in usages)
            details["accepted_prediction_tokens"] = accepted
            details["rejected_prediction_tokens"] = drafted - accepted
        counts: Body = {"prompt_tokens": read, "completion_tokens": written}
        counts["total_tokens"] = read + written
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
        is_told = self.endpoint == CHAT or n_thought
        return counts | ({"completion_tokens_details": details} if is_told else {})

    def _timings(self, answers: Sequence[Answer]) -> Body:
        """Return how long the first answer took, in the words of llama-server."""
        if not self.timed or (usage := answers[0].usage) is None:
            return {}
        cached, read = usage.cached_tokens[0], usage.prompt_tokens[0]
        times: Body = {"cache_n": cached}
        first, rest = usage.first_seconds, usage.seconds - usage.first_seconds
        for name, n, seconds in (
            ("prompt", read - cached, first),
            ("predicted", usage.steps, rest),
        ):
            times |= {f"{name}_n": n, f"{name}_ms": 1000 * seconds}
            times[f"{name}_per_second"] = n / max(seconds, 1e-9)
        return {"timings": times}

    def _choice(
        self, index: int, said: Body, tokens: Sequence[Token] | None = None, **more: object
    ) -> Body:
        told: Body | None = None
        if tokens is not None and self.endpoint == CHAT:
            told = {"content": chat_tokens(tokens), "refusal": None}
        elif tokens is not None:
            told = _text_logprobs(tokens)
        return {"index": index, **said, "logprobs": told, "finish_reason": None, **more}

    def _part(self, *choices: Body) -> Body:
        body = self._body("chat.completion.chunk", choices)
        return body | {"usage": None} if self.counted else body

    def _body(self, chat: str, choices: Sequence[Body]) -> Body:
        kind = chat if self.endpoint == CHAT else "text_completion"
        head = {"id": self.name, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices}


def tokens_of(symbols: Sequence[ScoredSymbol]) -> tuple[Token, ...]:
    """Return the symbols of a text that was scored, with their places in it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts = accumulate((len(decoder.decode(each.piece)) for each in symbols), initial=0)
    return tuple(
        Token(each.piece, start, each.log_probability, each.top)
        for each, start in zip(symbols, starts, strict=False)
    )


def chat_tokens(tokens: Iterable[Token]) -> list[Body]:
    """Return tokens with their log-probabilities, in nats."""
    return [
        _told(token.piece, token.logprob)
        | {"top_logprobs": [_told(c.piece, _log_of(c.probability)) for c in token.top]}
        for token in tokens
    ]


def trace_of(step: Step) -> Body:
    """Return why the symbol of a traced step was chosen."""
    trace = step.trace or Trace((), ())
    return {
        "piece": _shown(step.piece),
        "bytes": list(step.piece),
        "probability": _number(step.probability),
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
