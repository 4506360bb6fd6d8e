"""Calls of functions over two turns, by the openai client, on models that want to call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from batches import ensemble_of_models, fake_spec
from callers import ADD, Calculator
from servers import openai_client, serving

QUESTION = [{"role": "user", "content": "What is 1 + 2?"}]
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    spec = fake_spec(tmp_path_factory.mktemp("fake"))

    def opened():
        return ensemble_of_models(spec, [Calculator(), Calculator()], 4)

    with serving(opened) as served, openai_client(served) as client:
        yield client


def asked(client: openai.OpenAI, messages: list[Any], *, stream: bool, **more: Any) -> Any:
    """The message that a chat answers with, and why it ended."""
    how = {"model": "pair", "messages": messages, "tools": [ADD, NOW], "max_tokens": 300, **more}
    if not stream:
        (choice,) = client.chat.completions.create(**how).choices
    else:
        with client.chat.completions.stream(**how) as parts:
            told = "".join(e.delta for e in parts if e.type == "content.delta")
            (choice,) = parts.get_final_completion().choices
        assert told == (choice.message.content or "")
    return choice.message, choice.finish_reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_call_and_its_result_over_two_turns(client, stream, temperature) -> None:
    how = {"stream": stream, "temperature": temperature}
    message, reason = asked(client, QUESTION, **how)
    assert (message.content, reason) == ("Let me see.", "tool_calls")
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1, "b": 2})
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    message, reason = asked(client, [*QUESTION, message, result], **how)
    assert (message.content, reason, message.tool_calls) == ("It is 3.", "stop", None)


@pytest.mark.parametrize("stream", [False, True])
def test_several_calls_unless_they_are_not_wanted(client, stream) -> None:
    both = [{"role": "user", "content": "both"}]
    message, _ = asked(client, both, stream=stream)
    assert [call.function.name for call in message.tool_calls] == ["add", "add"]
    assert message.content == "Let me see."
    message, _ = asked(client, both, stream=stream, parallel_tool_calls=False)
    assert [call.function.name for call in message.tool_calls] == ["add"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_within_a_call_has_those_before_it(client, stream) -> None:
    both = [{"role": "user", "content": "both"}]
    tool = {"type": "function", **ADD["function"]}
    how = {"model": "pair", "input": both, "tools": [tool], "max_output_tokens": 300}
    most = client.responses.create(**how).usage.output_tokens - 20
    if stream:
        # The client refuses to parse what was cut off.
        parts = client.chat.completions.create(
            model="pair", messages=both, tools=[ADD], max_tokens=most, stream=True
        )
        *_, last = parts
        (call,), reason = last.choices[0].delta.tool_calls, last.choices[0].finish_reason
    else:
        message, reason = asked(client, both, stream=False, max_tokens=most)
        (call,) = message.tool_calls
    assert (reason, call.function.name) == ("length", "add")
    made = client.responses.create(**how | {"max_output_tokens": most})
    assert made.status == "incomplete"
    assert [item.type for item in made.output] == ["message", "function_call"]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_no_call_becomes_one_or_is_cut_off(client, seed) -> None:
    wrong = [{"role": "user", "content": "wrong"}]
    message, reason = asked(client, wrong, stream=seed == 1, seed=seed, temperature=1)
    assert message.content == "Let me see."
    assert reason in ("tool_calls", "length")
    for call in message.tool_calls or ():
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "now" or set(arguments) == {"a", "b"}


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": []}])
def test_without_tools_nothing_is_told_of_them(client, more) -> None:
    message, reason = asked(client, QUESTION, stream=False, **more)
    assert (message.content, reason) == ("There are no tools.", "stop")


def test_a_call_that_is_due_and_one_of_the_newer_api(client) -> None:
    message, _ = asked(client, QUESTION, stream=False, tool_choice="required")
    assert (message.content, message.tool_calls[0].function.name) == (None, "add")
    tool = {"type": "function", **ADD["function"]}
    made = client.responses.create(model="pair", input="What is 1 + 2?", tools=[tool])
    assert [item.type for item in made.output] == ["message", "function_call"]
    assert made.output_text == "Let me see."
    result = {"type": "function_call_output", "call_id": made.output[1].call_id, "output": "3"}
    turns = [*QUESTION, *(item.to_dict() for item in made.output), result]
    assert client.responses.create(model="pair", input=turns).output_text == "It is 3."
