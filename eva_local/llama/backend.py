"""The llama.cpp library: imported once, its messages kept from stderr, and what it can use."""

import functools
import logging
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from eva_local.llama.calls import calling, hear

log = logging.getLogger("eva_local")

# llama.cpp keeps only the pointer: the object must live as long as the process.
_callbacks: list[Any] = []
_ERROR = 4  # ggml's GGML_LOG_LEVEL_ERROR: not all errors have such a word
# How long threads that wait for each other keep a core busy, in GNU's OpenMP (turns of a loop) and
# LLVM's (ms). Without any such time small models take twice as long on an idle machine; with the
# usual, longer one, many times as long on a busy one (docs/bench.md).
_WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


@functools.cache
def library() -> ModuleType:
    """Import llama_cpp once, with its messages sent to our log instead of stderr."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # They are read when the library is loaded.
        for key, value in _WAITING.items():
            os.environ.setdefault(key, value)
    import llama_cpp.llama_cpp as llama

    callback = llama.llama_log_callback(_keep_line)
    _callbacks.append(callback)
    llama.llama_log_set(callback, None)
    with calling():
        llama.llama_backend_init()
    return llama


def can_offload() -> bool:
    """Return whether this build of llama.cpp can use a device other than the CPU."""
    return bool(library().llama_supports_gpu_offload())


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
    if line.strip("."):
        hear(lambda line: log.debug("llama.cpp: %s", line), line)
