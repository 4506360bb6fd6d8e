"""Calls of functions: told to all members in words, and held to their schemas by the grammar.

Not every chat template knows tools, and those that do write calls in forms of their own. So there
is one form for all members: what Qwen's templates write.
"""

import json
import math
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from msgspec import Struct

from eva_local.engine.grammar import BEGIN, END, Calls
from eva_local.errors import InputError
from eva_local.reading import Words, did_you_mean
from eva_local.types import Message

_BEGINNINGS = "|".join(BEGIN[:length] for length in range(len(BEGIN) - 1, 0, -1))
_MAY_BE_CALLS = re.compile(rf"\s*(?:{BEGIN}[\s\S]*|{_BEGINNINGS})?\Z")
_BETWEEN = re.compile(rf"\s*(?:{END}\s*)?(?:{BEGIN}\s*)?")
_TOLD = (
    "You can call these functions, each with arguments as its schema says:\n\n{functions}\n\n"
    f'To call one, answer with nothing but\n{BEGIN}\n{{"name": …, "arguments": {{…}}}}\n{END}'
)


class Function(Struct, forbid_unknown_fields=True):
    """A function that can be called; `strict` or not, its schema is obeyed where a call is due."""

    name: Words
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: Any = None


class Tool(Struct, forbid_unknown_fields=True):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


# A tool that is chosen is named in the form of one.
Choice = Literal["none", "auto", "required"] | Tool


class CalledFunction(Struct, forbid_unknown_fields=True):
    """What was called: its arguments are JSON, as text or as ollama has it."""

    name: Words
    arguments: str | dict[str, Any]
    index: Any = None


class ToolCall(Struct, forbid_unknown_fields=True):
    """A call in an earlier answer."""

    function: CalledFunction
    id: Any = None
    type: Any = None
    index: Any = None


def words_of(calls: Sequence[ToolCall]) -> str:
    """Return calls as an answer has them."""
    said = []
    for name, given in ((call.function.name, call.function.arguments) for call in calls):
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        told = f'{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}'
        said.append(f"{BEGIN}\n{told}\n{END}")
    return "\n".join(said)


def told(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return a conversation in which the members are told of tools."""
    keys = ("name", "description", "parameters")
    functions = [{key: getattr(tool.function, key) for key in keys} for tool in tools]
    text = _TOLD.replace("{functions}", "\n".join(map(json.dumps, functions)))
    if messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]


def calls_of(tools: Sequence[Tool], choice: Choice, *, several: bool) -> Calls:
    """Return what calls an answer may have, or must be; raise InputError."""
    if isinstance(choice, Tool):
        name, names = choice.function.name, [tool.function.name for tool in tools]
        if name not in names:
            hint = did_you_mean(name, names)
            raise InputError(f"tool_choice: {name} is none of the tools; {hint}")
        tools = [tool for tool in tools if tool.function.name == name]
    if not tools:
        raise InputError("tool_choice: there are no tools to choose from")
    for name, n in Counter(tool.function.name for tool in tools).items():
        if n > 1:
            raise InputError(f"tools: {name} is there {n} times: nobody could tell which is called")
    for tool in tools:
        if tool.function.parameters.get("type", "object") != "object":
            raise InputError(f"tools: the parameters of {tool.function.name} must be an object")
    functions = tuple(
        (each.function.name, json.dumps({"type": "object", **each.function.parameters}))
        for each in tools
    )
    return Calls(functions, due=choice != "auto", several=several)


def split(text: str, *, is_first: bool) -> tuple[str, str]:
    """Return what of a text can be shown, and the end of it that may be calls.

    Where it `is_first`, calls may stand there without marks.
    """
    if is_first and text.lstrip()[:1] == "{":
        return "", text
    at = _MAY_BE_CALLS.search(text).start()  # type: ignore[union-attr]  # the end always is
    return text[:at], text[at:]


def calls_in(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the calls of known functions that an answer consists of; [] where it is another."""
    calls: list[dict[str, Any]] = []
    at = _BETWEEN.match(text).end()  # type: ignore[union-attr]  # it may be empty
    # No JSON, or what cannot be sent as JSON.
    with suppress(ValueError, RecursionError):
        while at < len(text):
            called, at = _DECODER.raw_decode(text, at)
            if not isinstance(called, dict) or called.keys() != {"name", "arguments"}:
                return []
            name, given = called["name"], called["arguments"]
            if name not in names or not isinstance(given, dict):
                return []
            function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
            function["arguments"].encode()
            id_ = f"call_{secrets.token_hex(12)}"
            calls.append({"id": id_, "type": "function", "function": function})
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        return calls
    return []


def is_begun(text: str, *, is_cut: bool) -> bool:
    """Return whether an answer ends within a call, or maybe within the mark of one."""
    text = text.strip()
    if text.startswith(BEGIN):
        return is_cut or END not in text
    return is_cut and len(text) > 1 and BEGIN.startswith(text)


def _finite(written: str) -> float:
    if not math.isfinite(value := float(written)):
        raise ValueError(written)
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
