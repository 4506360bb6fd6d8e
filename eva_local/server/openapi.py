"""The description of all endpoints, as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from msgspec import Struct
from msgspec.json import schema_components

from eva_local.openai.request import ALIASES, CHAT, COMPLETION, IGNORED
from eva_local.openai.shapes import (
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ScoreRequest,
    TokenizeRequest,
)
from eva_local.reading import fields_of
from eva_local.types import Sampling

Schema = dict[str, Any]

_JSON = "application/json"
_GETS = {
    "/": ("The chat page.", "text/html"),
    "/health": ("Whether questions can be answered.", _JSON),
    "/metrics": ("Counters for Prometheus.", "text/plain"),
    "/openapi.json": ("This description.", _JSON),
    "/v1/models": ("What the key model can name.", _JSON),
    "/tokenizer_info": ("What is put around tokens: nothing.", _JSON),
}
_POSTS: dict[str, tuple[str, type[Struct]]] = {
    CHAT: ("Answer a conversation.", ChatRequest),
    COMPLETION: ("Go on with texts.", CompletionRequest),
    "/v1/score": ("How likely texts are.", ScoreRequest),
    "/tokenize": ("Text to token ids.", TokenizeRequest),
    "/detokenize": ("Token ids to text.", DetokenizeRequest),
}


class Problem(Struct):
    """What is wrong with a request; `param` names what part of it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(Struct):
    """The body of an answer that says no."""

    error: Problem


def document(models: Sequence[str] = ()) -> Schema:
    """Return the whole description; `models` are what can be named, where that is known."""
    bodies = [body for _, body in _POSTS.values()]
    _, schemas = schema_components(
        [*bodies, Refusal, fields_of(Sampling)], ref_template="#/components/schemas/{name}"
    )
    sampling = schemas.pop(Sampling.__name__)["properties"]
    sampling |= {alias: sampling[name] for alias, name in ALIASES.items()}
    for body in bodies:
        properties = schemas[body.__name__]["properties"]
        properties["model"] = {"enum": list(models)} if models else {"type": "string"}
        if issubclass(body, AnswerRequest):
            schemas[body.__name__]["properties"] = (
                {key: {} for key in IGNORED} | sampling | properties
            )
    return {
        "openapi": "3.1.0",
        "info": {"title": "eva-local", "version": version("eva-local")},
        "paths": {
            **{path: {"get": _operation(*told)} for path, told in _GETS.items()},
            **{
                path: {"post": _operation(summary, body=body)}
                for path, (summary, body) in _POSTS.items()
            },
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
        "security": [{}, {"key": []}],
    }


def _operation(summary: str, media: str = _JSON, body: type[Struct] | None = None) -> Schema:
    answer: Schema = {media: {"schema": {"type": "object" if media == _JSON else "string"}}}
    header = {"Retry-After": {"schema": {"type": "integer"}}}
    refused = {_JSON: {"schema": _named(Refusal)}}
    operation: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            "4XX": {"description": "What is wrong with the request.", "content": refused},
            "503": {
                "description": "Come again after Retry-After seconds.",
                "headers": header,
                "content": refused,
            },
        },
    }
    if body is not None:
        content = {_JSON: {"schema": _named(body)}}
        operation["requestBody"] = {"required": True, "content": content}
        if issubclass(body, AnswerRequest):
            answer["text/event-stream"] = {}
    return operation


def _named(kind: type[Struct]) -> Schema:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
