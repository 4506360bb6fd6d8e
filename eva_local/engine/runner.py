"""Who takes the steps for many requests: their caller, or a thread where event loops await them."""

import asyncio
import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean

from eva_local.engine.request import Request, Ticket, Told
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import EvaError, passed_on
from eva_local.types import Step

log = logging.getLogger("eva_local")

# Where there is no request at the moment, and none under way.
_PAUSE_S = 0.005
# More that wait where all are known, and members must know what prompts share before they read it.
_AHEAD = 8


class Runner:
    """Takes requests, drawn as there are slots and numbered in their order, through a scheduler.

    None among them stands for none at the moment, and has no number. `ticket_of` says why one
    cannot be answered.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        requests: Iterable[Request | None],
        ticket_of: Callable[[Request], Ticket | EvaError],
    ) -> None:
        self._scheduler = scheduler
        self._requests = iter(requests)
        engine, known = scheduler.engine, scheduler.gapless or isinstance(requests, Sequence)
        is_shared = known and any(map(engine.needs_snapshots, engine.panel().members))
        self._ahead = _AHEAD if is_shared else 0
        self._count = 0
        self._ticket_of = ticket_of
        self._running: dict[int, Ticket] = {}
        # Another thread may add to it at any moment.
        self._told: deque[tuple[int, Told]] = deque()
        self._drawn = False

    @property
    def done(self) -> bool:
        """Whether there is no request left, and none under way."""
        return self._drawn and not self._running and not self._told

    @property
    def share_read(self) -> float | None:
        """The share that is read of the prompts under way, from 0 to 1; None where all write."""
        tickets = list(self._running.values())[: self._scheduler.n_slots]
        if any(not each.done and (each.sequence is None or each.reads) for each in tickets):
            return fmean(ticket.share_read for ticket in tickets)
        return None

    def step(self) -> list[tuple[int, Told]]:
        """Take a step for all that is under way; return what was told, errors too, by number."""
        self.draw()
        if not (self._running or self._told or self._drawn):
            time.sleep(_PAUSE_S)
        if self._running and not self._told:
            # Another thread may take the step: it tells first, and then says that all is done.
            self._scheduler.step(unless=lambda: bool(self._told))
        told = [self._told.popleft() for _ in range(len(self._told))]
        for number, each in told:
            if not isinstance(each, Step) or each.finish_reason is not None:
                self._running.pop(number, None)
        return told

    def close(self) -> None:
        """Cancel what is under way."""
        for ticket in self._running.values():
            self._scheduler.cancel(ticket)
        self._running.clear()
        self._told.clear()
        self._drawn = True

    def draw(self) -> None:
        """Queue as many requests as slots are free, or one; and some ahead, see `_AHEAD`."""
        if self._drawn:
            return
        free = self._scheduler.n_slots - self._scheduler.n_running - self._scheduler.n_waiting
        for _ in range(max(free + self._ahead, 0 if self._running else 1)):
            try:
                request = next(self._requests)
            except StopIteration:
                self._drawn = True
                return
            if request is None:
                return
            number, self._count = self._count, self._count + 1
            ticket = self._ticket_of(request)
            if isinstance(ticket, EvaError):
                self._told.append((number, ticket))
                continue
            ticket.sink = partial(self._hear, number)
            self._running[number] = self._scheduler.submit(ticket)

    def _hear(self, number: int, told: Told) -> None:
        self._told.append((number, told))


class Driver:
    """Steps a scheduler in a thread of its own, as long as somebody awaits an answer."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._asked: set[Ticket] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def run(self, tickets: Mapping[int, Ticket]) -> AsyncGenerator[tuple[int, Told], None]:
        """Submit tickets, and yield what is told of each by its number; closing cancels all."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[tuple[int, Told]] = asyncio.Queue()

        def hear(number: int, told: Told) -> None:
            try:
                loop.call_soon_threadsafe(heard.put_nowait, (number, told))
            except RuntimeError:
                # The loop is closed, so that nobody listens any more.
                self._scheduler.cancel(tickets[number])

        left = len(tickets)
        try:
            for number, ticket in tickets.items():
                ticket.sink = partial(hear, number)
                self._begin(ticket)
            while left:
                number, told = await heard.get()
                yield number, told
                left -= not isinstance(told, Step) or told.finish_reason is not None
        finally:
            for ticket in tickets.values():
                self._scheduler.cancel(ticket)

    def close(self) -> None:
        """End the thread after its step; the scheduler tells those who await an answer."""
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is not None:
            thread.join()

    def _begin(self, ticket: Ticket) -> None:
        with self._lock:
            self._asked.add(self._scheduler.submit(ticket))
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="eva-local", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # The next request tries again.
                    raise passed_on(error) from error
                self._thread = thread
                # A program that ends in mid-answer must not take the models from under a step.
                atexit.register(self.close)

    def _run(self) -> None:
        while asked := self._awaited():
            try:
                self._scheduler.step()
            except BaseException as error:  # a thread of its own
                # Nobody may wait for ever, whatever it was.
                if not isinstance(error, EvaError):
                    log.exception("a step failed")
                for ticket in asked:
                    if not ticket.done:
                        self._scheduler.cancel(ticket)
                        ticket.sink(passed_on(error))

    def _awaited(self) -> set[Ticket]:
        """Return what there is to step for; without any, the thread is over."""
        with self._lock:
            self._asked = {ticket for ticket in self._asked if not ticket.done}
            if self._asked and not self._closed:
                return self._asked.copy()
            self._thread = None
            atexit.unregister(self.close)
            return set()
