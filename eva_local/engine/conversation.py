"""Conversations as OpenAI's API has them, with calls of functions told to all members in words.

Not every chat template knows tools, and those that do write calls in forms of their own. So there
is one form for all members: what Qwen's templates write.
"""

import json
import math
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from eva_local.engine.detokenizer import undecided
from eva_local.engine.grammar import BEGIN, END, Calls, calls_of
from eva_local.errors import InputError
from eva_local.llama.prompt import Prompt
from eva_local.reading import ReadError, Words, lean, read
from eva_local.types import Message, Sampling

_BETWEEN = re.compile(rf"\s*(?:{END}\s*)?(?:{BEGIN}\s*)?")
_TOLD = (
    "You can call these functions, each with arguments as its schema says:\n\n{functions}\n\n"
    f'To call one, answer with nothing but\n{BEGIN}\n{{"name": …, "arguments": {{…}}}}\n{END}'
)


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


class TextPart(Struct, forbid_unknown_fields=True):
    """A part of a message, by any of OpenAI's names for it."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None


class ChatMessage(Struct, forbid_unknown_fields=True):
    """A message, with what says nothing: no chat template writes who of several users speaks.

    A thought comes back from clients with the answer, and is told to no later turn. An answer
    may be calls of functions, and what each came to is a message of the role tool.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: Any = None
    tool_name: Any = None
    name: Any = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    id: Any = None
    type: Any = None
    status: Any = None
    phase: Any = None


ChatMessages = Annotated[
    list[ChatMessage], Meta(min_length=1, description="a list of at least one message")
]


def words_of(calls: Sequence[ToolCall]) -> str:
    """Return calls as an answer has them."""
    said = []
    for name, given in ((call.function.name, call.function.arguments) for call in calls):
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        told = f'{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}'
        said.append(f"{BEGIN}\n{told}\n{END}")
    return "\n".join(said)


def read_messages(value: object) -> list[Message]:
    """Read a conversation; raise InputError for what is none."""
    try:
        return conversation(read(lean(value, ChatMessages), ChatMessages, "messages"))
    except RecursionError as error:
        raise InputError("messages: arguments are nested too deeply") from error


def conversation(turns: list[ChatMessage]) -> list[Message]:
    """Return messages as a template takes them."""
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        role, content = turn.role, turn.content
        if content is None and not turn.tool_calls:
            raise ReadError(f"messages[{number}].content", "is missing")
        parts = [content] if isinstance(content, str) else [part.text for part in content or ()]
        parts += [words_of(turn.tool_calls)] if turn.tool_calls else []
        text = "\n".join(filter(None, parts)) if turn.tool_calls else "".join(parts)
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
            if number and turns[number - 1].role == "tool":
                # Many templates know no two messages of a user in a row.
                text = f"{messages.pop().content}\n{text}"
        messages.append(Message("system" if role == "developer" else role, text))
    return messages


def told(prompt: Prompt | bytes, sampling: Sampling) -> Prompt | bytes:
    """Return a conversation in which the members are told of tools, if there are any.

    Raises InputError for a text where there are.
    """
    if calls_of(sampling) is None:
        return prompt
    if isinstance(prompt, str | bytes):
        raise InputError("tools are for messages: no text that is gone on with calls them")
    keys = ("name", "description", "parameters")
    functions = [{key: getattr(tool.function, key) for key in keys} for tool in sampling.tools]
    text = _TOLD.replace("{functions}", "\n".join(map(json.dumps, functions)))
    if prompt[0].role == "system":
        return [Message("system", f"{prompt[0].content}\n\n{text}"), *prompt[1:]]
    return [Message("system", text), *prompt]


class CallStream:
    """Takes the calls out of an answer as it is written; nothing of one is shown."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._held, self._is_first = "", True

    def push(self, text: str, reason: str | None) -> tuple[str, tuple[dict[str, Any], ...]]:
        """Return what of a text can be shown; of the last, which has a reason, the calls too."""
        text = self._held + text
        at = text.find(BEGIN)
        at = len(text) - undecided(text, (BEGIN,)) if at < 0 else at
        # At the beginning, a call may stand there without marks.
        is_bare = self._is_first and text.lstrip()[:1] == "{"
        at = 0 if is_bare else len(text[:at].rstrip())
        text, self._held = text[:at], text[at:]
        self._is_first &= not text
        if reason is None:
            return text, ()
        is_cut, names = reason != "stop", [name for name, _ in self._calls.functions]
        # Calls before one that is cut off are whole.
        before, mark, rest = self._held.rpartition(END)
        rest = rest.strip()
        goes_on = rest.startswith(BEGIN) or (is_cut and BEGIN.startswith(rest))
        found = [] if is_cut else calls_in(self._held, names)
        calls = tuple(found or (calls_in(before + mark, names) if goes_on else []))
        # One that is cut off is none, and no text either. One that is due is all that is said.
        is_call = calls or self._calls.due or is_begun(self._held, is_cut=is_cut)
        return text if is_call else text + self._held, calls


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
        return is_cut or text.rfind(END) < text.rfind(BEGIN)
    return is_cut and len(text) > 1 and BEGIN.startswith(text)


def _finite(written: str) -> float:
    if not math.isfinite(value := float(written)):
        raise ValueError(written)
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
