"""The models that the server offers by name: ensembles, and each member of them alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eva_local.api import Ensemble
from eva_local.reading import did_you_mean, shown
from eva_local.server.places import Places
from eva_local.server.refusal import RefusedError


@dataclass(frozen=True, slots=True)
class Model:
    """What a request can name: an ensemble, or with `alone` one member of it."""

    name: str
    ensemble: Ensemble
    places: Places
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


class Models:
    """All that is offered, in the order of the command line; the first is the default."""

    def __init__(self, ensembles: Sequence[Ensemble], n_waiting: int) -> None:
        """Offer ensembles, before each of which `n_waiting` answers may wait."""
        self.ensembles = tuple(ensembles)
        self._models: dict[str, Model] = {}
        for ensemble in ensembles:
            places = Places(ensemble.n_slots, n_waiting)
            name = ensemble.spec.name
            self._models[name] = Model(name, ensemble, places)
            if len(ensemble.members) > 1:
                for member in dict.fromkeys(ensemble.members):
                    alone = f"{name}/{member}"
                    self._models[alone] = Model(alone, ensemble, places, member)

    def __iter__(self) -> Iterator[Model]:
        """Go through all that is offered."""
        return iter(self._models.values())

    def named(self, name: object) -> Model:
        """Return a model by its name, or the default without one; refuse what is no name."""
        if name is None:
            return next(iter(self))
        if isinstance(name, str) and name in self._models:
            return self._models[name]
        hint = did_you_mean(str(name)[:60], self._models)
        raise RefusedError(
            404 if isinstance(name, str) else 400,
            f"model {shown(name)} is not here; {hint}",
            code="model_not_found",
            param="model",
        )
