"""Waiting for what other threads do: for events, never for a time to pass."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from eva_local.api import Ensemble
from eva_local.engine.sequence import TextSequence
from eva_local.types import Step

#: Ends what would never come. It says nothing of how long anything may take.
PATIENCE_S = 120.0
# How often it is looked whether something has come true.
_PAUSE_S = 0.001


def until(holds: Callable[[], bool]) -> None:
    """Wait for something to come true."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(_PAUSE_S)


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something to come true, and let the event loop go on."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it never came true"
        await asyncio.sleep(_PAUSE_S)


class Gate:
    """Holds the threads that come to it while it is closed, and counts those that passed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._may_pass: float = math.inf
        self._n_here = 0
        #: How many have passed so far.
        self.n_passed = 0

    def pass_through(self) -> None:
        with self._changed:
            self._n_here += 1
            self._changed.notify_all()
            opened = self._changed.wait_for(lambda: self._may_pass > 0, PATIENCE_S)
            self._n_here -= 1
            assert opened, "nobody opened the gate"
            self._may_pass -= 1
            self.n_passed += 1

    def let(self, count: float = math.inf) -> None:
        """Let so many pass, and none after them."""
        with self._changed:
            self._may_pass = count
            self._changed.notify_all()

    def wait_until_held(self) -> None:
        """Wait until somebody stands here who may not pass."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.is_held, PATIENCE_S)
            assert came, "nobody came to the gate"

    @property
    def is_held(self) -> bool:
        """Whether somebody stands here who may not pass."""
        return self._n_here > 0 and self._may_pass <= 0

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Let none pass for the length of a `with` block, unless the block lets some."""
        self.let(0)
        try:
            yield
        finally:
            self.let()


def step_gate(ensemble: Ensemble) -> Gate:
    """Return a gate that every step of an ensemble passes, once its texts have their places."""
    gate, step = Gate(), ensemble._engine.step

    def passing(drafts: Sequence[TextSequence]) -> list[Step | None]:
        gate.pass_through()
        return step(drafts)

    ensemble._engine.step = passing
    return gate
