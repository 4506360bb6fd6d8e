"""What a request asks for, in the shape of OpenAI's API, and options as JSON writes them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal, get_args

from eva_local.errors import InputError
from eva_local.llama.prompt import Prompt
from eva_local.openai.keys import given, refuse_keys_within, refuse_other_keys, shown
from eva_local.openai.response_format import schema_of
from eva_local.types import Message, Role, Sampling

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
OPTIONS = tuple(field.name for field in fields(Sampling))
# OpenAI's names for what is called otherwise here.
_ALIASES = {"max_completion_tokens": "max_tokens"}
#: What says nothing about the answer.
IGNORED = (
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
# The same of what an endpoint can do, where nothing can.
_ASKS_NOTHING: Mapping[str, object] = {
    **_REFUSED,
    "logprobs": False,
    "top_logprobs": 0,
    "trace": False,
    "stream_options": {},
    TEXT_BIAS: {},
}
#: What the body of a request can say.
BODY_KEYS = (
    *("messages", "prompt", "logprobs", "top_logprobs", "response_format", TEXT_BIAS),
    *(*OPTIONS, *_ALIASES, *IGNORED, *_REFUSED),
)
#: What `read_options` reads.
OPTION_KEYS = (*OPTIONS, *_ALIASES, "response_format")
# What an endpoint leaves to the other one.
_ELSEWHERE: Mapping[str, Collection[str]] = {
    CHAT: ("prompt",),
    COMPLETION: ("messages", "top_logprobs"),
}
# No chat template writes who of several users speaks: `name` says nothing to the members.
_MESSAGE_KEYS = ("role", "content", "name")
_PART_KEYS = ("type", "text")


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
    body = said(body)
    sampling, n_top = read_wishes(body, endpoint, defaults)
    prompt = body.get("messages" if endpoint == CHAT else "prompt")
    return Asked(
        read_messages(prompt) if endpoint == CHAT else _plain_prompt(prompt), sampling, n_top
    )


def said(body: Mapping[str, object]) -> dict[str, object]:
    """Return what a body says, by our names; raise InputError where two names contradict."""
    values = given(body)
    _refuse_half_characters(values)
    for alias, name in _ALIASES.items():
        if alias in values and values.setdefault(name, values[alias]) != values.pop(alias):
            raise InputError(f"{alias} and {name} mean the same here, and differ: give one")
    return values


def _refuse_half_characters(values: Mapping[str, object]) -> None:
    """Raise InputError for what JSON can name and is no text; a row is called what it likes."""
    for key, value in values.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            if key != "id":
                name = key.encode("ascii", "backslashreplace").decode()
                raise InputError(f"{name}: half a surrogate pair is no text") from error


def read_wishes(
    body: Mapping[str, object], endpoint: str, defaults: Sampling
) -> tuple[Sampling, int | None]:
    """Read all that is `said` but the prompt: how is to be drawn, and `n_top` as in `Asked`.

    Raises InputError where it asks for something that cannot be done.
    """
    _refuse_what_cannot_be_done(body, endpoint)
    options = dict(body)
    if options.pop("logit_bias", None):
        raise InputError(
            f"logit_bias names tokens by number, which differ from model to model; {TEXT_BIAS} "
            "names them by their text"
        )
    options["logit_bias"] = options.pop(TEXT_BIAS, None)
    sampling = read_options(options, defaults)
    if endpoint == CHAT:
        return sampling, _n_top_of_chat(body)
    return sampling, read_n_top(body.get("logprobs"))


def read_messages(value: object) -> list[Message]:
    """Read a conversation; raise InputError for what is none."""
    if not isinstance(value, list) or not value:
        raise InputError("messages must be a list of at least one message")
    return [_message(each, f"messages[{place}]") for place, each in enumerate(value)]


def read_options(values: Mapping[str, object], defaults: Sampling) -> Sampling:
    """Put those of `values` that are options of sampling in place of the defaults.

    Raises InputError and ConfigError for values that cannot be used.
    """
    values = said(values)
    changed = {key: value for key, value in values.items() if key in OPTIONS}
    if "json_schema" in changed:
        changed["json_schema"] = _schema(changed["json_schema"])
    # Of grammar and json_schema only one can be obeyed: what is asked for wins.
    for key, other in (("grammar", "json_schema"), ("json_schema", "grammar")):
        if key in changed:
            changed.setdefault(other, None)
    if "response_format" in values:
        schema = schema_of(values["response_format"])
        for key in ("grammar", "json_schema"):
            if key in values:
                raise InputError(f"{key} and response_format exclude each other: give one")
        # Plain text is asked for, too: no grammar or schema of the defaults is to be obeyed.
        changed |= {"grammar": None, "json_schema": None}
        if schema is not None:
            changed["json_schema"] = json.dumps(schema)
    return replace(defaults, **changed) if changed else defaults  # type: ignore[arg-type]  # checked


@lru_cache(maxsize=1024)
def misspelled(key: str, known: tuple[str, ...]) -> str | None:
    """Return the known key that was probably meant by one that is not known, in any case."""
    return next(iter(difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.85)), None)


def refuse_undone(key: str, value: object) -> None:
    """Raise InputError for what cannot be done, unless it asks for nothing."""
    nothing = _ASKS_NOTHING.get(key)
    # True is 1 for Python, and 1.0 is, too.
    if value is not None and (type(value) is not type(nothing) or value != nothing):
        raise InputError(f"{key} {shown(value)} cannot be done here; leave it out")


def _refuse_what_cannot_be_done(body: Mapping[str, object], endpoint: str) -> None:
    refuse_other_keys(body, BODY_KEYS)
    for key, value in body.items():
        if key in _REFUSED:
            refuse_undone(key, value)
        if key in _ELSEWHERE[endpoint] and value:
            raise InputError(f"{key} is nothing that {endpoint} knows; leave it out")


def _schema(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if not isinstance(value, str) or not value:
        raise InputError(f"json_schema must be an object or a text of one, not {shown(value)}")
    return value


def read_biases(value: object) -> dict[str, float | bool]:
    """Read biases of texts; raise InputError for what is none."""
    if not isinstance(value, dict) or not all(
        each is False or (isinstance(each, int | float) and each is not True)
        for each in value.values()
    ):
        raise InputError("logit_bias must be an object of texts with a number each, or false")
    return value


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
    refuse_keys_within(value, _MESSAGE_KEYS, where)
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(f"{where}: role must be one of {', '.join(_ROLES)}, not {shown(role)}")
    if isinstance(content, list):
        content = "".join(
            _part(part, f"{where}.content[{place}]") for place, part in enumerate(content)
        )
    if not isinstance(content, str):
        raise InputError(f"{where}: content must be a text, not {shown(content)}")
    return Message(_ROLES[role], content)


def _part(part: object, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(part, dict) or not isinstance(text, str):
        raise InputError(f"{where}: only parts of type text can be read")
    refuse_keys_within(part, _PART_KEYS, where)
    return text
