"""Calls of functions: how they are told, held to a schema, found in answers, and streamed."""

from __future__ import annotations

import json

import pytest

from eva_local.errors import InputError
from eva_local.openai.answer import Answer, Letterhead
from eva_local.openai.call import Call, read_call
from eva_local.openai.request import CHAT
from eva_local.openai.tools import calls_in
from eva_local.types import Sampling, Step

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALLED = '{"name": "add", "arguments": {"a": 1}}'


def call(**more) -> Call:
    body = {"messages": [{"role": "user", "content": "1 + 1?"}], **more}
    return read_call(body, CHAT, Sampling(), piece_of=bytes, members=("a", "b"))


def written(*texts: str, functions=("add", "now"), reason="stop") -> tuple[Answer, list[dict]]:
    """An answer that was written so, and the parts of its stream."""
    answer, head = Answer(functions=functions), Letterhead(CHAT, "x", 0, "m")
    parts = []
    for number, text in enumerate(texts):
        last = number == len(texts) - 1
        step = Step(text.encode(), text, 1.0, (True,), reason if last else None)
        answer.push(step)
        shown, calls = answer.shown[-1], answer.calls
        parts.append(head.step(0, shown, (), calls))
    return answer, [part["choices"][0] for part in parts if part is not None]


def test_members_are_told_of_the_tools() -> None:
    (prompt,) = call(tools=[ADD, NOW]).prompts
    assert [each.role for each in prompt] == ["system", "user"]
    assert '{"name": "add", "description": "Add two numbers"' in prompt[0].content
    assert '{"name": "now", "description": "", "parameters": {}}' in prompt[0].content
    system = {"role": "system", "content": "Be brief."}
    (prompt,) = call(messages=[system, {"role": "user", "content": "a"}], tools=[NOW]).prompts
    assert prompt[0].content.startswith("Be brief.\n\nYou can call")
    for nothing in (
        {"tool_choice": "none", "tools": [ADD]},
        {"tools": []},
        {"tool_choice": "auto"},
    ):
        (prompt,) = call(**nothing).prompts
        assert [each.content for each in prompt] == ["1 + 1?"]


def test_a_call_that_is_due_obeys_a_schema() -> None:
    one = json.loads(call(tools=[ADD], tool_choice="required").sampling.json_schema)
    assert one["properties"]["name"] == {"const": "add"}
    assert one["properties"]["arguments"] == ADD["function"]["parameters"]
    chosen = {"type": "function", "function": {"name": "now"}}
    named = json.loads(call(tools=[ADD, NOW], tool_choice=chosen).sampling.json_schema)
    assert named["properties"]["name"] == {"const": "now"}
    several = json.loads(call(tools=[ADD, NOW], tool_choice="required").sampling.json_schema)
    assert [way["properties"]["name"]["const"] for way in several["anyOf"]] == ["add", "now"]
    assert call(tools=[ADD]).sampling.json_schema is None
    with pytest.raises(InputError, match="tool_choice: ad is none of the tools; did you mean add"):
        call(tools=[ADD], tool_choice={"type": "function", "function": {"name": "ad"}})
    with pytest.raises(InputError, match="tool_choice: there are no tools"):
        call(tool_choice="required")


def test_calls_and_their_results_of_earlier_turns_are_told_in_words() -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    (prompt,) = call(messages=messages).prompts
    assert [each.role for each in prompt] == ["user", "assistant", "user"]
    assert prompt[1].content == f"<tool_call>\n{CALLED}\n</tool_call>"
    assert prompt[2].content == "<tool_response>\n2\n</tool_response>"
    with pytest.raises(InputError, match=r"messages\[0\].content is missing"):
        call(messages=[{"role": "user"}])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (CALLED, ["add"]),
        (f"<tool_call>\n{CALLED}\n</tool_call>", ["add"]),
        (f"<tool_call>{CALLED}</tool_call>\n<tool_call>{CALLED}</tool_call>", ["add", "add"]),
        (f"Let me see. {CALLED}", []),
        ('{"name": "other", "arguments": {}}', []),
        ('{"name": "add"', []),
        ("", []),
        ("[" * 100_000, []),
    ],
)
def test_calls_are_found_where_an_answer_is_nothing_else(text: str, names: list[str]) -> None:
    calls = calls_in(text, ("add", "now"))
    assert [each["function"]["name"] for each in calls] == names
    assert all(each["function"]["arguments"] == '{"a": 1}' for each in calls)
    assert len({each["id"] for each in calls}) == len(calls)


def test_a_call_is_streamed_whole_and_no_text_of_it() -> None:
    answer, parts = written("<tool_", "call>\n", CALLED, "\n</tool_call>")
    assert [part["delta"].get("content") for part in parts] == [None]
    assert parts[0]["delta"]["tool_calls"] == [{"index": 0, **answer.calls[0]}]
    assert parts[0]["finish_reason"] == "tool_calls"
    message = Letterhead(CHAT, "x", 0, "m").whole([answer])["choices"][0]
    assert message["message"]["content"] is None
    assert message["message"]["tool_calls"] == answer.calls
    assert message["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("Hel", "lo", "."), "stop"),
        (("<tool", "s are", " fine"), "stop"),
        (("{", '"a": 1', "}"), "stop"),
        # A call that is cut off is none.
        (('{"name": "add", ', '"argu'), "length"),
    ],
)
def test_what_is_no_call_is_streamed_as_text(texts, reason) -> None:
    answer, parts = written(*texts, reason=reason)
    assert "".join(part["delta"].get("content", "") for part in parts) == "".join(texts)
    assert parts[-1]["finish_reason"] == reason
    assert answer.calls == []
    # Without functions nothing waits.
    _, parts = written(*texts, functions=(), reason=reason)
    assert [part["delta"]["content"] for part in parts] == list(texts)
