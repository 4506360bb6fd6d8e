"""The `Ensemble`, which a Python user holds: ask, await, score."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import partial
from pathlib import Path

from eva_local.alignment.library import find, mapping_folders
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.driver import Driver
from eva_local.engine.engine import Engine
from eva_local.engine.readers import Asked, Readers
from eva_local.engine.scheduler import Request, Scheduler, Sink
from eva_local.engine.scoring import Scoring
from eva_local.errors import EvaError, InputError
from eva_local.fusion.fuser import Fuser
from eva_local.llama.model import Model
from eva_local.reading import did_you_mean
from eva_local.types import Completion, Message, Sampling, Score, Step

# Told what is going on and which share of it is done, from 0 to 1.
Report = Callable[[str, float], None]


class Ensemble:
    """Models that write one answer together.

    Several threads and an event loop may use it at once: their answers are written side by
    side, as many as the ensemble has places, and the others wait in a queue.
    """

    def __init__(
        self,
        spec: EnsembleSpec,
        models: Sequence[Model],
        engine: Engine,
        sampling: Sampling,
        resources: contextlib.ExitStack,
        *,
        parallel: int = 1,
    ) -> None:
        """Hold what was opened; `resources` closes it again, also where this fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(resources.close)
            self.spec = spec
            self._models = tuple(models)
            self._engine = engine
            self._sampling = sampling
            self._readers = Readers(models, engine)
            #: The queue and the places that all answers of this ensemble go through.
            self.scheduler = Scheduler(engine, parallel)
            self._driver = Driver(self.scheduler)
            self._resources = stack.pop_all()

    def __enter__(self) -> Ensemble:
        """Return the open ensemble."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the memory."""
        self.close()

    def close(self) -> None:
        """Free the memory; who still waits for an answer gets a ClosedError."""
        self._driver.close()
        self.scheduler.close()
        self._readers.close(self._resources.close)

    @property
    def members(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(member.name for member in self.spec.members)

    @property
    def n_ctx(self) -> tuple[int, ...]:
        """How many tokens each member's context holds, prompt and answer together."""
        return tuple(model.n_ctx for model in self._models)

    def mapping_files(self) -> tuple[Path, ...]:
        """Return the files of the mappings that the members' votes go through."""
        if self.spec.fusion.space != "pivot":
            return ()
        pivot = self._models[self.spec.pivot_index]
        others = (
            model
            for model in self._models
            if model.vocabulary.fingerprint != pivot.vocabulary.fingerprint
        )
        method, folders = self.spec.fusion.mapping, mapping_folders()
        found = (find(method, model, pivot, folders) for model in others)
        return tuple(path for path in found if path is not None)

    def prompt_tokens(self, prompt: Asked) -> tuple[int, ...]:
        """Return how many tokens of its own each member reads `prompt` as."""
        return tuple(map(len, self._readers.tokens(prompt)))

    def stream(
        self,
        prompt: Asked,
        sampling: Sampling | None = None,
        *,
        trace: bool = False,
        n_top: int = 0,
        alone: str | None = None,
        judge: Fuser | None = None,
        report: Report | None = None,
    ) -> Generator[Step, None, None]:
        """Write an answer step by step; closing the iterator ends it.

        A `str` is text to go on with, and so are symbols as `tokenize` returns them; messages
        are a conversation, put to each member in its own chat template. `sampling` defaults to
        that of models.toml. The last step carries the finish reason and the usage. With `trace`
        every step says why its symbol was chosen, with `n_top` it names as many of the likeliest
        symbols. The member named by `alone` writes by itself. A `judge` fuses in place of the
        ensemble's own rule. What the members have read before is not read again; `report` is
        told how far they are with the rest, which is read a batch at a time.

        Raises ContextError where the prompt does not fit, with the numbers, and InputError where
        a bias, grammar or schema cannot be used.
        """
        told: deque[Step | EvaError] = deque()
        request = self.submit(
            prompt, sampling, told.append, trace=trace, n_top=n_top, alone=alone, judge=judge
        )
        try:
            # Another thread may take the steps: it tells first, and then says that all is done.
            while not request.done or told:
                self.scheduler.step(unless=lambda: bool(told) or request.done)
                if told:
                    yield _step(told.popleft())
                elif report is not None:
                    report("reading the prompt", request.share_read)
        finally:
            self.scheduler.cancel(request)

    async def astream(
        self,
        prompt: Asked,
        sampling: Sampling | None = None,
        *,
        trace: bool = False,
        n_top: int = 0,
        alone: str | None = None,
        judge: Fuser | None = None,
    ) -> AsyncGenerator[Step, None]:
        """Write an answer step by step, as `stream` does, without blocking the event loop.

        Closing the iterator, or cancelling the task that awaits it, ends the answer.
        """
        asked = partial(
            self._request, prompt, sampling, trace=trace, n_top=n_top, alone=alone, judge=judge
        )
        # Tokenising a long prompt takes a while.
        request = await asyncio.to_thread(asked)
        async with contextlib.aclosing(self._driver.answer(request)) as steps:
            async for step in steps:
                yield step

    def check(self, sampling: Sampling, *, alone: str | None = None) -> None:
        """Raise InputError where answers cannot be drawn so: for a bias, grammar or schema."""
        self._engine.panel(self._place_of(alone)).samplers.prepare(sampling)

    def complete(
        self, prompt: Asked, sampling: Sampling | None = None, *, alone: str | None = None
    ) -> Completion:
        """Return the whole answer; see `stream`."""
        return completion_of(list(self.stream(prompt, sampling, alone=alone)))

    async def acomplete(
        self, prompt: Asked, sampling: Sampling | None = None, *, alone: str | None = None
    ) -> Completion:
        """Return the whole answer, as `complete` does, without blocking the event loop."""
        async with contextlib.aclosing(self.astream(prompt, sampling, alone=alone)) as steps:
            return completion_of([step async for step in steps])

    def complete_many(
        self, prompts: Sequence[Asked], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Return the answers to many prompts, written side by side, in the order of the prompts.

        `sampling` is one for all, or one for each. A beginning that prompts have in common is
        read once. Raises the first error that one of them meets; see `stream`.
        """
        _refuse_one_text(prompts)
        answers: list[list[Step | EvaError]] = [[] for _ in prompts]
        requests = [
            self._request(prompt, each)
            for prompt, each in zip(prompts, _for_each(sampling, len(prompts)), strict=True)
        ]
        try:
            for request, told in zip(requests, answers, strict=True):
                request.sink = told.append
                self.scheduler.submit(request)
            while not all(request.done for request in requests):
                self.scheduler.step(unless=lambda: all(request.done for request in requests))
            return [completion_of(told) for told in answers]
        finally:
            for request in requests:
                self.scheduler.cancel(request)

    async def acomplete_many(
        self, prompts: Sequence[Asked], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Return the answers to many prompts, as `complete_many`, without blocking the loop."""
        _refuse_one_text(prompts)
        samplings = _for_each(sampling, len(prompts))
        tasks = [
            asyncio.create_task(self.acomplete(prompt, each))
            for prompt, each in zip(prompts, samplings, strict=True)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def submit(
        self,
        prompt: Asked,
        sampling: Sampling | None,
        sink: Sink,
        *,
        trace: bool = False,
        n_top: int = 0,
        alone: str | None = None,
        judge: Fuser | None = None,
    ) -> Request:
        """Ask for an answer that `scheduler.step` will write and tell `sink` of.

        With `n_top` every step names as many of the likeliest symbols. The member named by
        `alone` writes by itself, in its own tokens, beside the answers of all.

        Raises InputError and PromptError where the prompt cannot be put to the members, and
        ContextError where it is too long to be tokenised, and InputError where a bias, grammar
        or schema cannot be used; what is found out later, the sink is told.
        """
        request = self._request(
            prompt, sampling, trace=trace, n_top=n_top, alone=alone, judge=judge
        )
        request.sink = sink
        return self.scheduler.submit(request)

    def _request(
        self,
        prompt: Asked,
        sampling: Sampling | None,
        *,
        trace: bool = False,
        n_top: int = 0,
        alone: str | None = None,
        judge: Fuser | None = None,
    ) -> Request:
        """Do all that may take long before a step: read the prompt, prepare how it is answered."""
        only = self._place_of(alone)
        prompts = self._readers.tokens(prompt, only, fitting=True)
        sampling = sampling or self._sampling
        judged = self._judged(prompt, only)
        return Request(
            *(prompts, sampling),
            traced=trace,
            n_top=n_top,
            chooser=self._engine.panel(only).samplers.prepare(sampling),
            judge=judge,
            alone=only,
            judged=judged,
        )

    def _judged(self, prompt: Asked, only: int | None) -> int:
        """Return how many bytes at the end of a prompt say how well the members predict."""
        if only is not None or len(self._models) == 1:
            return 0
        said = not isinstance(prompt, str) and any(isinstance(each, Message) for each in prompt)
        return self.spec.fusion.evidence_bytes(conversation=said)

    def _place_of(self, member: str | None) -> int | None:
        if member is None:
            return None
        if member not in self.members:
            raise InputError(f"{member} is no member; {did_you_mean(member, self.members)}")
        return self.members.index(member)

    @property
    def n_symbols(self) -> int:
        """How many symbols the shared space has, END included."""
        return self._engine.n_symbols

    @property
    def missing_bytes(self) -> frozenset[int]:
        """The bytes that some member has no token for; no answer and no scored text has them."""
        return self._engine.missing_bytes

    def tokenize(self, text: str, *, alone: str | None = None) -> list[int]:
        """Return the symbols of the shared space for a text, or a member's own tokens.

        No symbol is put in front, and none is a control token. Raises PromptError where the
        pivot (or the member) has no token for a character.
        """
        return self._readers.spell(text.encode("utf-8", "replace"), self._place_of(alone))

    def detokenize(self, symbols: Sequence[int], *, alone: str | None = None) -> bytes:
        """Return the bytes that symbols stand for; they need not be whole characters.

        Raises InputError for a number that is no symbol or stands for no text.
        """
        return self._readers.bytes_of(symbols, self._place_of(alone))

    def score(
        self,
        prompt: Asked,
        continuation: str | Sequence[int],
        judge: Fuser | None = None,
        *,
        alone: str | None = None,
        symbols: bool = False,
        n_top: int = 0,
    ) -> Score:
        """Return how likely it is that exactly `continuation` comes right after `prompt`.

        The continuation, a text or symbols as `tokenize` returns them, is forced through every
        member, symbol by symbol; what the members have read of the prompt for the score before
        is not read again. With `candidates` above 0 in the settings, what lies beyond them is
        not known exactly: see `Score.unseen`. With `symbols` the score tells each symbol, with
        `n_top` the likeliest ones in its place, too. The member named by `alone` is scored by
        itself. A `judge` that is given fuses in place of the ensemble's own rule, and hears
        every vote.

        Raises InputError where there is no continuation or a member cannot spell it,
        ContextError where the text does not fit.
        """
        scoring = self.submit_score(
            prompt, continuation, judge, alone=alone, symbols=symbols, n_top=n_top
        )
        try:
            while not scoring.done:
                self.scheduler.step(unless=lambda: scoring.done)
            return scoring.result()
        finally:
            self.scheduler.cancel(scoring.request)

    async def ascore(
        self,
        prompt: Asked,
        continuation: str | Sequence[int],
        judge: Fuser | None = None,
        *,
        alone: str | None = None,
        symbols: bool = False,
        n_top: int = 0,
    ) -> Score:
        """Return a score, as `score` does, without blocking the event loop."""
        asked = partial(self._scoring, prompt, continuation, judge, alone, symbols, n_top)
        scoring = await asyncio.to_thread(asked)
        async with contextlib.aclosing(self._driver.answer(scoring.request)) as steps:
            async for step in steps:
                scoring.hear(step)
        return scoring.result()

    def submit_score(
        self,
        prompt: Asked,
        continuation: str | Sequence[int],
        judge: Fuser | None = None,
        *,
        alone: str | None = None,
        symbols: bool = False,
        n_top: int = 0,
    ) -> Scoring:
        """Ask for a score that `scheduler.step` will find; see `score`."""
        scoring = self._scoring(prompt, continuation, judge, alone, symbols, n_top)
        self.scheduler.submit(scoring.request)
        return scoring

    def _scoring(
        self,
        prompt: Asked,
        continuation: str | Sequence[int],
        judge: Fuser | None,
        alone: str | None,
        detailed: bool,
        n_top: int,
    ) -> Scoring:
        only = self._place_of(alone)
        spelled = self._readers.writable(continuation, only)
        return Scoring(
            self._engine.panel(only),
            self._readers.tokens(prompt, only, fitting=True),
            spelled,
            judge,
            alone=only,
            judged=self._judged(prompt, only),
            detailed=detailed or n_top > 0,
            n_top=n_top,
        )


def _step(told: Step | EvaError) -> Step:
    if isinstance(told, EvaError):
        raise told
    return told


def _refuse_one_text(prompts: object) -> None:
    if isinstance(prompts, str):
        raise InputError("prompts must be a sequence of them, not one text; see complete")


def _for_each(
    sampling: Sampling | Sequence[Sampling] | None, count: int
) -> Sequence[Sampling | None]:
    each = sampling if isinstance(sampling, Sequence) else [sampling] * count
    if len(each) != count:
        raise InputError(f"{count} prompts need as many samplings, or one, not {len(each)}")
    return each


def completion_of(told: Sequence[Step | EvaError]) -> Completion:
    """Join what a sink was told of a whole answer; raise the error that ended it."""
    steps = [_step(each) for each in told]
    last = steps[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    return Completion("".join(step.text for step in steps), last.finish_reason, last.usage)
