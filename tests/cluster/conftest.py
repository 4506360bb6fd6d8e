"""A Ray cluster of this machine alone, on 127.0.0.1, which ends with the tests."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator

import pytest

from tools.processes import children, ends


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
