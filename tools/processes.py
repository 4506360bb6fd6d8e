"""The processes that this one has begun, and these in turn, as Linux tells of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def children(parent: int) -> dict[int, str]:
    """Return the processes that a process has begun, and these have, with their command lines."""
    found: dict[int, str] = {}
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if about[0] != "Z":
            parents.setdefault(int(about[1]), []).append(int(folder.name))
    left = parents.get(parent, [])
    while left:
        pid = left.pop()
        left += parents.get(pid, [])
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
    return found


def hosts(kind: str) -> list[int]:
    """Return the processes of this one's Ray cluster that hold a `kind`."""
    # While it is asked for a method, that is told behind a dot.
    found = children(os.getpid()).items()
    return sorted(pid for pid, line in found if line.partition(".")[0] == f"ray::{kind}")


def kill(pid: int) -> None:
    """End a process at once, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    assert ends(lambda: pid in children(os.getpid()))


def ends(lasts: Callable[[], object]) -> bool:
    """Wait until something is no more; return whether it is."""
    deadline = time.monotonic() + 20
    while lasts() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lasts()
