"""Thinking at the server, by the openai client, on tiny models with templates of today's models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import openai
import pytest
from servers import Client, openai_client, serving
from tiny_thinkers import write_thinkers

from eva_local.opening import load

NAMES = ("qwen35", "gpt-oss", "mixed", "thinkers")
#: One whose members, two of them of one model, think each for itself.
PANEL, MEMBERS = "panel", ("calm", "qwen35", "gpt-oss")
ASKED = [{"role": "user", "content": "Hello there"}]
SHORT = {"max_tokens": 12, "extra_body": {"thinking_budget": 5}}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, templates: Mapping[str, str]
) -> Iterator[Client]:
    config = write_thinkers(tmp_path_factory.mktemp("thinkers"), templates)
    openers = [partial(load, name, config=config, parallel=2) for name in (*NAMES, PANEL)]
    with serving(*openers, trust_templates=True) as client:
        yield client


@pytest.fixture(scope="module")
def client(served: Client) -> Iterator[openai.OpenAI]:
    with openai_client(served) as client:
        yield client


@pytest.fixture(params=NAMES)
def ask(client: openai.OpenAI, request: pytest.FixtureRequest) -> Any:
    """Asks a model; keys that OpenAI does not know go beside the others."""

    def asked(messages: list[dict[str, Any]] = ASKED, **options: Any) -> Any:
        more = {"thinking_budget": 5, **options.pop("extra_body", {})}
        options = {"max_tokens": 12, "model": request.param, **options, "extra_body": more}
        return client.chat.completions.create(messages=messages, **options)

    return asked


def thought_of(said: Any) -> str | None:
    return getattr(said, "reasoning_content", None)


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ({"reasoning_effort": "none"}, {"reasoning_effort": "low"}),
        ({"extra_body": {"enable_thinking": False}}, {"extra_body": {"enable_thinking": True}}),
    ],
)
def test_off_and_on(ask, off, on) -> None:
    whole = ask(**off)
    assert thought_of(whole.choices[0].message) is None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    whole = ask(**on, logprobs=True)
    message, n_thought = (
        whole.choices[0].message,
        whole.usage.completion_tokens_details.reasoning_tokens,
    )
    assert thought_of(message)
    assert 0 < n_thought <= 5
    assert n_thought < whole.usage.completion_tokens <= 12
    told = b"".join(bytes(token.bytes) for token in whole.choices[0].logprobs.content)
    assert told.decode("utf-8", "replace").startswith(message.content[:3])
    assert len(whole.choices[0].logprobs.content) <= whole.usage.completion_tokens - n_thought


def test_streamed_it_is_the_same(ask) -> None:
    whole = ask(reasoning_effort="high").choices[0].message
    options = {"include_usage": True}
    *parts, last = ask(reasoning_effort="high", stream=True, stream_options=options)
    deltas = [part.choices[0].delta for part in parts]
    kinds = ["thought" if thought_of(delta) else "answer" for delta in deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True)
    assert "thought" in kinds
    assert not any(delta.content for delta in deltas if thought_of(delta))
    assert "".join(thought_of(delta) or "" for delta in deltas) == whole.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    assert last.usage.completion_tokens_details.reasoning_tokens > 0
    off = ask(reasoning_effort="none", stream=True)
    assert not any(thought_of(part.choices[0].delta) for part in off)


def test_thoughts_apart_come_under_their_names(client) -> None:
    how = {"model": PANEL, "messages": ASKED, "max_tokens": 6, "seed": 3, "temperature": 1}
    body = {"thinking_budget": 4}
    whole = client.chat.completions.create(**how, extra_body=body)
    message = whole.choices[0].message
    parts = re.split(r"(?:^|\n\n)(\S+):\n", thought_of(message))
    assert (parts[0], tuple(parts[1::2])) == ("", MEMBERS)
    assert all(parts[2::2])
    n_thought = whole.usage.completion_tokens_details.reasoning_tokens
    assert 3 <= n_thought <= 3 * 4
    assert n_thought < whole.usage.completion_tokens <= n_thought + 6

    options = {"include_usage": True}
    *parts, last = client.chat.completions.create(
        **how, stream=True, stream_options=options, extra_body=body
    )
    deltas = [part.choices[0].delta for part in parts]
    kinds = ["thought" if thought_of(delta) else "answer" for delta in deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True)
    assert not any(delta.content for delta in deltas if thought_of(delta))
    told = [thought_of(delta) or "" for delta in deltas]
    assert "".join(told) == thought_of(message)
    # Each heading comes with the first words of its thought.
    assert [text.split(":")[0].strip() for text in told if ":\n" in text] == list(MEMBERS)
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage.completion_tokens_details.reasoning_tokens == n_thought
    # What thinks for itself need not.
    off = client.chat.completions.create(**how, reasoning_effort="none")
    assert thought_of(off.choices[0].message) is None


def test_a_schema_binds_the_answer_alone(ask) -> None:
    schema = {"enum": [{"n": 1}, {"n": 2}]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    message = ask(reasoning_effort="low", response_format=form, max_tokens=60).choices[0].message
    assert thought_of(message)
    assert json.loads(message.content)["n"] in (1, 2)


def test_the_second_turn_reads_nothing_of_the_thought(ask) -> None:
    first = ask(reasoning_effort="low").choices[0].message
    said = {"role": "assistant", "content": first.content or "x"}
    end = {"role": "user", "content": "And then?"}
    thought = {"reasoning_content": first.reasoning_content * 9}
    with_thought, without = (
        ask([*ASKED, each, end], reasoning_effort="low") for each in (said | thought, said)
    )
    assert with_thought.usage.prompt_tokens == without.usage.prompt_tokens
    assert with_thought.choices[0].message.content == without.choices[0].message.content


def test_a_thought_that_takes_all_tokens_leaves_no_answer(ask) -> None:
    whole = ask(reasoning_effort="low", max_tokens=3, extra_body={"thinking_budget": -1})
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content == ""
    assert whole.usage.completion_tokens_details.reasoning_tokens == 3


def test_effort_and_arguments_reach_the_templates(client) -> None:
    def read(model: str, **body: Any) -> int:
        made = client.chat.completions.create(
            model=model, messages=ASKED, max_tokens=1, extra_body=body
        )
        return int(made.usage.prompt_tokens)

    # gpt-oss writes "Reasoning: low".
    low = read("gpt-oss", reasoning_effort="low")
    assert low < read("gpt-oss", reasoning_effort="medium")
    assert read("gpt-oss", chat_template_kwargs={"model_identity": "I"}) < read("gpt-oss")
    template = "{% for m in messages %}{{ m.content }} {{ mood }}{% endfor %}"
    kwargs = {"mood": "so so so"}
    assert read("mixed", chat_template=template, chat_template_kwargs=kwargs) < read("mixed")


def test_programs_of_clients_are_refused_unless_they_are_trusted(served) -> None:
    service = served.server.service
    service.trust_templates = False
    try:
        reply = served.chat(model="mixed", chat_template="{{ messages }}")
    finally:
        service.trust_templates = True
    assert reply.status == 400
    assert "takes no programs from clients (--trust-templates)" in reply.body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"chat_template": "{% for %}"}, "its chat template cannot be read"),
        ({"chat_template": "/etc/passwd"}, "its chat template leaves out a message"),
        ({"chat_template_kwargs": {"messages": []}}, "a chat template's messages cannot be set"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "contradict each other"),
    ],
)
def test_what_cannot_be_done_is_one_clear_400(served, body, message) -> None:
    reply = served.chat(model="mixed", **body)
    assert reply.status == 400
    assert message in reply.problem
    assert "passwd" not in reply.problem


def test_a_plain_completion_has_no_thought(client) -> None:
    with pytest.raises(openai.BadRequestError, match="reasoning_effort is for messages"):
        client.completions.create(
            model="qwen35", prompt="a", extra_body={"reasoning_effort": "low"}
        )
    made = client.completions.create(
        model="qwen35", prompt="a", max_tokens=2, extra_body={"enable_thinking": False}
    )
    assert made.usage.completion_tokens_details is None
