"""Many texts over one engine: a request waits, takes a place, and leaves it to the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from eva_local.context import common
from eva_local.decision import Judge
from eva_local.engine import Draft, Engine
from eva_local.errors import EvaError
from eva_local.records import Sampling, Step
from eva_local.sampling import Chooser

# Told each step of an answer, or the error that ended it.
Sink = Callable[[Step | EvaError], None]


@dataclass(slots=True, eq=False)
class Request:
    """An answer that was asked for; `prompts` are each member's own tokens.

    With `alone`, the place of a member, it writes alone, and `prompts` are its prompt only. For
    the other fields see `Engine.begin`.
    """

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    sink: Sink
    traced: bool = False
    n_top: int = 0
    chooser: Chooser | None = None
    judge: Judge | None = None
    alone: int | None = None
    draft: Draft | None = None
    #: Whether nothing more will come: the answer ended, failed, or was cancelled.
    done: bool = False

    @property
    def prompt_of(self) -> dict[int, Sequence[int]]:
        """The prompts by the places of their members."""
        members = range(len(self.prompts)) if self.alone is None else [self.alone]
        return dict(zip(members, self.prompts, strict=True))

    @property
    def reads(self) -> bool:
        """Whether it is in a place and still at its prompt."""
        return self.draft is not None and self.draft.steps == 0

    @property
    def share_read(self) -> float:
        """The share of the prompts that the members have read, from 0 to 1."""
        return 0.0 if self.draft is None else self.draft.share_read


class Scheduler:
    """A queue before `n_places` texts that are written side by side.

    `submit`, `cancel` and `wait` may be called by any thread, `step` by one at a time. What
    `step` finds out, it tells the sinks of the requests, in its own thread.
    """

    def __init__(self, engine: Engine, n_places: int = 1) -> None:
        """Use the slots 0 to `n_places` - 1 of `engine`, which nobody else may use."""
        self._engine = engine
        self.n_places = n_places
        #: Whether texts move together when nothing waits. llama.cpp decodes neighbours up to
        #: twice as fast, but what the caches hold of texts that are over is lost.
        self.gapless = False
        self._waiting: deque[Request] = deque()
        self._places: dict[int, Request] = {}
        self._changed = threading.Condition()

    @property
    def chunk(self) -> int | None:
        """How many tokens of prompts a step may read beside answers; None fills the batches."""
        return self._engine.chunk

    @chunk.setter
    def chunk(self, chunk: int | None) -> None:
        self._engine.chunk = chunk

    @property
    def n_waiting(self) -> int:
        """How many requests have no place yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """How many places are taken."""
        return sum(not request.done for request in list(self._places.values()))

    def submit(self, request: Request) -> Request:
        """Put a request at the end of the queue."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """End a request: its sink is told nothing more, and the next step has its place free."""
        with self._changed:
            request.done = True
            if request in self._waiting:
                self._waiting.remove(request)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for something to do, at most `timeout` seconds; return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._waiting or self._places), timeout)

    def step(self) -> None:
        """Fill free places, and take every text one symbol further.

        Raises ModelError where a member cannot decode; the requests then keep their places.
        """
        self._places = {slot: held for slot, held in self._places.items() if not held.done}
        self._admit()
        self._close_gap()
        # Answers go first into a batch, prompts fill the rest in the order of their coming.
        running = sorted(self._places.items(), key=lambda item: item[1].reads)
        drafts = [request.draft for _, request in running if request.draft is not None]
        steps = self._engine.step(drafts) if drafts else []
        # What a sink may raise leaves the places in order.
        self._places = {slot: held for slot, held in running if not _is_finished(held)}
        for (_, request), draft, step in zip(running, drafts, steps, strict=True):
            told = draft.error or step
            if told is not None and not request.done:
                request.done = draft.finished
                request.sink(told)

    def _admit(self) -> None:
        free = [slot for slot in range(self.n_places) if slot not in self._places]
        while free and (request := self._next()) is not None:
            slot = self._best(free, request)
            try:
                request.draft = self._engine.begin(
                    request.prompts,
                    request.sampling,
                    slot,
                    traced=request.traced,
                    n_top=request.n_top,
                    chooser=request.chooser,
                    judge=request.judge,
                    alone=request.alone,
                )
            except EvaError as error:
                request.done = True
                request.sink(error)
                continue
            free.remove(slot)
            self._places[slot] = request

    def _close_gap(self) -> None:
        """Move the text in the highest slot into the lowest free one."""
        highest = max(self._places, default=-1)
        if not self.gapless or self._waiting or highest < len(self._places):
            return
        free = next(slot for slot in range(highest) if slot not in self._places)
        self._engine.move(highest, free)
        self._places = {
            free if slot == highest else slot: held for slot, held in self._places.items()
        }

    def _best(self, free: Sequence[int], request: Request) -> int:
        """Return the slot that holds most of the prompts; the lowest of several.

        Low slots keep the sequences in use together, which llama.cpp decodes fastest.
        """
        if len(free) == 1:
            return free[0]
        return max(free, key=lambda slot: self._held(request, [slot]))

    def _next(self) -> Request | None:
        """Take the first request that gains nothing by waiting for what is being read."""
        with self._changed:
            for place, request in enumerate(islice(self._waiting, self.n_places)):
                if not self._is_being_read(request.prompt_of):
                    del self._waiting[place]
                    return request
        return None

    def _held(self, request: Request, slots: Iterable[int]) -> int:
        return sum(self._engine.held(request.prompt_of, slots).values())

    def _is_being_read(self, prompts: Mapping[int, Sequence[int]]) -> bool:
        """Return whether the beginning of the prompts will soon be there to copy."""
        readers = [request.prompt_of for request in self._places.values() if request.reads]
        if not readers:
            return False
        held = self._engine.held(prompts, range(self.n_places))
        return any(
            common(theirs[member], prompt) - held[member] >= self._engine.worth_copying(member)
            for theirs in readers
            for member, prompt in prompts.items()
            if member in theirs
        )


def _is_finished(request: Request) -> bool:
    return request.draft is not None and request.draft.finished
