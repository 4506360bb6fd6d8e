"""Calls of functions: how they are told, held to a schema, found in answers, and streamed."""

from __future__ import annotations

import json

import pytest

from eva_local.engine.conversation import CallStream, calls_in, told
from eva_local.engine.grammar import Calls, calls_of
from eva_local.errors import InputError
from eva_local.openai.answer import Answer, Letterhead
from eva_local.openai.request import CHAT, LONGEST_GRAMMAR, Call, read_call
from eva_local.types import Message, Sampling, Step

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


def heard(call: Call) -> list[Message]:
    """What the members are told of a call's conversation."""
    (prompt,) = call.prompts
    return told(prompt, call.sampling)


def written(
    *texts: str, functions=("add", "now"), due=False, reason="stop"
) -> tuple[Answer, list[dict]]:
    """An answer that was written so, and the parts of its stream."""
    calls = CallStream(Calls(tuple((name, "{}") for name in functions), due=due))
    answer, head = Answer(), Letterhead(CHAT, "x", 0, "m")
    parts = []
    for number, text in enumerate(texts):
        why = reason if number == len(texts) - 1 else None
        shown, called = calls.push(text, why)
        why = "tool_calls" if called and why == "stop" else why
        step = Step(text.encode(), shown, 1.0, (True,), why, tool_calls=called)
        parts += head.parts(0, answer, answer.push(step))
    return answer, [part["choices"][0] for part in parts[1:]]


def test_members_are_told_of_the_tools() -> None:
    prompt = heard(call(tools=[ADD, NOW]))
    assert [each.role for each in prompt] == ["system", "user"]
    assert '{"name": "add", "description": "Add two numbers"' in prompt[0].content
    assert '{"name": "now", "description": "", "parameters": {}}' in prompt[0].content
    system = {"role": "system", "content": "Be brief."}
    prompt = heard(call(messages=[system, {"role": "user", "content": "a"}], tools=[NOW]))
    assert prompt[0].content.startswith("Be brief.\n\nYou can call")
    for nothing in (
        {"tool_choice": "none", "tools": [ADD]},
        {"tools": []},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
    ):
        prompt = heard(call(**nothing))
        assert [each.content for each in prompt] == ["1 + 1?"]


def test_what_calls_an_answer_may_have() -> None:
    add = ("add", json.dumps(ADD["function"]["parameters"]))
    now = ("now", '{"type": "object"}')
    chosen = {"type": "function", "function": {"name": "now"}}
    assert may(tools=[ADD, NOW]) == Calls((add, now))
    assert may(tools=[NOW], parallel_tool_calls=False) == Calls((now,), several=False)
    assert may(tools=[ADD, NOW], tool_choice="required") == Calls((add, now), due=True)
    assert may(tools=[ADD, NOW], tool_choice=chosen) == Calls((now,), due=True)
    assert may(tools=[ADD], tool_choice="none") is None
    assert may(tools=[]) is None
    # Empty parts say nothing.
    empty = {"name": "now", "description": None, "parameters": None, "strict": None}
    assert may(tools=[{"type": "function", "function": empty}]) == Calls((now,))
    with pytest.raises(InputError, match="tool_choice: ad is none of the tools; did you mean add"):
        may(tools=[ADD], tool_choice={"type": "function", "function": {"name": "ad"}})
    long = {"name": "long", "parameters": {"description": "a" * LONGEST_GRAMMAR}}
    with pytest.raises(InputError, match="tools: at most 65536 characters can be obeyed"):
        may(tools=[{"type": "function", "function": long}])
    with pytest.raises(InputError, match="tools: add is there 2 times: nobody could tell"):
        may(tools=[ADD, NOW, ADD])
    number = {"name": "n", "parameters": {"type": "number"}}
    with pytest.raises(InputError, match="tools: the parameters of n must be an object"):
        may(tools=[{"type": "function", "function": number}])
    with pytest.raises(InputError, match="tool_choice: there are no tools"):
        may(tool_choice="required")
    with pytest.raises(InputError, match=r"tools\[0\].function.name is missing"):
        may(tools=[{"type": "function", "function": {}}])


def may(**more) -> Calls | None:
    return calls_of(call(**more).sampling)


def test_text_that_is_gone_on_with_calls_nothing() -> None:
    with pytest.raises(InputError, match="tools are for messages"):
        told("1 + 1 =", Sampling(tools=[ADD]))


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
    # Results of several calls are one message.
    results = [{"role": "tool", "tool_call_id": "c", "content": text} for text in "23"]
    (prompt,) = call(messages=[*messages[:2], *results]).prompts
    assert [each.role for each in prompt] == ["user", "assistant", "user"]
    told = [f"<tool_response>\n{text}\n</tool_response>" for text in "23"]
    assert prompt[2].content == "\n".join(told)
    with pytest.raises(InputError, match=r"messages\[3\].content is missing"):
        call(messages=[messages[0], *results, {"role": "user"}])


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
        # What cannot be sent as JSON, or says more or other than a call does.
        ('{"name": "add", "arguments": {"a": NaN}}', []),
        ('{"name": "add", "arguments": {"a": 1e999}}', []),
        ('{"name": "add", "arguments": {"a": "\\ud800"}}', []),
        ('{"name": "add", "arguments": [1]}', []),
        ('{"name": "add"}', []),
        ('{"name": "add", "arguments": {"a": 1}, "age": 3}', []),
        ('{"name": ["add"], "arguments": {"a": 1}}', []),
    ],
)
def test_calls_are_found_where_an_answer_is_nothing_else(text: str, names: list[str]) -> None:
    calls = calls_in(text, ("add", "now"))
    assert [each["function"]["name"] for each in calls] == names
    assert all(each["function"]["arguments"] == '{"a": 1}' for each in calls)
    assert len({each["id"] for each in calls}) == len(calls)


def test_arguments_may_hold_the_marks_of_calls() -> None:
    said = '{"name": "now", "arguments": {"t": "</tool_call> <tool_call>"}}'
    for text in (said, f"<tool_call>\n{said}\n</tool_call>"):
        (found,) = calls_in(text, ("now",))
        assert json.loads(found["function"]["arguments"]) == {"t": "</tool_call> <tool_call>"}


@pytest.mark.parametrize(
    ("text", "reason", "due"),
    [
        ('{"name": "add', "length", True),
        ('{"name": "add", "', "stop", True),
        ('<tool_call>\n{"name": "add", "', "stop", False),
        (f"<tool_call>\n{CALLED}\n</tool_call>, or <tool_call>", "length", False),
        ("<tool_call", "length", False),
    ],
)
def test_nothing_of_a_call_that_is_cut_off_is_shown(text, reason, due) -> None:
    answer, _ = written(text, functions=("add",), due=due, reason=reason)
    assert (answer.text, answer.calls, answer.finish_reason) == ("", (), reason)


CUT = ("", "\n", "<", "\n<tool_ca", "<tool_call>", '<tool_call>\n{"')


@pytest.mark.parametrize(
    ("rest", "reason"), [*((rest, "length") for rest in CUT), *((rest, "stop") for rest in CUT[4:])]
)
def test_calls_before_one_that_is_cut_off_are_there(rest, reason) -> None:
    one = f"<tool_call>\n{CALLED}\n</tool_call>"
    answer, _ = written("Well. ", one, f"\n{one}", rest, functions=("add",), reason=reason)
    assert [each["function"]["name"] for each in answer.calls] == ["add", "add"]
    assert answer.text == "Well."
    assert answer.finish_reason == (reason if reason == "length" else "tool_calls")


@pytest.mark.parametrize("before", ["", "Let me see.", "1 < 2, so <tool> it is: "])
def test_a_call_is_streamed_whole_and_no_text_of_it(before) -> None:
    said = f"{before}\n\n<tool_call>\n{CALLED}\n</tool_call>"
    for size in (1, 3, 7, len(said)):
        texts = [said[at : at + size] for at in range(0, len(said), size)]
        answer, parts = written(*texts)
        shown = "".join(part["delta"].get("content", "") for part in parts)
        assert shown == before.rstrip()
        assert parts[-1]["delta"]["tool_calls"] == [{"index": 0, **answer.calls[0]}]
        assert parts[-1]["finish_reason"] == "tool_calls"
        message = Letterhead(CHAT, "x", 0, "m").whole([answer])["choices"][0]
        assert message["message"]["content"] == (before.rstrip() or None)
        assert message["message"]["tool_calls"] == answer.calls
        assert message["finish_reason"] == "tool_calls"
        # What is cut off is no call, and no text.
        answer, parts = written(*texts[:-1], "", reason="length")
        if size < len(said):
            assert answer.text == before.rstrip()
            assert (answer.calls, answer.finish_reason) == ((), "length")


def test_several_calls_have_numbers() -> None:
    one = f"<tool_call>\n{CALLED}\n</tool_call>"
    _, parts = written("Well. ", one, "\n", one)
    calls = parts[-1]["delta"]["tool_calls"]
    assert [each["index"] for each in calls] == [0, 1]
    assert len({each["id"] for each in calls}) == 2


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
    assert answer.calls == ()


def test_what_may_become_a_call_is_looked_at_once() -> None:
    stream = CallStream(Calls((("add", "{}"),)))
    shown = [stream.push(text, None)[0] for text in ("a", " " * 100_000, "\n", "b", " <tool", "s ")]
    assert "".join(shown) == f"a{' ' * 100_000}\nb <tools"
    assert stream.push("c", "stop") == (" c", ())
