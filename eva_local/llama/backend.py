"""The llama.cpp library: imported once, its messages kept from stderr, and what it can use.

What is raised while its code calls back is kept until the call has returned: ctypes drops what a
callback raises. A signal that comes while C code runs is handled at the first instruction of the
next callback, before any `try` there, so its handler must wait.
"""

import contextlib
import ctypes
import functools
import logging
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any

log = logging.getLogger("eva_local")

_under_way: "list[NativeCall]" = []
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# llama.cpp keeps only the pointer: the object must live as long as the process.
_callbacks: list[Any] = []
_LastWords = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_ERROR = 4  # ggml's GGML_LOG_LEVEL_ERROR: not all errors have such a word
# How long threads that wait for each other keep a core busy, in GNU's OpenMP (turns of a loop) and
# LLVM's (ms). Without any such time small models take twice as long on an idle machine; with the
# usual, longer one, many times as long on a busy one (docs/bench.md).
_WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


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
            held.callback(_under_way.remove, call)
            yield call
    finally:
        call.finish()


@functools.cache
def library() -> ModuleType:
    """Import llama_cpp once, with its messages sent to our log instead of stderr."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # They are read when the library is loaded.
        for key, value in _WAITING.items():
            os.environ.setdefault(key, value)
    import llama_cpp.llama_cpp as llama

    callback, end = llama.llama_log_callback(_keep_line), _LastWords(_give_up)
    _callbacks.extend((callback, end))
    llama.llama_log_set(callback, None)
    llama._lib.ggml_set_abort_callback(end)
    with calling():
        llama.llama_backend_init()
    return llama


def can_offload() -> bool:
    """Return whether this build of llama.cpp can use a device other than the CPU."""
    return bool(library().llama_supports_gpu_offload())


def free_on_gpus() -> list[int]:
    """Return how many bytes are free on each GPU, as `main_gpu` counts them."""
    ggml, found = library()._lib, dict[int, list[int]]()
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    for index in range(ggml.ggml_backend_dev_count()):
        device = ctypes.c_void_p(ggml.ggml_backend_dev_get(ctypes.c_size_t(index)))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.setdefault(ggml.ggml_backend_dev_type(device), []).append(free.value)
    # ggml's types: 1 a GPU, 2 one that is a part of the CPU, used where there is no other.
    return found.get(1) or found.get(2, [])


def must_take_turns() -> bool:
    """Return whether nothing may decode beside a model with layers on several GPUs."""
    ggml = library()._lib
    ggml.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    # Vulkan's copies from one GPU to another pass through memory that all share, unlocked.
    return len(free_on_gpus()) > 1 and bool(ggml.ggml_backend_reg_by_name(b"Vulkan"))


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reason(lines: Sequence[str]) -> str:
    """Return the first complaint among llama.cpp's messages, without its function names."""
    complaints = (line for line in lines if re.search(r"(?i)error|fail|invalid|corrupt", line))
    return re.sub(r"^(\w+: )+", "", next(complaints, "llama.cpp gave no reason")).strip()


def _keep_line(level: int, text: bytes, _data: object) -> None:
    line = ("error: " if level == _ERROR else "") + text.decode("utf-8", "replace").rstrip()
    if not line.strip("."):
        return
    here = threading.get_ident()
    for call in _under_way.copy():
        call.lines.append(line)
    mine = next((call for call in reversed(_under_way) if call.thread == here), None)
    if mine is None:
        log.debug("llama.cpp: %s", line)
    else:
        mine.attempt(log.debug, "llama.cpp: %s", line)


def _give_up(message: bytes) -> None:
    # After this ggml ends the process, with a debugger's view of it instead of an error.
    told = message.decode("utf-8", "replace").rpartition("/")[2]
    why = "is a file damaged, or too little memory free?"
    os.write(2, f"eva-local: llama.cpp gives up ({told}); {why}\n".encode())
    os._exit(2)
