"""OpenAI's newer API, /v1/responses, in terms of chats: bodies that ask, and answers as items."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from eva_local.engine.conversation import ChatMessage, TextPart
from eva_local.openai.answer import Answer, Body, Letterhead, Token, chat_tokens
from eva_local.openai.request import CHAT, Values
from eva_local.openai.shapes import Effort
from eva_local.reading import ReadError, Whole, Words, lean, read, shown
from eva_local.types import Sampling, Step

#: Where it is asked for.
RESPONSES = "/v1/responses"
_LOGPROBS = "message.output_text.logprobs"
_Named = dict[str, Any]


class _Words(Struct, frozen=True, forbid_unknown_fields=True):
    format: _Named | None = None
    verbosity: Any = None


class _Thinking(Struct, frozen=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    summary: Any = None
    generate_summary: Any = None


class _Item(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Any = None
    id: Any = None
    status: Any = None
    call_id: Any = None
    name: Any = None


class _Call(_Item, kw_only=True):
    name: Words
    arguments: str


class _Result(_Item, kw_only=True):
    output: str | list[TextPart]


class _Thought(_Item, kw_only=True):
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None


_ITEMS: Mapping[object, type[Struct]] = {
    "message": ChatMessage,
    "function_call": _Call,
    "function_call_output": _Result,
    "reasoning": _Thought,
}


class ResponseRequest(Struct, kw_only=True):
    """What is asked for in other words than in a chat; all other keys are those of a chat."""

    input: str | Annotated[list[_Named], Meta(min_length=1)]
    instructions: str | None = None
    text: _Words = _Words()
    tools: list[_Named] = []
    tool_choice: str | _Named = "auto"
    reasoning: _Thinking = _Thinking()
    max_output_tokens: Annotated[int, Meta(ge=-1)] | None = None
    top_logprobs: Whole = 0
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = []

    def chat(self) -> dict[str, object]:
        return {
            "messages": list(_messages(self)),
            "max_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort,
            "response_format": _nested(self.text.format),
            "tools": [_nested(tool) for tool in self.tools],
            "tool_choice": _nested(self.tool_choice),
            "top_logprobs": self.top_logprobs or None,
            "logprobs": self.top_logprobs > 0 or _LOGPROBS in self.include or None,
        }


def _nested(value: Any) -> Any:
    """Return what has a type with all else in a place of its own, as chats have it."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("function", "json_schema"):
        return value
    return {"type": kind, kind: {key: value[key] for key in value if key != "type"}}


def _messages(asked: ResponseRequest) -> Iterator[_Named]:
    """Yield the messages of a chat; no later turn is told a thought."""
    if asked.instructions is not None:
        yield {"role": "system", "content": asked.instructions}
    if isinstance(asked.input, str):
        yield {"role": "user", "content": asked.input}
        return
    # The message that a call is part of: one answer is several items.
    last: _Named = {}
    for place, item in enumerate(asked.input):
        kind = str(item.get("type") or "message")
        if kind not in _ITEMS:
            raise ReadError(f"input[{place}].type", f"{shown(kind)} is not supported here")
        read(lean(item, _ITEMS[kind]), _ITEMS[kind], f"input[{place}]")
        if kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            if last.get("role") != "assistant":
                last = {"role": "assistant"}
                yield last
            calls = last.get("tool_calls") or []
            last["tool_calls"] = [*calls, {"id": item.get("call_id"), "function": function}]
        elif kind == "function_call_output":
            last = {"role": "tool", "content": item["output"]}
            yield last
        elif kind == "message":
            last = dict(item)
            yield last


# How the id of an item begins, what its deltas are of, and what it has beside its content.
_KINDS: Mapping[str, tuple[str, str, Body]] = {
    "message": ("msg", "output_text", {"role": "assistant"}),
    "reasoning": ("rs", "reasoning_text", {"summary": []}),
}


class ResponseLetterhead(Letterhead):
    """The answer to one request, whole or as events; `body` is what was asked."""

    done, words = b"", ("input", "output")

    def __init__(self, model: str, body: Values, sampling: Sampling) -> None:
        super().__init__(CHAT, _id("resp"), int(time.time()), model)
        asked: Body = {"text": {"format": {"type": "text"}}, "tools": [], "tool_choice": "auto"}
        asked |= {"metadata": {}, "parallel_tool_calls": True}
        keys = (*asked, "instructions", "max_output_tokens", "reasoning")
        self._asked = asked | {key: body.get(key, asked.get(key)) for key in keys}
        self._asked |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        self._asked |= {"previous_response_id": None, "store": False, "truncation": "disabled"}
        self._count = 0
        # Items that are finished, and of the one that is being written its kind, id, text, tokens.
        self._items: list[Body] = []
        self._kind = self._id = self._text = ""
        self._tokens: list[Body] = []

    def whole(self, answers: Sequence[Answer]) -> Body:
        (answer,) = answers
        list(self._told(answer, answer, answer.tokens))
        return self._answer(answer)

    def parts(self, _index: int, answer: Answer, tokens: Sequence[Token]) -> Iterator[Body]:
        for kind in ("created", "in_progress") if len(answer.steps) == 1 else ():
            yield self._event(kind, response=self._answer())
        yield from self._told(answer, answer.steps[-1], tokens)

    def last(self, answers: Sequence[Answer]) -> Body:
        body = self._answer(answers[0])
        return self._event(str(body["status"]), response=body)

    def event(self, part: Body) -> bytes:
        if isinstance(error := part.get("error"), dict):
            part = self._event("", **{key: error[key] for key in ("message", "param", "code")})
            part["type"] = "error"
        return f"event: {part['type']}\n".encode() + super().event(part)

    def _told(self, answer: Answer, said: Answer | Step, tokens: Sequence[Token]) -> Iterator[Body]:
        """Yield the events of what an answer says, whole or in its last step."""
        if said.reasoning:
            yield from self._more("reasoning", said.reasoning, [])
        if said.text or (tokens and self._kind == "message"):
            yield from self._more("message", said.text, chat_tokens(tokens))
        if said.finish_reason is not None:
            yield from self._close()
        for call in answer.calls:
            head = {"id": _id("fc"), "type": "function_call", "call_id": call["id"]}
            item: _Named = {**head, "status": "completed", **call["function"]}
            yield self._added({**item, "arguments": "", "status": "in_progress"})
            place = {"item_id": item["id"], "output_index": len(self._items)}
            kind, arguments = "function_call_arguments", item["arguments"]
            yield self._event(f"{kind}.delta", **place, delta=arguments)
            yield self._event(f"{kind}.done", **place, name=item["name"], arguments=arguments)
            yield self._finished(item)

    def _more(self, kind: str, text: str, tokens: list[Body]) -> Iterator[Body]:
        if kind != self._kind:
            yield from self._close()
            self._kind, self._id, self._text, self._tokens = kind, _id(_KINDS[kind][0]), "", []
            item, part = self._item()
            yield self._added({**item, "content": [], "status": "in_progress"})
            yield self._event("content_part.added", **self._place, part=part)
        self._text += text
        self._tokens += tokens
        told = {"logprobs": tokens} if kind == "message" else {}
        yield self._event(f"{_KINDS[kind][1]}.delta", **self._place, delta=text, **told)

    def _close(self) -> Iterator[Body]:
        if self._kind:
            item, part = self._item()
            told = {key: part[key] for key in ("text", "logprobs") if key in part}
            yield self._event(f"{part['type']}.done", **self._place, **told)
            yield self._event("content_part.done", **self._place, part=part)
            yield self._finished(item)
            self._kind = ""

    def _item(self) -> tuple[Body, Body]:
        """Return the item that is being written, and what it holds."""
        _, kind, own = _KINDS[self._kind]
        part: Body = {"type": kind, "text": self._text}
        if self._kind == "message":
            part |= {"annotations": [], "logprobs": [*self._tokens]}
        head = {"id": self._id, "type": self._kind, "status": "completed"}
        return {**head, **own, "content": [part]}, part

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": self._id, "output_index": len(self._items), "content_index": 0}

    def _added(self, item: Body) -> Body:
        return self._event("output_item.added", output_index=len(self._items), item=item)

    def _finished(self, item: Body) -> Body:
        self._items.append(item)
        return self._event("output_item.done", output_index=len(self._items) - 1, item=item)

    def _event(self, kind: str, **said: object) -> Body:
        self._count += 1
        return {"type": f"response.{kind}", "sequence_number": self._count - 1, **said}

    def _answer(self, answer: Answer | None = None) -> Body:
        """Return the response as it stands, or with an `answer` that has ended."""
        is_cut = answer is not None and answer.finish_reason == "length"
        status = "incomplete" if is_cut else "completed" if answer else "in_progress"
        head: Body = {"id": self.name, "object": "response", "created_at": self.created}
        head |= {"model": self.model, "status": status, "error": None, "output": [*self._items]}
        head["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        head["usage"] = usage = self.counts([answer]) if answer else None
        if usage is not None:
            usage["input_tokens_details"]["cache_write_tokens"] = 0
        return head | self._asked


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
