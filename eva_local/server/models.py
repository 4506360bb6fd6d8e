"""What a request can name: an ensemble, or a member of it alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from eva_local.api import Ensemble
from eva_local.server.slots import Slots


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request can name: an ensemble, or with `alone` one member of it."""

    name: str
    ensemble: Ensemble
    slots: Slots
    alone: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def members(self) -> tuple[str, ...]:
        """Who writes."""
        return self.ensemble.members if self.alone is None else (self.alone,)

    @property
    def n_ctx(self) -> int:
        """How many tokens of the shared space fit at most, prompt and answer together."""
        sizes = dict(zip(self.ensemble.members, self.ensemble.n_ctx, strict=True))
        return min(sizes[name] for name in self.members)
