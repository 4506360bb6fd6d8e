"""Describe what the server answers, as OpenAPI, for programs that ask it at random.

    .venv/bin/python -m tools.openapi demo >openapi.json
    schemathesis run openapi.json --url http://127.0.0.1:8080

The arguments are the names that the key `model` can have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from msgspec import Struct
from msgspec.json import schema_components
from starlette.routing import Route

from eva_local.openai import shapes
from eva_local.openai.request import ALIASES, CHAT, COMPLETION, IGNORED
from eva_local.openai.responses import RESPONSES, ResponseRequest
from eva_local.reading import fields_of
from eva_local.server import ollama
from eva_local.server.app import ROUTES
from eva_local.types import Sampling

Schema = dict[str, Any]


class ShowRequest(Struct, kw_only=True):
    """A model that is to be described."""

    model: str


_JSON = "application/json"
_MEDIA = {"/": "text/html", "/metrics": "text/plain"}
_BODIES: Mapping[str, type[Struct]] = {
    CHAT: shapes.ChatRequest,
    COMPLETION: shapes.CompletionRequest,
    RESPONSES: ResponseRequest,
    **ollama.BODIES,
    "/api/show": ShowRequest,
    "/tokenize": shapes.TokenizeRequest,
    "/detokenize": shapes.DetokenizeRequest,
}
#: Paths that say what cannot be done.
REFUSED = ("/v1/embeddings", "/api/embed", "/api/embeddings")
# Paths that have a better name, and one that takes any.
_OTHERS = ("/v1/health", "/v1/models/{name:path}")


def document(models: Sequence[str] = ()) -> Schema:
    """Return the description of a server that offers `models`."""
    bodies = [*_BODIES.values()]
    kinds = [*bodies, fields_of(Sampling)]
    _, schemas = schema_components(kinds, ref_template="#/components/schemas/{name}")
    sampling = schemas.pop(Sampling.__name__)["properties"]
    sampling |= {alias: sampling[name] for alias, name in ALIASES.items()}
    sampling |= {key: {} for key in IGNORED}
    for body in bodies:
        properties = schemas[body.__name__]["properties"]
        properties["model"] = {"enum": [*models]} if models else {"type": "string"}
        if issubclass(body, shapes.AnswerRequest):
            schemas[body.__name__]["properties"] = sampling | properties
    how = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "eva-local", "version": version("eva-local")},
        "paths": {route.path: _operation(route) for route in _described()},
        "components": {"securitySchemes": how, "schemas": schemas},
        "security": [{}, {"key": []}],
    }


def _described() -> list[Route]:
    left_out = {*REFUSED, *_OTHERS}
    left_out |= {route.path.removeprefix("/v1") for route in ROUTES if route.path.startswith("/v1")}
    return [route for route in ROUTES if route.path == "/health" or route.path not in left_out]


def _operation(route: Route) -> Schema:
    media, body = _MEDIA.get(route.path, _JSON), _BODIES.get(route.path)
    answer: Schema = {media: {"schema": {"type": "object" if media == _JSON else "string"}}}
    error = {"description": "What is wrong, as OpenAI tells it.", "content": {_JSON: {}}}
    operation: Schema = {
        "summary": (route.endpoint.__doc__ or "").partition("\n")[0],
        "responses": {"200": {"description": "The answer.", "content": answer}, "default": error},
    }
    if body is None:
        return {"get": operation}
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if issubclass(body, shapes.AnswerRequest):
        answer["text/event-stream"] = {}
    return {"post": operation}


if __name__ == "__main__":
    json.dump(document(sys.argv[1:]), sys.stdout, indent=1)
