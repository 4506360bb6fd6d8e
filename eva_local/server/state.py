"""The endpoints that tell what the server is and does."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.server.models import ServedModel
from eva_local.server.openapi import document
from eva_local.server.page import chat_page
from eva_local.server.service import service_of


async def page(_request: Request) -> Response:
    """Return the chat page."""
    return chat_page()


async def health(request: Request) -> Response:
    """Say whether questions can be answered."""
    if service_of(request).is_ready:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "loading"}, 503, {"Retry-After": "2"})


async def models(request: Request) -> Response:
    """List what the key `model` can name."""
    data = [_described(model) for model in service_of(request).models]
    return JSONResponse({"object": "list", "data": data})


async def model(request: Request) -> Response:
    """Describe one model."""
    found = service_of(request).named(request.path_params["name"])
    return JSONResponse(_described(found))


async def metrics(request: Request) -> Response:
    """Return the counters."""
    return service_of(request).measures.response()


async def description(request: Request) -> Response:
    """Return the description of all endpoints, as OpenAPI."""
    service = service_of(request)
    return JSONResponse(document([m.name for m in service.models] if service.is_ready else ()))


def _described(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "eva-local",
        "members": list(model.members),
        "max_model_len": model.n_ctx,
    }
