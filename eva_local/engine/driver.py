"""A thread that takes the steps for answers that event loops await."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import AsyncGenerator

from eva_local.engine.scheduler import Request, Scheduler
from eva_local.errors import ClosedError, EvaError, passed_on
from eva_local.types import Step

log = logging.getLogger("eva_local")


class Driver:
    """Steps a scheduler in a thread of its own, as long as somebody awaits an answer.

    The thread begins with the first answer. It takes turns with all others who step.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Drive `scheduler`, later."""
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._asked: set[Request] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def answer(self, request: Request) -> AsyncGenerator[Step, None]:
        """Submit a request, and yield its steps in the event loop that runs.

        Closing the iterator, or cancelling the task that awaits it, cancels the request.
        Raises the error that ended it.
        """
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | EvaError] = asyncio.Queue()

        def sink(told: Step | EvaError) -> None:
            try:
                loop.call_soon_threadsafe(steps.put_nowait, told)
            except RuntimeError:
                # The loop is closed, so that nobody listens any more.
                self._scheduler.cancel(request)

        request.sink = sink
        self._begin(request)
        try:
            while True:
                told = await steps.get()
                if isinstance(told, EvaError):
                    raise told
                yield told
                if told.finish_reason is not None:
                    return
        finally:
            self._scheduler.cancel(request)

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

    def _begin(self, request: Request) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError()
            self._scheduler.submit(request)
            self._asked.add(request)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eva-local", daemon=True)
                self._thread.start()
                # A program that ends in mid-answer must not take the models from under a step.
                atexit.register(self.close)

    def _run(self) -> None:
        while self._wait():
            try:
                self._scheduler.step()
            except EvaError as error:
                self._fail(error)
            except Exception as error:
                # Nobody may wait for ever, whatever it was.
                log.exception("a step failed")
                self._fail(passed_on(error))

    def _wait(self) -> bool:
        """Wait until somebody awaits an answer; return False where all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._awaited())
            return not self._closed

    def _awaited(self) -> bool:
        self._asked = {request for request in self._asked if not request.done}
        return bool(self._asked)

    def _fail(self, error: EvaError) -> None:
        """Tell all who await an answer what went wrong."""
        with self._changed:
            failed, self._asked = self._asked, set()
        for request in failed:
            if not request.done:
                self._scheduler.cancel(request)
                request.sink(passed_on(error))
