"""What is asked for by /v1/responses, as a chat, and what is refused there."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eva_local.errors import InputError
from eva_local.openai.request import CHAT, in_chat, read_call
from eva_local.openai.responses import ResponseRequest
from eva_local.server.ollama import OllamaChat, OllamaText
from eva_local.types import Message, Sampling

USER = {"role": "user", "content": "1 + 1?"}
CALL = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
DONE = {"type": "function_call_output", "call_id": "c", "output": "2"}
ADD = {"name": "add", "description": "Add", "parameters": {"type": "object"}}


def chat(**body) -> dict:
    return dict(in_chat({"input": "a", **body}, ResponseRequest))


def test_a_text_is_a_message_behind_the_instructions() -> None:
    assert chat()["messages"] == [{"role": "user", "content": "a"}]
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert chat(instructions="Be brief.")["messages"] == told


def test_items_are_messages() -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    call = {"type": "function_call", "call_id": "c", "id": "fc", "status": "completed", **function}
    thought = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"text": "hm"}]}
    parts = [{"type": "input_text", "text": "1 "}, {"type": "input_text", "text": "+ 1?"}]
    said = {"type": "output_text", "text": "2", "annotations": [], "logprobs": [{"token": "2"}]}
    result = {"type": "function_call_output", "call_id": "c", "output": "2"}
    items = [{"role": "user", "content": parts}, thought, call, {**call, "call_id": "d"}, result]
    items += [{"type": "message", "id": "m", "role": "assistant", "content": [said]}, USER]
    asked = read_call(chat(input=items), CHAT, Sampling(), piece_of=bytes, members=("a",))
    called = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert asked.prompts == (
        [
            Message("user", "1 + 1?"),
            Message("assistant", f"{called}\n{called}"),
            Message("user", "<tool_response>\n2\n</tool_response>"),
            Message("assistant", "2"),
            Message("user", "1 + 1?"),
        ],
    )


def test_an_answer_with_a_call_is_one_message() -> None:
    said = {"role": "assistant", "content": "Let me see."}
    thought = {"type": "reasoning", "id": "rs", "summary": []}
    items = [USER, thought, said, thought, CALL, CALL, DONE, USER, CALL, DONE]
    asked = read_call(chat(input=items), CHAT, Sampling(), piece_of=bytes, members=("a",))
    called = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    done = Message("user", "<tool_response>\n2\n</tool_response>")
    assert asked.prompts == (
        [
            Message("user", "1 + 1?"),
            Message("assistant", f"Let me see.\n{called}\n{called}"),
            done,
            Message("user", "1 + 1?"),
            Message("assistant", called),
            done,
        ],
    )


def test_options_have_the_names_of_chats() -> None:
    schema = {"type": "object"}
    named = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    found = chat(
        text={"format": named, "verbosity": "low"},
        tools=[{"type": "function", **ADD}],
        tool_choice={"type": "function", "name": "add"},
        reasoning={"effort": "low", "summary": "auto"},
        max_output_tokens=9,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_p=0.5,
        store=True,
    )
    del found["messages"]
    assert found == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
        "tools": [{"type": "function", "function": ADD}],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "reasoning_effort": "low",
        "max_tokens": 9,
        "logprobs": True,
        "top_p": 0.5,
        "store": True,
    }
    assert chat(text={"format": {"type": "text"}})["response_format"] == {"type": "text"}
    assert chat(tool_choice="required")["tool_choice"] == "required"
    assert chat(top_logprobs=2)["logprobs"]
    assert "logprobs" not in chat()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"previous_response_id": "x"}, "previous_response_id 'x' is not supported here"),
        ({"background": True}, "background true is not supported here"),
        ({"truncation": "auto"}, "truncation 'auto' is not supported here"),
        ({"messages": [USER]}, "messages is said in other words here"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type must be \"function\""),
        ({"tool_choice": {"type": "allowed_tools"}}, r"tool_choice.type must be \"function\""),
        ({"input": [{"type": "item_reference"}]}, r"input\[0\].type 'item_reference' is not supp"),
        ({"input": [USER | {"images": ["x"]}]}, r"unknown option 'input\[0\].images'"),
        ({"input": [USER | {"content": [{"type": "input_image"}]}]}, "not 'input_image'"),
        ({"input": 3}, "input must be a text or a list of objects"),
        ({"input": []}, r"input must be a text or a list of objects, not \[\]"),
        ({"input": [USER, CALL | {"index": 1}]}, r"unknown option 'input\[1\].index'"),
        ({"input": [USER, CALL, DONE | {"is_error": True}]}, r"unknown option 'input\[2\].is_err"),
        ({"input": [USER, {"type": "reasoning", "effort": 1}]}, r"unknown option 'input\[1\].eff"),
        ({"input": [{"type": "function_call", "arguments": ""}]}, r"input\[0\].name is missing"),
        ({"input": [DONE | {"output": None}]}, r"input\[0\].output is missing"),
        ({"input": [{"type": [1]}]}, r"input\[0\].type '\[1\]' is not supported here"),
        ({"instructions": "b", "input": [{"role": "x"}]}, r"input\[0\].role must be"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort must be"),
        ({"max_output_tokens": -2}, "max_output_tokens must be at least -1"),
        ({"include": ["file_search_call.results"]}, r"include\[0\] must be"),
        ({"text": {"form": {}}}, "unknown option 'text.form'; did you mean format"),
        ({"other": 1}, "unknown option 'other'"),
    ],
)
def test_what_cannot_be_done_is_refused(body, problem) -> None:
    with pytest.raises(InputError, match=problem):
        read_call(chat(**body), CHAT, Sampling(), piece_of=bytes, members=("a",))


def test_values_that_ask_for_nothing_are_taken() -> None:
    nothing = {"background": False, "truncation": "disabled", "n": 1, "store": False}
    read_call(chat(**nothing), CHAT, Sampling(), piece_of=bytes, members=("a",))


_PLAIN = st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "a", "auto"])
_KEYS = st.sampled_from(
    [
        *("type", "role", "content", "name", "arguments", "output", "call_id", "format", "effort"),
        *("message", "function_call", "function_call_output", "function", "text", "schema"),
        *("json_schema", "user", "assistant", "input_text", "parameters", "options", "think"),
    ]
)
_VALUES = st.recursive(
    _PLAIN | _KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_BODIES = st.dictionaries(
    st.sampled_from(
        [*ResponseRequest.__struct_fields__, *OllamaText.__struct_fields__, "messages", "n"]
    ),
    _VALUES,
)


@given(_BODIES, st.sampled_from([ResponseRequest, OllamaChat, OllamaText]))
def test_any_body_is_understood_or_refused(body, kind) -> None:
    said = {key: value for key, value in body.items() if value is not None}
    with contextlib.suppress(InputError):
        read_call(in_chat(said, kind), CHAT, Sampling(), piece_of=bytes, members=("a",))
