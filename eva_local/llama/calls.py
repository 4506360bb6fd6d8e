"""Calls of C code that calls back: what is raised meanwhile is kept until the call has returned.

ctypes drops what a callback raises. A signal that comes while C code runs is handled at the first
instruction of the next callback, before any `try` there, so its handler must wait.
"""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

_under_way: "list[NativeCall]" = []
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class NativeCall:
    """A call of C code; `lines` are what the library says in the meantime."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.thread = threading.get_ident()
        self._signals: deque[Callable[[], object]] = deque()
        self._error: BaseException | None = None

    def attempt(self, act: Callable[..., object], *arguments: object) -> bool:
        """Do what a callback must do; return False where that, or a signal, ends the call."""
        if self._error is None:
            try:
                self._handle_signals()
                act(*arguments)
            except BaseException as error:  # noqa: BLE001  # raised by `finish`
                self._error = error
        return self._error is None

    def finish(self) -> None:
        """Raise what was kept."""
        self._handle_signals()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Let a signal wait until its handler may raise; all are handled in the main thread."""
        number = getattr(signal, name, None)
        handler = None if number is None else signal.getsignal(number)
        if not callable(handler) or threading.current_thread() is not threading.main_thread():
            yield
            return
        assert number is not None

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(partial(handler, number, None))

        signal.signal(number, note)
        try:
            yield
        finally:
            signal.signal(number, handler)

    def _handle_signals(self) -> None:
        while self._signals:
            self._signals.popleft()()


@contextlib.contextmanager
def calling() -> Iterator[NativeCall]:
    """Call C code within the block; raise at its end what callbacks and signals would have."""
    call = NativeCall()
    # Within another call signals wait for the end of that one.
    inner = any(other.thread == call.thread for other in _under_way.copy())
    try:
        with contextlib.ExitStack() as held:
            for name in () if inner else _SIGNALS:
                held.enter_context(call.holding(name))
            _under_way.append(call)
            try:
                yield call
            finally:
                _under_way.remove(call)
    finally:
        call.finish()


def hear(act: Callable[[str], None], line: str) -> None:
    """Tell `act`, and all calls that are under way, a line that the library says."""
    here = threading.get_ident()
    for call in _under_way.copy():
        call.lines.append(line)
    mine = next((call for call in reversed(_under_way) if call.thread == here), None)
    if mine is None:
        act(line)
    else:
        mine.attempt(act, line)
