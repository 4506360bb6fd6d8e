"""What all endpoints share: the models, once they are open, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from eva_local.api import Ensemble
from eva_local.reading import did_you_mean, shown
from eva_local.server.measures import Measures
from eva_local.server.models import ServedModel
from eva_local.server.refusal import RefusedError, come_again
from eva_local.server.slots import Slots


class Service:
    """One server's models, in the order of the command line, and measures."""

    def __init__(self) -> None:
        """Begin without models."""
        self.measures = Measures()
        self._models: dict[str, ServedModel] = {}

    @property
    def is_ready(self) -> bool:
        """Whether the models are open."""
        return bool(self._models)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models; raises RefusedError while they are loading."""
        if not self._models:
            raise come_again("the models are loading", "loading")
        return tuple(self._models.values())

    def named(self, name: object) -> ServedModel:
        """Return a model by its name, or the first without one; refuse what is no name."""
        first, *_ = self.models
        if name is None:
            return first
        if isinstance(name, str) and name in self._models:
            return self._models[name]
        hint = did_you_mean(str(name)[:60], self._models)
        raise RefusedError(
            404 if isinstance(name, str) else 400,
            f"model {shown(name)} is not here; {hint}",
            code="model_not_found",
            param="model",
        )

    def open(self, ensembles: Sequence[Ensemble], n_waiting: int) -> None:
        """Offer ensembles from now on, before each of which `n_waiting` answers may wait."""
        models = []
        for ensemble in ensembles:
            slots = Slots(ensemble.n_slots, n_waiting)
            name = ensemble.spec.name
            models.append(ServedModel(name, ensemble, slots))
            self.measures.watch(models[-1])
            if len(ensemble.members) > 1:
                models += [
                    ServedModel(f"{name}/{member}", ensemble, slots, member)
                    for member in dict.fromkeys(ensemble.members)
                ]
        self._models = {model.name: model for model in models}


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
