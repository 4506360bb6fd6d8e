"""A Ray cluster of this machine alone, on 127.0.0.1, which ends with the tests."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is an extra: pip install 'eva-local[ray]'", allow_module_level=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # Ray's own, of which there are some.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


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
    """Return the processes of this cluster that hold a `kind`."""
    return sorted(pid for pid, line in children(os.getpid()).items() if line == f"ray::{kind}")


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


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Say what to put behind `--on`; two CPUs, whatever the machine has."""
    from eva_local.cluster.worker import nodes

    os.environ.pop("RAY_ADDRESS", None)
    try:
        nodes("ray")
        import ray

        yield "ray"
    finally:
        begun = children(os.getpid())
        with warnings.catch_warnings():
            # Ray closes neither its pipes nor its logs.
            warnings.simplefilter("ignore")
            ray.shutdown()
            gc.collect()
        gone = ends(lambda: children(os.getpid()).keys() & begun.keys())
        for pid in children(os.getpid()).keys() & begun.keys():
            os.kill(pid, signal.SIGKILL)
        assert gone, "Ray's processes stayed behind"
