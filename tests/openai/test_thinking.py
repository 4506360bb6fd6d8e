"""What a request says of thoughts, and how an answer tells of one."""

from __future__ import annotations

import pytest
from traces import thinking_steps

from eva_local.errors import InputError
from eva_local.openai.answer import Answer, Letterhead, trace_of
from eva_local.openai.request import (
    CHAT,
    COMPLETION,
    LONGEST_GRAMMAR,
    read_body,
    read_call,
    read_options,
)
from eva_local.openai.shapes import AnswerRequest, ChatMessages
from eva_local.reading import read
from eva_local.server.guard import problem_of
from eva_local.types import Message, Sampling

DEFAULTS = Sampling()
ASKED = {"messages": [{"role": "user", "content": "a"}]}


def drawn(defaults: Sampling = DEFAULTS, **options: object) -> Sampling:
    """Return how an answer is drawn, which batches and the server read alike."""
    sampling = read_options(options, defaults)
    body = {**ASKED, **options}
    assert read_body(body, CHAT, defaults).sampling == sampling
    call = read_call(body, CHAT, defaults, piece_of=lambda _: b"", members=("a",))
    assert call.sampling == sampling
    return sampling


@pytest.mark.parametrize(
    ("options", "thinking", "told"),
    [
        ({}, "auto", {}),
        ({"thinking": "on"}, "on", {}),
        ({"enable_thinking": False}, "off", {}),
        ({"enable_thinking": True}, "on", {}),
        ({"reasoning_effort": "none"}, "off", {}),
        ({"reasoning_effort": "low"}, "on", {"reasoning_effort": "low"}),
        ({"reasoning_effort": "xhigh", "thinking": "on"}, "on", {"reasoning_effort": "xhigh"}),
        ({"chat_template_kwargs": {"thinking": True}}, "on", {"thinking": True}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "mood": [1]}, "thinking": "off"},
            "off",
            {"enable_thinking": False, "mood": [1]},
        ),
        # Apart is a way to think.
        ({"thinking": "apart", "enable_thinking": True}, "apart", {}),
        ({"thinking": "apart", "reasoning_effort": "low"}, "apart", {"reasoning_effort": "low"}),
        # What is no switch says nothing of it.
        ({"chat_template_kwargs": {"thinking": "deep"}}, "auto", {"thinking": "deep"}),
    ],
)
def test_who_thinks(options, thinking, told) -> None:
    sampling = drawn(**options)
    assert (sampling.thinking, sampling.chat_template_kwargs) == (thinking, told)


def test_a_request_goes_before_the_ensemble_and_is_merged_with_it() -> None:
    own = Sampling(chat_template_kwargs={"enable_thinking": True, "mood": 1, "style": 2})
    assert drawn(own).thinking == "on"
    for off in ({"enable_thinking": False}, {"thinking": "off"}, {"reasoning_effort": "none"}):
        found = drawn(own, **off)
        assert (found.thinking, found.chat_template_kwargs) == ("off", {"mood": 1, "style": 2})
    told = {"enable_thinking": False, "mood": 3}
    found = drawn(own, chat_template_kwargs=told)
    assert (found.thinking, found.chat_template_kwargs) == ("off", {**told, "style": 2})
    assert drawn(own, chat_template_kwargs={"mood": 3}).thinking == "on"
    assert drawn(own, thinking="auto").thinking == "auto"
    apart = Sampling(thinking="apart")
    assert drawn(apart, reasoning_effort="low").thinking == "apart"
    assert drawn(apart, thinking="on").thinking == "on"
    assert drawn(apart, enable_thinking=False).thinking == "off"
    high = Sampling(thinking="on", chat_template_kwargs={"reasoning_effort": "high"})
    assert drawn(high, reasoning_effort="low").chat_template_kwargs == {"reasoning_effort": "low"}
    assert drawn(high, reasoning_effort="none").chat_template_kwargs == {}
    assert drawn(high, enable_thinking=True).chat_template_kwargs == {"reasoning_effort": "high"}


@pytest.mark.parametrize(
    "name",
    ["thinking_budget", "reasoning_budget", "thinking_budget_tokens", "thinking_token_budget"],
)
def test_a_budget_has_several_names(name) -> None:
    assert drawn(**{name: 7}).thinking_budget == 7
    with pytest.raises(InputError, match="thinking_budget"):
        drawn(**{"thinking_budget": 8, "reasoning_budget": 9, name: 7})


def refused(body: dict, endpoint: str = CHAT) -> tuple[str, str | None]:
    """Return what is said of a body that is refused, and the key that is named."""
    with pytest.raises(InputError) as raised:
        read_call(body, endpoint, Sampling(), piece_of=lambda _: b"", members=("a",))
    error = problem_of(raised.value)["error"]
    return error["message"], error["param"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"enable_thinking": True, "reasoning_effort": "none"},
            "enable_thinking and reasoning_effort contradict each other: give one",
        ),
        (
            {"thinking": "off", "chat_template_kwargs": {"enable_thinking": True}},
            "thinking and chat_template_kwargs.enable_thinking contradict each other: give one",
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            "reasoning_effort and that of chat_template_kwargs differ: give one",
        ),
        (
            {"thinking": "apart", "reasoning_effort": "none"},
            "thinking and reasoning_effort contradict each other: give one",
        ),
        ({"enable_thinking": "yes"}, "enable_thinking must be true or false, not 'yes'"),
        ({"thinking": {"type": "on"}}, 'thinking must be "apart" or "auto" or "off" or "on", not '),
        ({"reasoning_effort": "hgih"}, 'reasoning_effort must be "high" or "low" or '),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs is no JSON object"),
        ({"chat_template": " "}, "chat_template must not be empty"),
        ({"chat_template": "x" * (LONGEST_GRAMMAR + 1)}, "chat_template: at most 65536 char"),
        ({"thinking_budget": -2}, "thinking_budget must be -1 (no limit) or more, not -2"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(options, message) -> None:
    said, param = refused({**ASKED, **options})
    assert said.startswith(message)
    assert param == next(iter(options))


@pytest.mark.parametrize(
    "options",
    [
        {"thinking": "on"},
        {"enable_thinking": True},
        {"reasoning_effort": "minimal"},
        {"chat_template_kwargs": {"mood": 1}},
        {"chat_template": "{{ messages }}"},
    ],
)
def test_a_text_that_is_gone_on_with_has_no_thought(options) -> None:
    said, param = refused({"prompt": "a", **options}, COMPLETION)
    assert param == next(iter(options))
    assert "is for messages: a text that is gone on with has no chat template" in said
    with pytest.raises(InputError, match=param):
        read_options(options, Sampling(), told=False)


def test_but_one_that_each_member_has_apart() -> None:
    asked = read_body({"prompt": "a", "thinking": "apart"}, COMPLETION, Sampling())
    assert asked.sampling.thinking == "apart"
    with pytest.raises(InputError, match="reasoning_effort is for messages"):
        read_body({"prompt": "a", "reasoning_effort": "low"}, COMPLETION, asked.sampling)


@pytest.mark.parametrize(
    "options",
    [
        {"thinking": "off"},
        {"enable_thinking": False, "reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking_budget": 5},
    ],
)
def test_and_who_asks_for_none_there_asks_for_nothing(options) -> None:
    assert read_body({"prompt": "a", **options}, COMPLETION, Sampling()).prompt == "a"


def test_thoughts_in_messages_are_told_to_nobody() -> None:
    thought = {"role": "assistant", "content": "b", "reasoning_content": "so", "reasoning": "so"}
    body = {"messages": [*ASKED["messages"], thought, {"role": "user", "content": "c"}]}
    asked = read_body(body, CHAT, Sampling())
    assert asked.prompt == [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert read([thought], ChatMessages)[0].reasoning == "so"


STEPS = thinking_steps("Let me see.", "It is salt.")


def answered(**how: bool) -> tuple[Letterhead, Answer]:
    answer = Answer(**how)
    for step in STEPS:
        answer.push(step)
    return Letterhead(CHAT, "x", 0, "trio"), answer


def streamed(head: Letterhead) -> list[dict]:
    answer = Answer()
    return [part for step in STEPS for part in head.parts(0, answer, answer.push(step))]


def test_an_answer_tells_its_thought_apart() -> None:
    answer = answered(told=True)[1]
    body = Letterhead(CHAT, "x", 0, "trio", AnswerRequest(trace=True)).whole([answer])
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "It is salt."
    assert choice["message"]["reasoning_content"] == "Let me see."
    # Probabilities are told of the answer alone.
    told = [token["token"] for token in choice["logprobs"]["content"]]
    assert "".join(told) == "It is salt."
    assert choice["logprobs"]["content"][0]["bytes"] == list(b"It")
    thought = [each for each in choice["eva"] if each["reasoning"] is not None]
    assert "".join(each["reasoning"] for each in thought) == "Let me see."
    assert choice["eva"][: len(thought)] == thought
    n_thought = STEPS[-1].usage.reasoning_steps
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": n_thought}
    assert len(thought) == n_thought


def test_so_does_a_text_that_is_gone_on_with() -> None:
    answer, head = answered(told=True)[1], Letterhead(COMPLETION, "x", 0, "trio")
    body = head.whole([answer])
    (choice,) = body["choices"]
    assert (choice["text"], choice["reasoning_content"]) == ("It is salt.", "Let me see.")
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    parts = [part["choices"][0] for part in streamed(head)]
    for key, text in (("reasoning_content", "Let me see."), ("text", "It is salt.")):
        assert "".join(part.get(key, "") for part in parts) == text


def test_an_answer_without_a_thought_has_no_such_field() -> None:
    answer = Answer()
    for step in STEPS:
        if step.reasoning is None:
            answer.push(step)
    message = Letterhead(CHAT, "x", 0, "trio").whole([answer])["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "It is salt.", "refusal": None}


def test_a_stream_tells_the_thought_before_any_content() -> None:
    head, _ = answered()
    opening, *parts = streamed(head)
    assert opening["choices"][0]["delta"]["content"] is None
    deltas = [part["choices"][0]["delta"] for part in parts]
    keys = [key for delta in deltas for key in delta]
    assert keys == sorted(keys, reverse=True)
    assert set(keys) == {"reasoning_content", "content"}
    for key, text in (("reasoning_content", "Let me see."), ("content", "It is salt.")):
        assert "".join(delta.get(key, "") for delta in deltas) == text


def test_a_trace_says_of_each_step_whether_it_is_of_the_thought() -> None:
    assert [trace_of(step)["reasoning"] for step in STEPS] == [step.reasoning for step in STEPS]
