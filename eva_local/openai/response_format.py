"""OpenAI's `response_format`: the schema that an answer is to obey."""

from __future__ import annotations

from collections.abc import Mapping

from eva_local.errors import InputError
from eva_local.openai.keys import refuse_keys_within

_WHERE = "response_format"
# What each type has beside it. llama.cpp takes the schema of a `json_object`.
_KEYS: Mapping[object, tuple[str, ...]] = {
    "text": ("type",),
    "json_object": ("type", "schema"),
    "json_schema": ("type", "json_schema"),
}
# A schema is obeyed whatever it is called and for, and whether that must be strictly or not.
_SCHEMA_KEYS = ("schema", "name", "description", "strict")


def schema_of(value: object) -> Mapping[str, object] | None:
    """Return the schema that is asked for, None for plain text; raise InputError for neither."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in _KEYS:
        raise InputError(
            f"{_WHERE} must be of type text, json_object, or json_schema with a schema"
        )
    refuse_keys_within(value, _KEYS[kind], _WHERE)
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return _object({} if schema is None else schema, "schema") or {"type": "object"}
    inner = _object(value.get(kind), kind)
    refuse_keys_within(inner, _SCHEMA_KEYS, f"{_WHERE}.{kind}")
    return _object(inner.get("schema"), f"{kind}.schema")


def _object(value: object, key: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InputError(f"{_WHERE}.{key} must be an object: json_schema goes with a schema")
    return value
