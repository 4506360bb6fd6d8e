"""What all endpoints share: the models, once they are open, what is measured, and bodies read."""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.requests import Request

from eva_local.api import Ensemble
from eva_local.errors import InputError
from eva_local.openai.request import given, parsed, refuse_twice
from eva_local.reading import did_you_mean, shown
from eva_local.server.measures import Measures
from eva_local.server.models import ServedModel, Slots
from eva_local.server.refusal import RefusedError, come_again


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


async def asked(request: Request) -> tuple[ServedModel, dict[str, object]]:
    """Return the model that a request names, and what the JSON object says that its body is.

    Raises InputError for any other body.
    """
    data = await request.body()
    try:
        # Bytes would be read as UTF-16, too, and leniently; some clients put a mark in front.
        body, twice = parsed(data.decode("utf-8-sig"), _refuse_constant)
        refuse_twice(twice)
        # JSON can name half a character, which is no text.
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("the body holds half of a surrogate pair, which is no text") from error
    except InputError as error:
        raise InputError(f"the body {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {str(error) or 'too deep'}") from error
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    return service_of(request).named(body.get("model")), given(body)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
