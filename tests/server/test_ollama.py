"""ollama's protocol, by its own client, on fake models over a real connection."""

from __future__ import annotations

import json

import ollama
import pytest
from servers import Client
from traces import thinking_steps

from eva_local.openai.answer import Answer
from eva_local.server.ollama import Lines

TEXT = "the unbelievable"
ASKED = [{"role": "user", "content": TEXT}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "enum": ["x"]}}}
NOW = {"type": "function", "function": {"name": "now", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def client(served: Client):
    with ollama.Client(host=served.server.url) as client:
        yield client


def test_models_are_listed_and_shown(client, served) -> None:
    assert [each.model for each in client.list().models] == ["pair", "pair/a", "pair/b"]
    assert [each.model for each in client.ps().models] == ["pair", "pair/a", "pair/b"]
    shown = client.show("pair")
    assert shown.modelinfo["eva-local.context_length"] == 4096
    assert shown.details.families == ["a", "b"]
    assert set(shown.capabilities) == {"completion", "tools", "thinking"}
    assert set(served.ask("/api/version").body) == {"version"}
    assert client.chat("pair:latest", ASKED, options={"num_predict": 1}).model == "pair"


def test_a_chat_is_what_openais_endpoint_answers(client, served) -> None:
    whole = served.chat(TEXT, max_tokens=5, logprobs=True, top_logprobs=2).body
    (choice,) = whole["choices"]
    how = {"options": {"num_predict": 5, "num_ctx": 99, "temperature": 0, "mirostat": 0}}
    made = client.chat("pair", ASKED, logprobs=True, top_logprobs=2, keep_alive="5m", **how)
    assert made.message.content == choice["message"]["content"]
    assert (made.done, made.done_reason) == (True, "length")
    assert (made.prompt_eval_count, made.eval_count) == (whole["usage"]["prompt_tokens"], 5)
    assert made.total_duration == made.prompt_eval_duration + made.eval_duration > 0
    told = choice["logprobs"]["content"]
    assert [each.logprob for each in made.logprobs] == [each["logprob"] for each in told]
    assert len(made.logprobs[0].top_logprobs) == 2

    parts = list(client.chat("pair", ASKED, stream=True, **how))
    assert "".join(part.message.content for part in parts) == made.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == 5


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"other": 1}, "unknown option 'other'"),
        ({"options": {"temperature": "hot"}}, "temperature must be a number, not 'hot'"),
        ({"tools": 3}, "tools must be a list of objects, not 3"),
        ({"options": {"mirostat": 2}}, "mirostat 2 is not supported here"),
    ],
)
def test_what_asks_for_nothing_is_read_as_strictly(served, path, body, problem) -> None:
    how = {"keep_alive": "5m", "options": {"num_ctx": 99}}
    assert served.ask(path, how).body["done_reason"] == "load"
    reply = served.ask(path, how | body)
    assert reply.status == 400
    assert problem in reply.body["error"]


def test_a_question_and_a_text_to_be_gone_on_with(client, served) -> None:
    how = {"options": {"num_predict": 5}}
    chat = served.chat(TEXT, max_tokens=5).body["choices"][0]["message"]["content"]
    made = client.generate("pair", TEXT, **how)
    assert (made.response, made.done) == (chat, True)
    parts = client.generate("pair", TEXT, stream=True, **how)
    assert "".join(part.response for part in parts) == chat
    told = client.generate("pair", TEXT, system="Be brief.", options={"num_predict": 1})
    assert told.prompt_eval_count > made.prompt_eval_count
    text = served.complete(TEXT, max_tokens=5).body["choices"][0]["text"]
    assert client.generate("pair", TEXT, raw=True, **how).response == text
    # Without words it is asked whether the model is loaded.
    assert client.generate("pair").done_reason == client.chat("pair").done_reason == "load"


def test_formats_and_thoughts(client) -> None:
    made = client.chat("pair", ASKED, format={"enum": [{"n": 1}]}, options={"num_predict": 40})
    assert json.loads(made.message.content) == {"n": 1}
    made = client.chat("pair", ASKED, format="json", think=False, options={"num_predict": 9})
    assert made.message.content.startswith("{")
    answer, lines = Answer(), []
    form = Lines("/api/chat", "", 0, "m")
    for step in thinking_steps("Let me see.", TEXT):
        lines += form.parts(0, answer, answer.push(step))
    assert "".join(each["message"].get("thinking", "") for each in lines) == answer.reasoning
    assert "".join(each["message"]["content"] for each in lines) == answer.text
    assert form.whole([answer])["message"]["thinking"] == answer.reasoning


def test_a_call_and_its_result(client) -> None:
    chosen = {"type": "function", "function": {"name": "now"}}
    made = ollama.ChatResponse(
        **client._request_raw(
            "POST",
            "/api/chat",
            json={
                "model": "pair",
                "messages": ASKED,
                "tools": [NOW],
                "tool_choice": chosen,
                "stream": False,
            },
        ).json()
    )
    (call,) = made.message.tool_calls
    assert call.function.name == "now"
    assert made.message.content == ""
    assert made.done_reason == "stop"
    result = {"role": "tool", "tool_name": "now", "content": "noon"}
    turns = [*ASKED, made.message, result]
    options = {"num_predict": 2}
    more = client.chat("pair", turns, tools=[NOW], options=options)
    assert more.prompt_eval_count > made.prompt_eval_count
    parts = list(client.chat("pair", turns, tools=[NOW], options=options, stream=True))
    assert parts[-1].done


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("chat", {"options": {"mirostat": 1}}, "mirostat 1 is not supported here"),
        ("chat", {"options": {"num_tokens": 1}}, "unknown option 'num_tokens'"),
        ("chat", {"options": {"n": 2}}, "n 2 is not supported here"),
        ("chat", {"options": 3}, "options is no JSON object"),
        ("chat", {"options": {"messages": []}}, "options: messages is no option; say it beside"),
        ("chat", {"options": {"reasoning_effort": "x"}}, "options: reasoning_effort is no option"),
        ("chat", {"format": "xml"}, 'format must be "" or "json" or an object'),
        ("chat", {"format": "json", "response_format": {}}, "response_format is said in other"),
        ("chat", {"messages": [{**ASKED[0], "images": ["x"]}]}, "unknown option 'messages[0].im"),
        ("chat", {"trace": True}, "trace true is not supported here"),
        ("chat", {"model": "par"}, "model 'par' is not here; did you mean pair"),
        ("generate", {"context": [1]}, "context must be left out: send messages"),
        ("generate", {"template": "x"}, 'template must be ""'),
        ("generate", {"suffix": "x"}, "suffix 'x' is not supported here"),
        ("generate", {"raw": True, "echo": True}, "echo true is not supported here"),
        ("generate", {"raw": True, "system": "Be brief."}, "system: a raw prompt is all that is"),
    ],
)
def test_what_cannot_be_done_is_said_in_its_shape(client, served, path, body, problem) -> None:
    words = {"messages": ASKED} if path == "chat" else {"prompt": TEXT}
    reply = served.ask(f"/api/{path}", {"model": "pair", "stream": False, **words, **body})
    assert reply.status == (404 if "model" in body else 400)
    assert set(reply.body) == {"error"}
    assert problem in reply.body["error"]
    with pytest.raises(ollama.ResponseError, match="is not here"):
        client.chat("par", ASKED)
    assert set(served.ask("/api/pull", {}).body) == {"error"}
    assert served.ask("/api/show", {"name": "par"}).status == 404
