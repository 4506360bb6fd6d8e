"""What a request can name: an ensemble, or a member of it alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from eva_local.api import Ensemble
from eva_local.fusion.fuser import Fuser
from eva_local.openai.call import Weights
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

    def judge(self, weights: Weights | None) -> Fuser | None:
        """Return what fuses one text with other weights than the ensemble's own."""
        if weights is None or self.alone is not None:
            return None
        count = len(self.members)
        # Numbers are obeyed whatever the ensemble knows of the prompt.
        settled = (1.0,) * count if weights == "equal" else weights
        return Fuser(replace(self.ensemble.spec.fusion, weights=settled), count)
