"""Many texts over one engine: a ticket waits, takes a slot, and leaves it to the next."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice

from eva_local.cache.context import common
from eva_local.engine.engine import Engine
from eva_local.engine.request import Ticket, Told
from eva_local.errors import ClosedError, EvaError, passed_on
from eva_local.llama.backend import calling

log = logging.getLogger("eva_local")

# Prompts that wait among which a common beginning is looked for.
_LOOKED_AT = 32


class Scheduler:
    """A queue before `n_slots` texts that are written side by side.

    All methods may be called by any thread. One thread steps at a time, for all requests. What
    a step finds out, it tells their sinks, in that thread; sinks must be quick and not raise
    where others wait for the same step.
    """

    def __init__(self, engine: Engine, n_slots: int = 1) -> None:
        """Use the slots 0 to `n_slots` - 1 of `engine`, which nobody else may use."""
        self.engine = engine
        self.n_slots = n_slots
        #: Whether texts move together when nothing waits. llama.cpp decodes neighbours up to
        #: twice as fast, but what the caches hold of texts that are over is lost.
        self.gapless = False
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        # How long the prompts were that each slot read last, by member, and when it was in use.
        self._read: dict[int, dict[int, int]] = {}
        self._used: dict[int, int] = {}
        self._clock = count()
        self._changed = threading.Condition()
        # Whether a thread is in a step, and how many have ended.
        self._at_work, self._n_steps = False, 0
        self._closed = False

    @property
    def n_waiting(self) -> int:
        """How many tickets have no slot yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """How many slots are taken."""
        return sum(not ticket.done for ticket in list(self._running.values()))

    def submit(self, ticket: Ticket) -> Ticket:
        """Put a ticket at the end of the queue; raise ClosedError where all is over."""
        with self._changed:
            if self._closed:
                raise ClosedError()
            self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a ticket: its sink is told nothing more, and the next step has its slot free."""
        with self._changed:
            ticket.done = True
        self._leaves_queue(ticket)

    def step(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Fill free slots, and take every text one step further.

        What goes wrong with a text ends that text: its sink is told, and its slot is free for
        another, which reads all of its prompt. So it is where a member cannot decode.
        Where another thread is at it, wait for the end of that step instead. Nothing is done where
        what was hoped for is there already, as `unless` says.
        Raises ClosedError after `close`, and what a sink raises.
        """
        mine = False
        try:
            with self._changed:
                if unless():
                    return
                if self._at_work:
                    before = self._n_steps
                    self._changed.wait_for(lambda: self._n_steps > before)
                    return
                if self._closed:
                    raise ClosedError()
                mine = self._at_work = True
            # A signal in the middle would take a step from another text, or its slot.
            with calling():
                self._advance()
        finally:
            if mine:
                with self._changed:
                    self._at_work = False
                    self._n_steps += 1
                    self._changed.notify_all()

    def close(self) -> None:
        """Wait for the end of a step, and end all requests, whose sinks are told ClosedError."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._at_work)
            asked = [*self._waiting, *self._running.values()]
            self._waiting.clear()
            self._running = {}
        for ticket in asked:
            if not ticket.done:
                _tell(ticket, ClosedError(), last=True)

    def _advance(self) -> None:
        self._running = {slot: held for slot, held in self._running.items() if not held.done}
        self._admit()
        self._close_gap()
        # Answers go first into a batch, prompts fill the rest in the order of their coming.
        running = sorted(self._running.items(), key=lambda item: item[1].reads)
        sequences = [ticket.sequence for _, ticket in running if ticket.sequence is not None]
        steps = self.engine.step(sequences) if sequences else []
        self._used |= dict.fromkeys(self._running, next(self._clock))
        # What a sink may raise leaves the slots in order.
        at_work = zip(running, sequences, strict=True)
        self._running = {slot: held for (slot, held), text in at_work if not text.finished}
        for (_, ticket), sequence, steps_of_it in zip(running, sequences, steps, strict=True):
            told = [sequence.error] if sequence.error else steps_of_it
            for number, each in enumerate(told, 1):
                if not ticket.done:
                    _tell(ticket, each, last=sequence.finished and number == len(told))

    def _admit(self) -> None:
        free = [slot for slot in range(self.n_slots) if slot not in self._running]
        while free and (ticket := self._next()) is not None:
            try:
                slot = self._best(free, ticket)
                ticket.shared = self._shared(ticket)
                ticket.sequence = self.engine.begin(ticket, slot)
            except Exception as error:
                # What is wrong with a request ends nobody else's.
                if not isinstance(error, EvaError):
                    log.exception("an answer could not begin")
                _tell(ticket, error if isinstance(error, EvaError) else passed_on(error), last=True)
                continue
            free.remove(slot)
            self._running[slot] = ticket
            for member, prompt in ticket.prompt_of.items():
                self._read.setdefault(slot, {})[member] = len(prompt)

    def _close_gap(self) -> None:
        highest = max(self._running, default=-1)
        if not self.gapless or self._waiting or highest < len(self._running):
            return
        free = next(slot for slot in range(highest) if slot not in self._running)
        self.engine.move(highest, free)
        self._running[free] = self._running.pop(highest)

    def _best(self, free: Sequence[int], ticket: Ticket) -> int:
        """Return the slot whose text is missed least; the lowest of several.

        A beginning that another slot holds is copied. Low slots keep the sequences in use
        together, which llama.cpp decodes fastest; where all texts move together, nobody comes
        back to what they leave.
        """
        if len(free) == 1:
            return free[0]
        prompts = ticket.prompt_of
        held = {slot: sum(self.engine.held(prompts, [slot]).values()) for slot in free}
        if self.gapless:
            return max(free, key=held.__getitem__)
        lost = {slot: self.engine.lost(prompts, slot) for slot in free}
        if ongoing := [slot for slot in free if held[slot] and self._goes_on(slot, prompts)]:
            return max(ongoing, key=held.__getitem__)
        if empty := [slot for slot in free if not lost[slot]]:
            return max(empty, key=held.__getitem__)
        if close := [slot for slot in free if held[slot] > lost[slot]]:
            return min(close, key=lost.__getitem__)
        return min(free, key=lambda slot: self._used.get(slot, -1))

    def _goes_on(self, slot: int, prompts: Mapping[int, Sequence[int]]) -> bool:
        # The last token of a prompt is decoded again, for its logits.
        before = self._read.get(slot, {})
        held = self.engine.held(prompts, [slot])
        return all(held[member] + 1 >= before.get(member, 0) for member in prompts)

    def _next(self) -> Ticket | None:
        """Take the first ticket that gains nothing by waiting for what is being read."""
        with self._changed:
            first = list(islice(self._waiting, self.n_slots))
        for ticket in first:
            if not self._is_being_read(ticket.prompt_of) and self._leaves_queue(ticket):
                return ticket
        return None

    def _leaves_queue(self, ticket: Ticket) -> bool:
        """Take a ticket out of the queue; False where it was cancelled in the meantime."""
        with self._changed:
            waits = ticket in self._waiting
            if waits:
                self._waiting.remove(ticket)
            return waits

    def _shared(self, ticket: Ticket) -> dict[int, int]:
        """Return the beginning of a prompt that saves those who wait most, where it must be told.

        In tokens, 0 for none, by the members who will hold it only where they took a snapshot.
        """
        with self._changed:
            others = [each.prompt_of for each in islice(self._waiting, _LOOKED_AT)]
        found: dict[int, int] = {}
        for member, prompt in ticket.prompt_of.items():
            if self.engine.needs_snapshots(member):
                begun = prompt[:-1]
                same = [common(begun, each[member]) for each in others if member in each]
                same = [length for length in same if length >= self.engine.worth_copying(member)]
                saved = {length: length * sum(each >= length for each in same) for length in same}
                found[member] = max(saved, key=saved.__getitem__, default=0)
        return found

    def _is_being_read(self, prompts: Mapping[int, Sequence[int]]) -> bool:
        """Return whether the beginning of the prompts will soon be there to copy."""
        readers = [ticket for ticket in self._running.values() if ticket.reads]
        for member, prompt in prompts.items():
            soon = 0
            for reader in readers:
                same = common(reader.prompt_of.get(member, ()), prompt)
                will_be_held = reader.shared.get(member, same)
                soon = max(soon, will_be_held if will_be_held <= same else 0)
            worth = self.engine.worth_copying(member)
            if soon < worth:
                continue
            held = self.engine.held({member: prompt}, range(self.n_slots))
            if soon - held[member] >= worth:
                return True
        return False


def _tell(ticket: Ticket, told: Told, *, last: bool) -> None:
    """Tell a sink; who sees that a ticket is done has been told all of it."""
    try:
        ticket.sink(told)
    finally:
        if last:
            # Nothing of a text is kept: each of the two refers to the other.
            ticket.done, ticket.sequence = True, None
