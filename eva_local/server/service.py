"""What all endpoints share: the models, once they are open, and what is measured."""

from __future__ import annotations

from starlette.requests import Request

from eva_local.server.measures import Measures
from eva_local.server.models import Models
from eva_local.server.refusal import come_again


class Service:
    """One server's models and measures."""

    def __init__(self) -> None:
        """Begin without models."""
        self.measures = Measures()
        self._models: Models | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the models are open."""
        return self._models is not None

    @property
    def models(self) -> Models:
        """The models; raises RefusedError while they are loading."""
        if self._models is None:
            raise come_again("the models are loading", "loading")
        return self._models

    def open(self, models: Models) -> None:
        """Offer models from now on."""
        self._models = models
        self.measures.watch(models)


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
