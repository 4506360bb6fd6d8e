"""Many texts over one engine: a request waits, takes a place, and leaves it to the next."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from eva_local.cache.context import as_row, common
from eva_local.engine.engine import Engine
from eva_local.engine.sampling import ChooserMaker
from eva_local.engine.sequence import TextSequence
from eva_local.errors import ClosedError, EvaError, passed_on
from eva_local.fusion.fuser import Fuser
from eva_local.llama.calls import calling
from eva_local.types import Sampling, Step

log = logging.getLogger("eva_local")

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
    sink: Sink = lambda _: None
    traced: bool = False
    n_top: int = 0
    chooser: ChooserMaker | None = None
    judge: Fuser | None = None
    alone: int | None = None
    judged: int = 0
    sequence: TextSequence | None = None
    #: Whether nothing more will come: the answer ended, failed, or was cancelled.
    done: bool = False

    def __post_init__(self) -> None:
        """Let the prompts be compared quickly with what the caches hold."""
        self.prompts = [as_row(prompt) for prompt in self.prompts]

    @property
    def prompt_of(self) -> dict[int, Sequence[int]]:
        """The prompts by the places of their members."""
        members = range(len(self.prompts)) if self.alone is None else [self.alone]
        return dict(zip(members, self.prompts, strict=True))

    @property
    def reads(self) -> bool:
        """Whether it is in a place and still at its prompt."""
        return self.sequence is not None and self.sequence.steps == 0 and not self.done

    @property
    def share_read(self) -> float:
        """The share of the prompts that the members have read, from 0 to 1."""
        return 0.0 if self.sequence is None else self.sequence.share_read


@dataclass(slots=True, eq=False)
class _Turn:
    """A thread's time to step."""

    ended: bool = False
    error: Exception | None = None


class Scheduler:
    """A queue before `n_slots` texts that are written side by side.

    All methods may be called by any thread. One thread steps at a time, for all requests. What
    a step finds out, it tells their sinks, in that thread; sinks must be quick and not raise
    where others wait for the same step.
    """

    def __init__(self, engine: Engine, n_slots: int = 1) -> None:
        """Use the slots 0 to `n_slots` - 1 of `engine`, which nobody else may use."""
        self._engine = engine
        self.n_slots = n_slots
        #: Whether texts move together when nothing waits. llama.cpp decodes neighbours up to
        #: twice as fast, but what the caches hold of texts that are over is lost.
        self.gapless = False
        self._waiting: deque[Request] = deque()
        self._places: dict[int, Request] = {}
        # How long the prompts were that each slot read last, by member, and when it was in use.
        self._read: dict[int, dict[int, int]] = {}
        self._used: dict[int, int] = {}
        self._clock = count()
        self._changed = threading.Condition()
        self._turn: _Turn | None = None
        self._closed = False

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
        """Put a request at the end of the queue; raise ClosedError where all is over."""
        with self._changed:
            self._refuse_closed()
            self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request: its sink is told nothing more, and the next step has its place free."""
        with self._changed:
            request.done = True
        self._leaves_queue(request)

    def step(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Fill free places, and take every text one symbol further.

        What goes wrong with a text ends that text: its sink is told, and its place is free for
        another, which reads all of its prompt. So it is where a member cannot decode.
        Where another thread is at it, wait for the end of that step instead, and raise what it
        raised. Nothing is done where what was hoped for is there already, as `unless` says.
        Raises ClosedError after `close`, and what a sink raises.
        """
        mine = _Turn()
        try:
            if self._takes(mine, unless):
                # A signal in the middle would take a step from another text, or its place.
                with calling():
                    self._advance()
        except Exception as error:
            mine.error = error
            raise
        finally:
            self._end(mine)

    def close(self) -> None:
        """Wait for the end of a step, and end all requests, whose sinks are told ClosedError."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._turn is None)
            asked = [*self._waiting, *self._places.values()]
            self._waiting.clear()
            self._places = {}
        for request in asked:
            if not request.done:
                request.sink(ClosedError())
                request.done = True

    def _takes(self, mine: _Turn, unless: Callable[[], bool]) -> bool:
        """Return whether the turn was taken; where another has it, wait until it ends."""
        with self._changed:
            if unless():
                return False
            theirs = self._turn
            if theirs is None:
                self._refuse_closed()
                self._turn = mine
                return True
            self._changed.wait_for(lambda: theirs.ended)
        if theirs.error is not None:
            raise passed_on(theirs.error)
        return False

    def _end(self, mine: _Turn) -> None:
        with self._changed:
            mine.ended = True
            if self._turn is mine:
                self._turn = None
                self._changed.notify_all()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClosedError()

    def _advance(self) -> None:
        self._places = {slot: held for slot, held in self._places.items() if not held.done}
        self._admit()
        self._close_gap()
        # Answers go first into a batch, prompts fill the rest in the order of their coming.
        running = sorted(self._places.items(), key=lambda item: item[1].reads)
        sequences = [request.sequence for _, request in running if request.sequence is not None]
        steps = self._engine.step(sequences) if sequences else []
        self._used |= dict.fromkeys(self._places, next(self._clock))
        # What a sink may raise leaves the places in order.
        self._places = {slot: held for slot, held in running if not _is_finished(held)}
        for (_, request), sequence, step in zip(running, sequences, steps, strict=True):
            told = sequence.error or step
            if told is not None and not request.done:
                _tell(request, told, last=sequence.finished)

    def _admit(self) -> None:
        free = [slot for slot in range(self.n_slots) if slot not in self._places]
        while free and (request := self._next()) is not None:
            try:
                slot = self._best(free, request)
                request.sequence = self._begin(request, slot)
            except EvaError as error:
                _tell(request, error, last=True)
                continue
            except Exception as error:
                # What is wrong with a request ends nobody else's.
                log.exception("an answer could not begin")
                _tell(request, passed_on(error), last=True)
                continue
            free.remove(slot)
            self._places[slot] = request
            lengths = {member: len(prompt) for member, prompt in request.prompt_of.items()}
            self._read[slot] = self._read.get(slot, {}) | lengths

    def _begin(self, request: Request, slot: int) -> TextSequence:
        return self._engine.begin(
            request.prompts,
            request.sampling,
            slot,
            traced=request.traced,
            n_top=request.n_top,
            chooser=request.chooser,
            judge=request.judge,
            alone=request.alone,
            judged=request.judged,
        )

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
        """Return the slot whose text is missed least; the lowest of several.

        That is one whose text goes on, or is written anew: the prompts begin with all of its
        own. Else it is an empty one; else one that holds more of the prompts than it would lose,
        and loses least; else the one that was not in use for longest. A beginning that another
        slot holds is copied. Low slots keep the sequences in use together, which llama.cpp
        decodes fastest; where all texts move together, nobody comes back to what they leave.
        """
        if len(free) == 1:
            return free[0]
        prompts = request.prompt_of
        held = {slot: sum(self._engine.held(prompts, [slot]).values()) for slot in free}
        if self.gapless:
            return max(free, key=held.__getitem__)
        lost = {slot: self._engine.lost(prompts, slot) for slot in free}
        if ongoing := [slot for slot in free if held[slot] and self._goes_on(slot, prompts)]:
            return max(ongoing, key=held.__getitem__)
        if empty := [slot for slot in free if not lost[slot]]:
            return max(empty, key=held.__getitem__)
        if close := [slot for slot in free if held[slot] > lost[slot]]:
            return min(close, key=lost.__getitem__)
        return min(free, key=lambda slot: self._used.get(slot, -1))

    def _goes_on(self, slot: int, prompts: Mapping[int, Sequence[int]]) -> bool:
        """Return whether prompts begin with those that were last read in a slot."""
        before = self._read.get(slot, {})
        held = self._engine.held(prompts, [slot])
        return all(held[member] >= before.get(member, 0) for member in prompts)

    def _next(self) -> Request | None:
        """Take the first request that gains nothing by waiting for what is being read."""
        with self._changed:
            first = list(islice(self._waiting, self.n_slots))
        for request in first:
            if not self._is_being_read(request.prompt_of) and self._leaves_queue(request):
                return request
        return None

    def _leaves_queue(self, request: Request) -> bool:
        """Take a request out of the queue; False where it was cancelled in the meantime."""
        with self._changed:
            waits = request in self._waiting
            if waits:
                self._waiting.remove(request)
            return waits

    def _is_being_read(self, prompts: Mapping[int, Sequence[int]]) -> bool:
        """Return whether the beginning of the prompts will soon be there to copy."""
        readers = [request.prompt_of for request in self._places.values() if request.reads]
        for member, prompt in prompts.items():
            theirs = (reader[member] for reader in readers if member in reader)
            soon = max((common(each, prompt) for each in theirs), default=0)
            worth = self._engine.worth_copying(member)
            if soon < worth:
                continue
            held = self._engine.held({member: prompt}, range(self.n_slots))
            if soon - held[member] >= worth:
                return True
        return False


def _is_finished(request: Request) -> bool:
    return request.sequence is not None and request.sequence.finished


def _tell(request: Request, told: Step | EvaError, *, last: bool) -> None:
    """Tell a sink; who sees that a request is done has been told all of it."""
    try:
        request.sink(told)
    finally:
        if last:
            request.done = True
