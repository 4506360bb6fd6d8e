"""How many answers are under way at once: those being written, and a queue that is bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from eva_local.server.refusal import RefusedError, come_again


class Slots:
    """Counts the answers of one ensemble; for one thread, that of the event loop."""

    def __init__(self, n_slots: int, n_waiting: int) -> None:
        """Let `n_slots` answers be written side by side, and `n_waiting` wait."""
        self._most = n_slots + n_waiting
        self.taken = 0

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Let `count` answers in for the length of a `with` block; refuse where all is full.

        A call with more answers than can ever wait must ask for less.
        """
        if count > self._most:
            raise RefusedError(
                400, f"{count} answers are asked for at once, and {self._most} can be; ask for less"
            )
        if self.taken + count > self._most:
            raise come_again("too many answers are asked for at this moment", "queue_full")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count
