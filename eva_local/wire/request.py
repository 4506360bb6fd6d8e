"""What a request asks for, in the shape of OpenAI's API, and options as JSON writes them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args, get_type_hints

from eva_local.errors import InputError
from eva_local.prompt import Prompt
from eva_local.records import Message, Role, Sampling
from eva_local.settings import REQUEST_KEYS, convert, did_you_mean

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
CHAT, COMPLETION = get_args(Endpoint)
#: Likeliest symbols that an answer can name for each symbol at most.
MOST_TOP = 20

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_HINTS = get_type_hints(Sampling)
OPTIONS = tuple(_HINTS)
# OpenAI's names for what is called otherwise here.
_ALIASES = {"max_completion_tokens": "max_tokens"}
# What says nothing about the answer.
_IGNORED = (
    *("model", "user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
)
# OpenAI's `logit_bias` names tokens by number; this is ours for texts.
TEXT_BIAS = "text_bias"
# What cannot be done, beside the value that asks for nothing.
_REFUSED: Mapping[str, object] = {
    "n": 1,
    "best_of": 1,
    "stream": False,
    "echo": False,
    "suffix": "",
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "modalities": ["text"],
}
#: What the body of a request can say.
BODY_KEYS = (
    *("messages", "prompt", "logprobs", "top_logprobs", "response_format", TEXT_BIAS),
    *(*OPTIONS, *_ALIASES, *_IGNORED, *_REFUSED),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: an answer, and for each symbol the `n_top` likeliest ones.

    With `n_top` None nothing is told of probabilities.
    """

    prompt: Prompt
    sampling: Sampling
    n_top: int | None = None


def read_body(body: Mapping[str, object], endpoint: str, defaults: Sampling) -> Asked:
    """Read the body of a request to an endpoint; `defaults` are what it does not say.

    Raises InputError where it asks for something that cannot be done.
    """
    if endpoint not in (CHAT, COMPLETION):
        raise InputError(f"url {shown(endpoint)} is none of {CHAT}, {COMPLETION}")
    body = given(body)
    sampling, n_top = read_wishes(body, endpoint, defaults)
    prompt = body.get("messages" if endpoint == CHAT else "prompt")
    return Asked(
        read_messages(prompt) if endpoint == CHAT else _plain_prompt(prompt), sampling, n_top
    )


def given(body: Mapping[str, object]) -> dict[str, object]:
    """Return what a body says: null says nothing."""
    return {key: value for key, value in body.items() if value is not None}


def refuse_other_keys(body: Mapping[str, object], known: Collection[str]) -> None:
    """Raise InputError for the first key of a body that is not known."""
    for key in body:
        if key not in known:
            raise InputError(f"unknown option {shown(key)}; {did_you_mean(key, known)}")


def read_wishes(
    body: Mapping[str, object], endpoint: str, defaults: Sampling
) -> tuple[Sampling, int | None]:
    """Read all of a body but its prompt: how is to be drawn, and `n_top` as in `Asked`.

    Raises InputError where it asks for something that cannot be done.
    """
    _refuse_what_cannot_be_done(body)
    options = {_ALIASES.get(key, key): value for key, value in body.items()}
    if options.pop("logit_bias", None):
        raise InputError(
            f"logit_bias names tokens by number, which differ from model to model; {TEXT_BIAS} "
            "names them by their text"
        )
    options["logit_bias"] = options.pop(TEXT_BIAS, None)
    sampling = read_sampling(options, defaults)
    if "response_format" in body:
        sampling = _formatted(sampling, body["response_format"])
    if endpoint == CHAT:
        return sampling, _n_top_of_chat(body)
    return sampling, read_n_top(body.get("logprobs"))


def read_messages(value: object) -> list[Message]:
    """Read a conversation; raise InputError for what is none."""
    if not isinstance(value, list) or not value:
        raise InputError("messages must be a list of at least one message")
    return [_message(each, f"messages[{place}]") for place, each in enumerate(value)]


def read_sampling(values: Mapping[str, object], defaults: Sampling) -> Sampling:
    """Put those of `values` that are options of sampling in place of the defaults.

    Raises InputError and ConfigError for values that cannot be used.
    """
    changed = {
        key: _option(key, values[key])
        for key in values.keys() & _HINTS.keys()
        if values[key] is not None
    }
    # Of grammar and json_schema only one can be obeyed: what is asked for wins.
    for key, other in (("grammar", "json_schema"), ("json_schema", "grammar")):
        if key in changed:
            changed.setdefault(other, None)
    return replace(defaults, **changed) if changed else defaults  # type: ignore[arg-type]  # checked


@lru_cache(maxsize=1024)
def misspelled(key: str, known: tuple[str, ...]) -> str | None:
    """Return the known key that was probably meant by one that is not known."""
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.85)), None)


def _refuse_what_cannot_be_done(body: Mapping[str, object]) -> None:
    refuse_other_keys(body, BODY_KEYS)
    for key, value in body.items():
        if key in _REFUSED and value != _REFUSED[key]:
            raise InputError(f"{key} {shown(value)} cannot be done here; leave it out")


def _option(key: str, value: object) -> object:
    if key not in REQUEST_KEYS:
        return convert(value, _HINTS[key], key)
    if key == "stop":
        return _stop(value)
    if key == "logit_bias":
        return _biases(value)
    if key == "json_schema" and isinstance(value, dict):
        return json.dumps(value)
    return convert(value, str, key)


def _stop(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"stop must be a text or a list of texts, not {shown(value)}")
    return tuple(texts)


def _biases(value: object) -> dict[str, float | bool]:
    if not isinstance(value, dict) or not all(
        each is False or (isinstance(each, int | float) and each is not True)
        for each in value.values()
    ):
        raise InputError("logit_bias must be an object of texts with a number each, or false")
    return value


def _formatted(sampling: Sampling, value: object) -> Sampling:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return sampling
    schema: object = {"type": "object"}
    if isinstance(value, dict) and kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
    if kind not in ("json_object", "json_schema") or not isinstance(schema, dict):
        raise InputError(
            "response_format must be of type text, json_object, or json_schema with a schema"
        )
    return replace(sampling, grammar=None, json_schema=json.dumps(schema))


def _n_top_of_chat(body: Mapping[str, object]) -> int | None:
    told = body.get("logprobs", False)
    if not isinstance(told, bool):
        raise InputError(f"logprobs must be true or false, not {shown(told)}")
    if not told:
        if body.get("top_logprobs"):
            raise InputError("top_logprobs needs logprobs true")
        return None
    return read_n_top(body.get("top_logprobs", 0), "top_logprobs")


def read_n_top(value: object, key: str = "logprobs") -> int | None:
    """Read how many likely symbols are to be named; raise InputError for what is no number."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOP:
        raise InputError(f"{key} must be from 0 to {MOST_TOP}, not {shown(value)}")
    return value


def _plain_prompt(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if not isinstance(value, str):
        raise InputError("prompt must be one text")
    return value


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no JSON object")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(f"{where}: role must be one of {', '.join(_ROLES)}, not {shown(role)}")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise InputError(f"{where}: content must be a text, not {shown(content)}")
    return Message(_ROLES[role], content)


def _part(part: object, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise InputError(f"{where}: only parts of type text can be read")
    return text


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
