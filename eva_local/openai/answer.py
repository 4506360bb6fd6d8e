"""Whole answers, as OpenAI's API writes them."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eva_local.openai.request import CHAT
from eva_local.types import Candidate, FinishReason, ScoredSymbol, Step, Usage

# What OpenAI's API says of a probability of 0.
_NEVER = -9999.0


@dataclass(frozen=True, slots=True)
class Token:
    """One symbol of an answer; `start` is its place in the text, in characters.

    The `logprob` is in nats; the first symbol of a text that was given has none.
    """

    piece: bytes
    start: int
    logprob: float | None
    top: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `tokens` are there where probabilities were asked for."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """What answers cost, in tokens."""

    prompt: int
    completion: int

    @classmethod
    def of(cls, answers: Sequence[Answer], n: int = 1) -> Counts:
        """Count `n` answers to each prompt.

        The prompt counts once, as the first member reads it: OpenAI's shape has one number.
        """
        return cls(
            sum(answer.usage.prompt_tokens[0] for answer in answers[::n]),
            sum(answer.usage.steps for answer in answers),
        )

    def written(self) -> dict[str, int]:
        """Return the counts in OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


class Tokens:
    """Gives out the symbols of an answer once their beginning is shown.

    So those of a stop string, which is never shown, are left out, and so is END. Behind an echo
    all are told, whatever is shown: evaluation harnesses rely on one for each that was chosen.
    """

    def __init__(self, echo: str | None = None) -> None:
        """Begin an answer, perhaps behind an echo of its prompt."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[tuple[int, Token]] = []
        self._shown = 0
        self._at = 0
        self._start = len(echo or "")
        self._all = echo is not None

    def push(self, step: Step) -> list[Token]:
        """Take the next step; return the symbols that are shown by now."""
        if step.piece or self._all:
            token = Token(step.piece, self._start, log_of(step.probability), step.top)
            self._waiting.append((self._at, token))
            self._at += len(step.piece)
            self._start += len(self._decoder.decode(step.piece))
        self._shown += len(step.text.encode("utf-8", "replace"))
        ready = [token for at, token in self._waiting if self._all or at < self._shown]
        del self._waiting[: len(ready)]
        return ready


def answer_of(steps: Sequence[Step], *, told: bool, echo: str | None = None) -> Answer:
    """Join the steps of a finished answer, with its tokens where they are to be `told`.

    The `echo` is not put in front; it says how the tokens are told, as `Tokens` do.
    """
    last = steps[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    text = "".join(step.text for step in steps)
    tokens = Tokens(echo)
    shown = tuple(token for step in steps for token in tokens.push(step)) if told else ()
    return Answer(text, last.finish_reason, last.usage, shown)


def tokens_of(symbols: Sequence[ScoredSymbol]) -> tuple[Token, ...]:
    """Return the symbols of a text that was scored, with their places in it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start, tokens = 0, []
    for symbol in symbols:
        tokens.append(Token(symbol.piece, start, symbol.log_probability, symbol.top))
        start += len(decoder.decode(symbol.piece))
    return tuple(tokens)


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What all bodies about a request begin with, whole ones and the parts of a stream.

    `counted` where the last part of a stream tells the counts.
    """

    endpoint: str
    name: str
    created: int
    model: str
    counted: bool = False

    def whole(self, answers: Sequence[Answer], n: int = 1, *, told: bool) -> dict[str, object]:
        """Return the body with `n` answers to each prompt; `told` adds logprobs."""
        is_chat = self.endpoint == CHAT
        choices: list[dict[str, object]] = []
        for index, answer in enumerate(answers):
            said: dict[str, object] = {"text": answer.text}
            if is_chat:
                message = {"role": "assistant", "content": answer.text, "refusal": None}
                said = {"message": message}
            said["logprobs"] = self.logprobs(answer.tokens) if told else None
            choices.append({"index": index, **said, "finish_reason": answer.finish_reason})
        head = self._head("chat.completion" if is_chat else "text_completion", choices)
        return head | {"usage": Counts.of(answers, n).written()}

    def chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        """Return a part of an answer."""
        is_chat = self.endpoint == CHAT
        head = self._head("chat.completion.chunk" if is_chat else "text_completion", choices)
        return head | {"usage": None} if self.counted else head

    def last(self, counts: Counts) -> dict[str, object]:
        """Return the part that tells the counts."""
        return self.chunk([]) | {"usage": counts.written()}

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, object]:
        """Return tokens as the endpoint tells them."""
        return chat_logprobs(tokens) if self.endpoint == CHAT else text_logprobs(tokens)

    def _head(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self.name,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def chat_logprobs(tokens: Iterable[Token]) -> dict[str, object]:
    """Return tokens as a chat completion tells them."""
    return {"content": chat_tokens(tokens), "refusal": None}


def chat_tokens(tokens: Iterable[Token]) -> list[dict[str, object]]:
    """Return tokens with their log-probabilities, in nats."""
    return [_chat_token(token) for token in tokens]


def text_logprobs(tokens: Sequence[Token]) -> dict[str, object]:
    """Return tokens as a plain completion tells them."""
    return {
        "tokens": [shown_piece(token.piece) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_table(token) for token in tokens],
        "text_offset": [token.start for token in tokens],
    }


def log_of(probability: float) -> float:
    """Return the log-probability in nats; of what a grammar alone wanted, OpenAI's stand-in."""
    return math.log(probability) if probability > 0 else _NEVER


def shown_piece(piece: bytes) -> str:
    r"""Return a piece as text; half characters as \x escapes, as OpenAI shows them."""
    return piece.decode("utf-8", "backslashreplace")


def _chat_token(token: Token) -> dict[str, object]:
    return {
        "token": shown_piece(token.piece),
        "logprob": token.logprob,
        "bytes": list(token.piece),
        "top_logprobs": [
            {
                "token": shown_piece(candidate.piece),
                "logprob": log_of(candidate.probability),
                "bytes": list(candidate.piece),
            }
            for candidate in token.top
        ],
    }


def _table(token: Token) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    # Several symbols may look alike: the likeliest counts, which is the first.
    return {shown_piece(c.piece): log_of(c.probability) for c in reversed(token.top)}
