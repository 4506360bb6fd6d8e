"""Calls of C code that calls back: what is raised meanwhile is kept until the call has returned.

ctypes drops what a callback raises. A signal that comes while C code runs is handled at the first
instruction of the next callback, before any `try` there, so its handler must wait.
"""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

_under_way: "list[NativeCall]" = []
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class NativeCall:
    """A call of C code; `lines` are what the library says in the meantime."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.thread = threading.get_ident()
        self._signals: deque[int] = deque()
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
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

    def hold_signals(self, held: contextlib.ExitStack) -> None:
        """Let signals wait, as long as `held` is open, until their handlers may raise."""
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._note)
                held.callback(signal.signal, number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.popleft()
            self._handlers[number](number, None)


@contextlib.contextmanager
def calling() -> Iterator[NativeCall]:
    """Call C code within the block; raise at its end what callbacks and signals would have."""
    call = NativeCall()
    # Within another call signals wait for the end of that one; the main thread handles them all.
    inner = any(other.thread == call.thread for other in _under_way.copy())
    is_main = threading.current_thread() is threading.main_thread()
    try:
        with contextlib.ExitStack() as held:
            if is_main and not inner:
                call.hold_signals(held)
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
