"""The `Ensemble`, which a Python user holds: ask, await, score."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any, TypeVar

from eva_local.alignment.library import find, mapping_folders
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.engine import Engine
from eva_local.engine.readers import Readers
from eva_local.engine.request import AnyPrompt, Request, Ticket, Told
from eva_local.engine.runner import Driver, Runner
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import EvaError, InputError
from eva_local.llama.model import Model
from eva_local.reading import did_you_mean
from eva_local.types import Completion, Message, Sampling, Score, Step, dispute

# Told what is going on and which share of it is done, from 0 to 1.
Report = Callable[[str, float], None]
T = TypeVar("T")
# What can be asked of an answer as keywords: fields of `Sampling`, and of `Request`.
_DRAWN = tuple(field.name for field in fields(Sampling))
_OPTIONS = (*_DRAWN, "trace", "n_top", "alone", "weights", "observe", "symbols")


class Ensemble(contextlib.AbstractContextManager["Ensemble"]):
    """Models that write one answer together.

    Several threads and an event loop may use it at once: their answers are written side by
    side, as many as the ensemble has slots, and the others wait in a queue.
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
            self._readers = Readers(models, engine, spec.members)
            #: The queue and the slots that all answers of this ensemble go through.
            self.scheduler = Scheduler(engine, parallel)
            self._most = parallel
            self._driver = Driver(self.scheduler)
            self._resources = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        spec = self.spec
        members = " + ".join(self.members)
        return f"<Ensemble {spec.name}: {members}, {spec.fusion.space}, pivot {spec.pivot}>"

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

    def mapping_files(self) -> Mapping[str, str]:
        """Return the names of the mappings' files that votes go through, with their sha256."""
        if self.spec.fusion.space != "pivot":
            return {}
        pivot, folders = self._models[self.spec.pivot_index], mapping_folders()
        # A vocabulary needs no file to itself.
        found = (find(self.spec.fusion.mapping, each, pivot, folders) for each in self._models)
        return {file.name: sha256(file.read_bytes()).hexdigest() for file in filter(None, found)}

    def prompt_tokens(self, prompt: AnyPrompt, sampling: Sampling | None = None) -> tuple[int, ...]:
        """Return how many tokens of its own each member reads `prompt` as."""
        read = self._readers.read(Request(prompt).prompt, sampling or self._sampling)
        return tuple(len(tokens) for tokens, _ in read)

    @property
    def n_slots(self) -> int:
        """How many texts are written side by side at most: no more than it was opened for."""
        return self.scheduler.n_slots

    @n_slots.setter
    def n_slots(self, n_slots: int) -> None:
        if not 1 <= n_slots <= self._most:
            raise InputError(f"n_slots must be from 1 to {self._most}, not {n_slots}")
        self.scheduler.n_slots = n_slots

    @property
    def drafter(self) -> str:
        """Who drafts the answers that begin from now on: auto, off, ngram or a member."""
        return self.spec.fusion.drafter

    @drafter.setter
    def drafter(self, drafter: str) -> None:
        self.spec = replace(self.spec, fusion=replace(self.spec.fusion, drafter=drafter))
        self._engine.drafter = drafter

    def for_throughput(self) -> None:
        """Let all answers together end early, not each: batches are full, caches may be lost."""
        self._engine.chunk = None
        self.scheduler.gapless = True

    def stream(
        self,
        prompt: AnyPrompt,
        sampling: Sampling | None = None,
        *,
        report: Report | None = None,
        **options: Any,
    ) -> Generator[Step, None, None]:
        """Write an answer step by step; closing the iterator ends it.

        A `str` is text to go on with, and so are symbols as `tokenize` returns them; messages
        are a conversation, put to each member in its own chat template. `sampling` defaults to
        that of models.toml; the `options` are fields of `Request`, and of `Sampling` such as
        max_tokens=5, which change it. The last step carries the finish reason and the usage. What
        the members have read before is not read again; `report` is told how far they are with the
        rest, which is read a batch at a time.

        Raises ContextError, with the numbers, and InputError for what cannot be used.
        """
        request = self._asked(prompt, sampling, options)
        with contextlib.closing(self.run_many([request], report)) as told:
            for _, step in told:
                yield _raised(step, Step)

    async def astream(
        self, prompt: AnyPrompt, sampling: Sampling | None = None, **options: Any
    ) -> AsyncGenerator[Step, None]:
        """Write an answer step by step, as `stream` does, without blocking the event loop.

        Closing the iterator, or cancelling the task that awaits it, ends the answer.
        """
        request = self._asked(prompt, sampling, options)
        async with contextlib.aclosing(self.arun_many([request])) as told:
            async for _, step in told:
                yield _raised(step, Step)

    def _asked(
        self, prompt: AnyPrompt, sampling: Sampling | None, options: Mapping[str, Any]
    ) -> Request:
        if unknown := [each for each in options if each not in _OPTIONS]:
            raise TypeError(f"{unknown[0]} is no option; {did_you_mean(unknown[0], _OPTIONS)}")
        others = dict(options)
        if drawn := {key: others.pop(key) for key in options if key in _DRAWN}:
            sampling = replace(sampling or self._sampling, **drawn)
        return Request(prompt, sampling, **others)

    def run_many(
        self, requests: Iterable[Request | None], report: Report | None = None
    ) -> Generator[tuple[int, Told], None, None]:
        """Answer requests side by side; yield what is told of each, with its number from 0 on.

        That is each step of an answer, a score, or the error that ended it; other requests go on.
        Requests are drawn when there are slots for them, so that there may be any number; None
        stands for none at the moment. A beginning that prompts have in common is read once.
        Closing the iterator ends them all. `report` is told how far the prompts are read.
        """
        with contextlib.closing(self.runner(requests)) as runner:
            while not runner.done:
                told = runner.step()
                yield from told
                if report is not None and (share := runner.share_read) is not None:
                    report("reading the prompt", share)

    async def arun_many(
        self, requests: Sequence[Request]
    ) -> AsyncGenerator[tuple[int, Told], None]:
        """Answer requests, all queued at once, as `run_many` does, for event loops."""
        # Tokenising a long prompt takes a while.
        found = await asyncio.to_thread(lambda: list(map(self._prepared, requests)))
        tickets: dict[int, Ticket] = {}
        for number, ticket in enumerate(found):
            if isinstance(ticket, EvaError):
                yield number, ticket
            else:
                tickets[number] = ticket
        async with contextlib.aclosing(self._driver.run(tickets)) as told:
            async for each in told:
                yield each

    def runner(self, requests: Iterable[Request | None]) -> Runner:
        """Return what takes requests through the ensemble, step by step; see `run_many`."""
        return Runner(self.scheduler, requests, self._prepared)

    def check(self, sampling: Sampling, *, alone: str | None = None) -> None:
        """Raise InputError where answers cannot be drawn so: for a bias, grammar or tool."""
        self._engine.panel(self._number_of(alone)).samplers.prepare(sampling)

    def complete(
        self, prompt: AnyPrompt, sampling: Sampling | None = None, **options: Any
    ) -> Completion:
        """Return the whole answer; see `stream`."""
        return completion_of(list(self.stream(prompt, sampling, **options)))

    async def acomplete(
        self, prompt: AnyPrompt, sampling: Sampling | None = None, **options: Any
    ) -> Completion:
        """Return the whole answer, as `complete` does, without blocking the event loop."""
        async with contextlib.aclosing(self.astream(prompt, sampling, **options)) as steps:
            return completion_of([step async for step in steps])

    def complete_many(
        self, prompts: Sequence[AnyPrompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Return the answers to many prompts, written side by side, in the order of the prompts.

        `sampling` is one for all, or one for each. A beginning that prompts have in common is
        read once. Raises the first error that one of them meets; see `stream`.
        """
        if isinstance(prompts, str):
            raise InputError("prompts must be a sequence of them, not one text; see complete")
        n_asked = len(prompts)
        each = sampling if isinstance(sampling, Sequence) else [sampling] * n_asked
        if len(each) != n_asked:
            raise InputError(f"{n_asked} prompts need as many samplings, or one, not {len(each)}")
        answers: list[list[Step]] = [[] for _ in prompts]
        with contextlib.closing(self.run_many(list(map(Request, prompts, each)))) as told:
            for number, step in told:
                answers[number].append(_raised(step, Step))
        return [completion_of(steps) for steps in answers]

    def _prepared(self, request: Request) -> Ticket | EvaError:
        try:
            return self._ticket(request)
        except EvaError as error:
            return error
        except RecursionError:
            return InputError("what is asked for is nested too deeply")

    def _ticket(self, request: Request) -> Ticket:
        """Do all that may take long before a step: read the prompt, prepare how it is answered."""
        only = self._number_of(request.alone)
        panel = self._engine.panel(only)
        sampling = request.sampling or self._sampling
        if only is None and (weights := request.weights) is not None:
            # Numbers are obeyed whatever is known of the prompt.
            weights = (1.0,) * len(self.members) if weights == "equal" else weights
            panel = replace(panel, fusion=replace(panel.fusion, weights=weights))
            # Whether they can be weights of this ensemble.
            replace(self.spec, fusion=panel.fusion)
        symbols = None
        if request.continuation is not None:
            symbols = self._readers.writable(request.continuation, only)
            if not symbols:
                raise InputError("there is no text to be scored")
            # What is scored is an answer, not a thought.
            sampling = replace(sampling, thinking="off")
        read = self._readers.read(request.prompt, sampling, only, fitting=True)
        thoughts = [thought for _, thought in read if thought is not None]
        apart = sampling.thinking == "apart" and thoughts
        sampling = self._readers.stops(request.prompt, sampling, only)
        is_alone = only is not None or len(self._models) == 1
        is_said = any(isinstance(each, Message) for each in request.prompt[:1])
        said, pivot = b"", panel.space.pivot
        if self._engine.drafter_for(panel) is not None:
            said = self._models[panel.members[pivot]].vocabulary.join(read[pivot][0])
        return Ticket(
            panel,
            [tokens for tokens, _ in read],
            sampling,
            thoughts=thoughts,
            alone=[self._engine.panel(member) for member in panel.members] if apart else (),
            sampler=None if symbols is not None else panel.samplers.prepare(sampling),
            symbols=symbols,
            asked=request,
            scored_bytes=0 if is_alone else self.spec.fusion.evidence_bytes(conversation=is_said),
            said=said,
        )

    def _number_of(self, member: str | None) -> int | None:
        if member is None:
            return None
        if member not in self.members:
            raise InputError(f"{member} is no member; {did_you_mean(member, self.members)}")
        return self.members.index(member)

    @property
    def n_symbols(self) -> int:
        """How many symbols the shared space has, END included."""
        return self._engine.panel().space.end + 1

    @property
    def missing_bytes(self) -> frozenset[int]:
        """The bytes that some member has no token for; no answer and no scored text has them."""
        return self._engine.missing_bytes

    def tokenize(self, text: str, *, alone: str | None = None) -> list[int]:
        """Return the symbols of the shared space for a text, or a member's own tokens.

        No symbol is put in front, and none is a control token. Raises PromptError where the
        pivot (or the member) has no token for a character.
        """
        return self._readers.spell(text.encode("utf-8", "replace"), self._number_of(alone))

    def detokenize(self, symbols: Sequence[int], *, alone: str | None = None) -> bytes:
        """Return the bytes that symbols stand for; they need not be whole characters.

        Raises InputError for a number that is no symbol or stands for no text.
        """
        return self._readers.bytes_of(symbols, self._number_of(alone))

    def score(self, prompt: AnyPrompt, continuation: str | Sequence[int], **options: Any) -> Score:
        """Return how likely it is that exactly `continuation` comes right after `prompt`.

        The continuation, a text or symbols as `tokenize` returns them, is forced through every
        member, symbol by symbol; what the members have read of the prompt for the score before
        is not read again. With `candidates` above 0 in the settings, what lies beyond them is
        not known exactly: see `Score.unseen`. With `symbols` the score tells each symbol, with
        `n_top` the likeliest ones in its place, too. For the other `options` see `Request`.

        Raises InputError where there is no continuation or a member cannot spell it,
        ContextError where the text does not fit.
        """
        request = replace(self._asked(prompt, None, options), continuation=continuation)
        ((_, told),) = self.run_many([request])
        return _raised(told, Score)

    async def ascore(
        self, prompt: AnyPrompt, continuation: str | Sequence[int], **options: Any
    ) -> Score:
        """Return a score, as `score` does, without blocking the event loop."""
        request = replace(self._asked(prompt, None, options), continuation=continuation)
        async with contextlib.aclosing(self.arun_many([request])) as told:
            return _raised([each async for _, each in told][-1], Score)


def _raised(told: Told, kind: type[T]) -> T:
    if isinstance(told, EvaError):
        raise told
    assert isinstance(told, kind)
    return told


def completion_of(steps: Sequence[Step]) -> Completion:
    """Join the steps of a whole answer."""
    last = steps[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    text = "".join(step.text for step in steps)
    thought = "".join(step.reasoning or "" for step in steps)
    calls = last.tool_calls
    return Completion(text, last.finish_reason, last.usage, thought, *dispute(steps), calls)
