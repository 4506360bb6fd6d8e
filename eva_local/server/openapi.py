"""The description of all endpoints, as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, get_type_hints

from eva_local.config.settings import REQUEST_KEYS
from eva_local.openai.call import MOST_ANSWERS, MOST_STOPS
from eva_local.openai.request import CHAT, COMPLETION, MOST_TOP, TEXT_BIAS
from eva_local.types import Sampling

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_OBJECT: Schema = {"type": "object"}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_BIASES: Schema = {"type": "object", "additionalProperties": {"type": ["number", "boolean"]}}
_TOP: Schema = {"type": "integer", "minimum": 0, "maximum": MOST_TOP}
_PROMPT: Schema = {"anyOf": [_TEXT, {**_IDS, "minItems": 1}]}
_PROMPTS: Schema = {
    "anyOf": [
        *_PROMPT["anyOf"],
        {"type": "array", "items": _PROMPT, "minItems": 1, "maxItems": MOST_ANSWERS},
    ]
}
_WEIGHTS: Schema = {
    "description": "What each member counts: equal, running, or numbers in the members' order.",
    "anyOf": [
        {"enum": ["equal", "running"]},
        {"type": "array", "items": {"type": "number", "minimum": 0}},
        {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    ],
}
_MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "name": _TEXT,
            "content": {
                "anyOf": [
                    _TEXT,
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "properties": {"type": {"const": "text"}, "text": _TEXT},
                        },
                    },
                ]
            },
        },
    },
}
_FORMAT: Schema = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "schema": _OBJECT,
        "json_schema": {"type": "object", "properties": {"schema": _OBJECT}},
    },
}
_TYPES = {int: "integer", float: "number"}


def document(models: Sequence[str] = ()) -> Schema:
    """Return the whole description; `models` are what can be named, where that is known."""
    model = {"enum": list(models)} if models else _TEXT
    bodies = (_chat, _completion, _score, _tokenize, _detokenize)
    chat, completion, score, tokenize, detokenize = (body(model) for body in bodies)
    return {
        "openapi": "3.1.0",
        "info": {"title": "eva-local", "version": version("eva-local")},
        "paths": {
            "/": {"get": _operation("The chat page.", media="text/html")},
            "/health": {"get": _operation("Whether questions can be answered.")},
            "/metrics": {"get": _operation("Counters for Prometheus.", media="text/plain")},
            "/openapi.json": {"get": _operation("This description.")},
            "/v1/models": {"get": _operation("What the key model can name.")},
            CHAT: {"post": _operation("Answer a conversation.", body=chat, streams=True)},
            COMPLETION: {"post": _operation("Go on with texts.", body=completion, streams=True)},
            "/v1/score": {"post": _operation("How likely texts are.", body=score)},
            "/tokenize": {"post": _operation("Text to token ids.", body=tokenize)},
            "/detokenize": {"post": _operation("Token ids to text.", body=detokenize)},
            "/tokenizer_info": {"get": _operation("What is put around tokens: nothing.")},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _error()},
        },
        "security": [{}, {"key": []}],
    }


def _operation(
    summary: str,
    *,
    body: Schema | None = None,
    media: str = "application/json",
    streams: bool = False,
) -> Schema:
    answer = {media: {"schema": _OBJECT if media == "application/json" else _TEXT}}
    if streams:
        answer["text/event-stream"] = {}
    refused = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    operation: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            "4XX": {"description": "What is wrong with the request.", **refused},
            "503": {"description": "Come again after Retry-After seconds.", **_unavailable()},
        },
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _unavailable() -> Schema:
    header = {"Retry-After": {"schema": {"type": "integer"}}}
    return {"headers": header, "content": {"application/json": {"schema": _OBJECT}}}


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def _chat(model: Schema) -> Schema:
    return _object(
        ("messages",),
        model=model,
        messages=_MESSAGES,
        logprobs=_FLAG,
        top_logprobs=_TOP,
        **_options(),
    )


def _completion(model: Schema) -> Schema:
    return _object(
        ("prompt",), model=model, prompt=_PROMPTS, echo=_FLAG, logprobs=_TOP, **_options()
    )


def _score(model: Schema) -> Schema:
    return _object(
        ("continuation",),
        model=model,
        prompt=_PROMPT,
        messages=_MESSAGES,
        continuation=_PROMPTS,
        logprobs=_TOP,
        weights=_WEIGHTS,
    )


def _tokenize(model: Schema) -> Schema:
    return _object(("prompt",), model=model, prompt=_TEXT, add_special_tokens=_FLAG)


def _detokenize(model: Schema) -> Schema:
    return _object(("tokens",), model=model, tokens=_IDS)


def _options() -> dict[str, Schema]:
    """Return what chats and completions have in common."""
    hints = get_type_hints(Sampling)
    sampling = {key: _described(hints[key]) for key in hints if key not in REQUEST_KEYS}
    stops = {"type": "array", "items": _TEXT, "maxItems": MOST_STOPS}
    return sampling | {
        "stop": {"anyOf": [_TEXT, stops]},
        "logit_bias": _BIASES,
        TEXT_BIAS: _BIASES,
        "response_format": _FORMAT,
        "grammar": _TEXT,
        "json_schema": {"anyOf": [_TEXT, _OBJECT]},
        "n": {"type": "integer", "minimum": 1, "maximum": MOST_ANSWERS},
        "stream": _FLAG,
        "stream_options": _object((), include_usage=_FLAG),
        "trace": _FLAG,
        "weights": _WEIGHTS,
        "user": _TEXT,
    }


def _described(hint: Any) -> Schema:
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    # Only the seed may be none.
    return {"type": ["integer", "null"], "minimum": 0}


def _error() -> Schema:
    word = {"type": ["string", "null"]}
    error = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {"message": _TEXT, "type": _TEXT, "param": word, "code": word},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
