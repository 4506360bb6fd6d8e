"""The endpoint /v1/responses, by the openai client, on fake models over a real connection."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from servers import Client, openai_client
from traces import thinking_steps

from eva_local.openai.answer import Answer
from eva_local.openai.responses import ResponseLetterhead
from eva_local.types import Sampling

TEXT = "the unbelievable"
NOW = {"type": "function", "name": "now", "parameters": {"enum": [{}]}, "strict": True}


@pytest.fixture(scope="module")
def client(served: Client) -> Iterator[openai.OpenAI]:
    with openai_client(served) as client:
        yield client


def test_a_response_is_what_a_chat_answers(client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    chat = client.chat.completions.create(model="pair", messages=messages, max_tokens=2)
    made = client.responses.create(
        model="pair", input=TEXT, instructions="Be brief.", max_output_tokens=2
    )
    assert made.output_text == chat.choices[0].message.content
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (made.model, made.store, made.max_output_tokens) == ("pair", False, 2)
    assert made.usage.input_tokens == chat.usage.prompt_tokens
    assert made.usage.output_tokens == 2
    assert made.usage.total_tokens == made.usage.input_tokens + 2


def test_streamed_it_is_the_same(client) -> None:
    how = {"model": "pair", "input": [{"role": "user", "content": TEXT}], "max_output_tokens": 9}
    how |= {"top_logprobs": 2}
    whole = client.responses.create(**how)
    events = list(client.responses.create(**how, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "incomplete"),
    ]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    (item,) = events[-1].response.output
    assert item.content == whole.output[0].content
    assert len(item.content[0].logprobs) == 9
    assert [each for event in deltas for each in event.logprobs] != []
    assert events[0].response.status == "in_progress"
    # The client puts events together by itself, too.
    with client.responses.stream(**how) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_a_schema_is_obeyed_and_parsed(client) -> None:
    schema = {"enum": [{"n": 1}, {"n": 2}]}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    made = client.responses.create(model="pair", input=TEXT, text=form, max_output_tokens=60)
    assert made.status == "completed"
    assert json.loads(made.output_text)["n"] in (1, 2)
    assert made.text.format.name == "n"


def test_a_call_and_its_result(client) -> None:
    how = {"model": "pair", "tools": [NOW], "tool_choice": "required", "max_output_tokens": 99}
    made = client.responses.create(input=TEXT, **how)
    (call,) = made.output
    assert (call.type, call.name, call.arguments) == ("function_call", "now", "{}")
    assert made.output_text == ""
    events = list(client.responses.create(input=TEXT, **how, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    with client.responses.stream(input=TEXT, **how) as stream:
        assert list(stream)[-1].type == "response.completed"
        assert stream.get_final_response().output[0].name == "now"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
    turns = [{"role": "user", "content": TEXT}, call.to_dict(), result]
    client.responses.create(model="pair", input=turns, max_output_tokens=3)


def test_a_thought_is_an_item_of_its_own() -> None:
    answer, form = Answer(), ResponseLetterhead("m", {}, Sampling())
    events = []
    for step in thinking_steps("Let me see.", TEXT):
        events += form.parts(0, answer, answer.push(step))
    final = form.last([answer])["response"]
    whole = ResponseLetterhead("m", {}, Sampling()).whole([answer])
    texts = [[part["text"] for part in item["content"]] for item in final["output"]]
    assert texts == [[answer.reasoning], [answer.text]]
    assert [[part["text"] for part in item["content"]] for item in whole["output"]] == texts
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]
    told = [e["delta"] for e in events if e["type"] == "response.reasoning_text.delta"]
    assert "".join(told) == answer.reasoning


def test_errors_have_their_status_or_are_events(client, served, monkeypatch) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="pair", input=TEXT, previous_response_id="resp_1")
    reply = served.ask("/v1/responses", {"input": 3})
    assert (reply.status, reply.body["error"]["param"]) == (400, "input")
    with pytest.raises(openai.NotFoundError, match="did you mean pair"):
        client.responses.create(model="par", input=TEXT)
    form = ResponseLetterhead("m", {}, Sampling())
    sent = form.event(
        {"error": {"message": "x", "type": "server_error", "param": None, "code": None}}
    )
    head, data = sent.decode().splitlines()[:2]
    assert head == "event: error"
    told = {"type": "error", "sequence_number": 0, "message": "x", "param": None, "code": None}
    assert json.loads(data.removeprefix("data: ")) == told
