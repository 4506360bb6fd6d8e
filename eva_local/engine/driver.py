"""A thread that takes the steps for answers that event loops await."""

import asyncio
import atexit
import functools
import logging
import threading
from collections.abc import AsyncGenerator, Mapping

from eva_local.engine.request import Ticket, Told
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import ClosedError, EvaError, passed_on
from eva_local.types import Step

log = logging.getLogger("eva_local")


class Driver:
    """Steps a scheduler in a thread of its own, from the first answer that somebody awaits on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._changed = threading.Condition()
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
                ticket.sink = functools.partial(hear, number)
                self._begin(ticket)
            while left:
                number, told = await heard.get()
                yield number, told
                left -= not isinstance(told, Step) or told.finish_reason is not None
        finally:
            for ticket in tickets.values():
                self._scheduler.cancel(ticket)

    def close(self) -> None:
        """End the thread after its step; who awaits an answer is told ClosedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._fail(ClosedError())
        atexit.unregister(self.close)

    def _begin(self, ticket: Ticket) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError()
            self._scheduler.submit(ticket)
            self._asked.add(ticket)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eva-local", daemon=True)
                self._thread.start()
                # A program that ends in mid-answer must not take the models from under a step.
                atexit.register(self.close)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._awaited())
                if self._closed:
                    return
            try:
                self._scheduler.step()
            except Exception as error:
                # Nobody may wait for ever, whatever it was.
                if not isinstance(error, EvaError):
                    log.exception("a step failed")
                self._fail(error)

    def _awaited(self) -> bool:
        self._asked = {ticket for ticket in self._asked if not ticket.done}
        return bool(self._asked)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            failed, self._asked = self._asked, set()
        for ticket in failed:
            if not ticket.done:
                self._scheduler.cancel(ticket)
                ticket.sink(passed_on(error))
