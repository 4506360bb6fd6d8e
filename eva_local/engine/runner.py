"""Many requests of one caller: drawn as slots become free, and told of with their numbers."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from eva_local.engine.request import Request, Ticket, Told
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import EvaError
from eva_local.types import Step

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
    def reading(self) -> bool:
        """Whether a request under way has no slot yet, or is still at its prompt."""
        tickets = list(self._running.values())[: self._scheduler.n_slots]
        return any(not each.done and (each.sequence is None or each.reads) for each in tickets)

    @property
    def share_read(self) -> float:
        """The share that is read of the prompts under way, from 0 to 1."""
        tickets = list(self._running.values())[: self._scheduler.n_slots]
        shares = [ticket.share_read for ticket in tickets]
        return sum(shares) / len(shares) if shares else 1.0

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
