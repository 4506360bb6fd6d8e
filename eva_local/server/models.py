"""What a request can name: an ensemble, or a member of it alone; and its slots."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field

from eva_local.api import Ensemble
from eva_local.engine.request import AnyPrompt, Request, Weights
from eva_local.errors import EvaError
from eva_local.server.refusal import RefusedError, come_again
from eva_local.types import Score, Step


class Slots:
    """Counts the answers of one ensemble; for one thread, that of the event loop."""

    def __init__(self, n_slots: int, n_waiting: int) -> None:
        """Let `n_slots` answers be written side by side, and `n_waiting` wait."""
        self._most = n_slots + n_waiting
        self.taken = 0

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Let `count` answers in for the length of a `with` block; refuse where all is full.

        A call with more answers than can ever wait must ask for less.
        """
        if count > self._most:
            raise RefusedError(
                400, f"{count} answers are asked for at once, and {self._most} can be; ask for less"
            )
        if self.taken + count > self._most:
            raise come_again("too many answers are asked for at this moment", "queue_full")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request can name: an ensemble, or with `alone` one member of it."""

    name: str
    ensemble: Ensemble
    slots: Slots
    alone: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def members(self) -> tuple[str, ...]:
        """Who writes."""
        return self.ensemble.members if self.alone is None else (self.alone,)

    @property
    def n_ctx(self) -> int:
        """How many tokens of the shared space fit at most, prompt and answer together."""
        sizes = dict(zip(self.ensemble.members, self.ensemble.n_ctx, strict=True))
        return min(sizes[name] for name in self.members)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids that a text has."""
        return self.ensemble.tokenize(text, alone=self.alone)

    def piece(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that ids stand for."""
        return self.ensemble.detokenize(ids, alone=self.alone)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text that ids stand for."""
        return self.piece(ids).decode("utf-8", "replace")

    async def run(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Step | Score]]:
        """Yield what is told of each request, with its number; raise the first error of one."""
        async with contextlib.aclosing(self.ensemble.arun_many(requests)) as all_told:
            async for number, told in all_told:
                if isinstance(told, EvaError):
                    raise told
                yield number, told

    async def score(
        self,
        texts: Sequence[tuple[AnyPrompt, str | Sequence[int]]],
        weights: Weights | None,
        n_top: int | None,
    ) -> list[Score]:
        """Score texts, each after its prompt; raise the first error that one of them meets.

        Each symbol is told where `n_top` is given, and as many of the likeliest in its place.
        """
        requests = [
            Request(
                prompt,
                continuation=text,
                symbols=n_top is not None,
                n_top=n_top or 0,
                alone=self.alone,
                weights=weights,
            )
            for prompt, text in texts
        ]
        async with contextlib.aclosing(self.run(requests)) as all_told:
            scores = {number: told async for number, told in all_told if isinstance(told, Score)}
        return [scores[number] for number in range(len(requests))]
