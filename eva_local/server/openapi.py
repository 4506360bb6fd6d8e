"""The description of all endpoints, as OpenAPI 3.1."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from msgspec import Struct
from msgspec.json import schema_components
from starlette.routing import Route

from eva_local.openai import shapes
from eva_local.openai.request import ALIASES, CHAT, COMPLETION, IGNORED
from eva_local.reading import fields_of
from eva_local.types import Sampling

Schema = dict[str, Any]

_JSON = "application/json"
_MEDIA = {"/": "text/html", "/metrics": "text/plain"}
_BODIES: dict[str, type[Struct]] = {
    CHAT: shapes.ChatRequest,
    COMPLETION: shapes.CompletionRequest,
    "/v1/score": shapes.ScoreRequest,
    "/tokenize": shapes.TokenizeRequest,
    "/detokenize": shapes.DetokenizeRequest,
}


def document(routes: Iterable[Route], models: Sequence[str] = ()) -> Schema:
    """Describe what can be asked; `models` are what can be named, where that is known."""
    bodies = list(_BODIES.values())
    _, schemas = schema_components(
        [*bodies, fields_of(Sampling)], ref_template="#/components/schemas/{name}"
    )
    sampling = schemas.pop(Sampling.__name__)["properties"]
    sampling |= {alias: sampling[name] for alias, name in ALIASES.items()}
    sampling |= {key: {} for key in IGNORED}
    for body in bodies:
        properties = schemas[body.__name__]["properties"]
        properties["model"] = {"enum": list(models)} if models else {"type": "string"}
        if issubclass(body, shapes.AnswerRequest):
            schemas[body.__name__]["properties"] = sampling | properties
    return {
        "openapi": "3.1.0",
        "info": {"title": "eva-local", "version": version("eva-local")},
        "paths": {route.path: _operation(route) for route in routes if "{" not in route.path},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
        "security": [{}, {"key": []}],
    }


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
