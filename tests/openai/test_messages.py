"""What is said of a request that cannot be answered, to the letter: message and `param`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eva_local.errors import EvaError, InputError
from eva_local.openai.request import CHAT, COMPLETION, read_call
from eva_local.server.guard import problem_of
from eva_local.types import Sampling

ASKED = {"messages": [{"role": "user", "content": "a"}]}
INFINITY = float("inf")
IDS_BIASED = "logit_bias must be an object of token ids with a number each, or false, not"
CANNOT = "is not supported here; leave it out"
FORMAT = "response_format must be of type text, json_object, or json_schema with a schema"
IDS = "prompt must be a text, a list of token ids, or a list of these"
SEVERAL = IDS.removeprefix("prompt ")
ROLE = 'messages[0].role must be "assistant" or "developer" or "system" or "tool" or "user", not'
STOPS = "stop: at most 16 texts of 256 characters can be looked for"
TEXT = "must be a text, or a list of token ids"
WEIGHTS = (
    "weights must be equal, running, or numbers from 0 up, with a sum above 0 that is finite, one "
    "for each"
)


def told(read, body) -> tuple[str, str | None]:
    """Return what is said of a body, and the `param` that it names."""
    with pytest.raises(EvaError) as raised:
        read(body)
    error = problem_of(raised.value)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    return error["message"], error["param"]


def called(body, endpoint):
    return read_call(
        body, endpoint, Sampling(), piece_of=lambda token: bytes([token]), members=("a", "b")
    )


def one(**message) -> dict:
    return {"messages": [message]}


STREAMED = "continuous_usage_stats, include_obfuscation, include_usage"


PARTS = '"input_text" or "output_text" or "text"'


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        (
            {"tempersture": 1},
            "unknown option 'tempersture'; did you mean temperature?",
            "tempersture",
        ),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'", "temperature"),
        ({"temperature": "1"}, "temperature must be a number, not '1'", "temperature"),
        ({"temperature": True}, "temperature must be a number, not true", "temperature"),
        ({"temperature": -1}, "temperature must be in [0, 100), not -1", "temperature"),
        ({"temperature": INFINITY}, "temperature must be a number, not inf", "temperature"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0", "max_tokens"),
        ({"max_tokens": [1]}, "max_tokens must be a whole number, not [1]", "max_tokens"),
        ({"top_k": 1.5}, "top_k must be a whole number, not 1.5", "top_k"),
        ({"top_k": -2}, "top_k must be 0 (off) or more, not -2", "top_k"),
        ({"top_p": 0}, "top_p must be in (0, 1], not 0", "top_p"),
        ({"min_p": 1}, "min_p must be in [0, 1), not 1", "min_p"),
        (
            {"repeat_last_n": -2},
            "repeat_last_n must be 0 (off), -1 (all) or more, not -2",
            "repeat_last_n",
        ),
        ({"seed": "x"}, "seed must be a whole number or \"random\", not 'x'", "seed"),
        ({"seed": -2}, "seed must be 0 or more, not -2", "seed"),
        ({"n": 0}, "n must be from 1 to 128, not 0", "n"),
        ({"n": "1"}, "n must be a whole number, not '1'", "n"),
        ({"n": True}, "n must be a whole number, not true", "n"),
        ({"stream": "yes"}, "stream must be true or false, not 'yes'", "stream"),
        ({"trace": 1}, "trace must be true or false, not 1", "trace"),
        ({"stream_options": 1}, "stream_options must be an object, not 1", "stream_options"),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options needs stream true",
            "stream_options",
        ),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage must be true or false, not 1",
            "stream_options",
        ),
        (
            {"stream": True, "stream_options": {"x": 1}},
            f"unknown option 'stream_options.x'; known are: {STREAMED}",
            "stream_options.x",
        ),
        ({"stop": 3}, "stop must be a text that is not empty or a list of texts, not 3", "stop"),
        ({"stop": ["a", 1]}, "stop[1] must be a text that is not empty, not 1", "stop"),
        ({"stop": ["a"] * 17}, STOPS, "stop"),
        ({"stop": "a" * 257}, STOPS, "stop"),
        ({"logit_bias": [1]}, f"{IDS_BIASED} [1]", "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias 'x' is no token id (see /tokenize)", "logit_bias"),
        ({"logit_bias": {"97": "a"}}, f"{IDS_BIASED} {{'97': 'a'}}", "logit_bias"),
        (
            {"logit_bias": {"97": True}},
            "logit_bias of 'a' must be a number or false, and finite",
            "logit_bias",
        ),
        ({"stop": "\ud800"}, "stop: half a surrogate pair is no text", "stop"),
        ({"grammar": 1}, "grammar must be a text that is not empty, not 1", "grammar"),
        ({"grammar": ""}, "grammar must be a text that is not empty, not ''", "grammar"),
        ({"grammar": " "}, "grammar must not be empty", "grammar"),
        (
            {"grammar": "g", "json_schema": "{}"},
            "grammar and json_schema exclude each other: give one",
            "grammar",
        ),
        (
            {"json_schema": 3},
            "json_schema must be an object or a text of one, not 3",
            "json_schema",
        ),
        ({"response_format": 1}, f"{FORMAT}, not 1", "response_format"),
        ({"response_format": {"type": "x"}}, f"{FORMAT}, not {{'type': 'x'}}", "response_format"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema is missing",
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema is missing",
            "response_format",
        ),
        (
            {"response_format": {"type": "json_object", "schema": [1]}},
            "response_format.schema is no JSON object",
            "response_format",
        ),
        ({"logprobs": 3}, "logprobs must be true or false, not 3", "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs true", "top_logprobs"),
        (
            {"logprobs": True, "top_logprobs": 30},
            "top_logprobs must be from 0 to 20, not 30",
            "top_logprobs",
        ),
        ({"weights": [1]}, f"{WEIGHTS} of a, b; not [1.0]", "weights"),
        ({"weights": {"a": 1}}, f"{WEIGHTS} of a, b; not {{'a': 1.0}}", "weights"),
        ({"weights": "x"}, f"{WEIGHTS} member, not 'x'", "weights"),
        ({"tools": [{"type": "function"}]}, "tools[0].function is missing", "tools"),
        ({"suffix": "x"}, f"suffix 'x' {CANNOT}", "suffix"),
        ({"best_of": 2}, f"best_of 2 {CANNOT}", "best_of"),
        ({"modalities": ["audio"]}, f"modalities ['audio'] {CANNOT}", "modalities"),
        ({"echo": True}, "echo: a conversation is not repeated; leave it out", "echo"),
        ({"prompt": "a"}, f"prompt is nothing that {CHAT} knows; leave it out", "prompt"),
        (
            {"max_tokens": 1, "max_completion_tokens": 2},
            "max_completion_tokens and max_tokens mean the same here, and differ: give one",
            "max_completion_tokens",
        ),
        ({"messages": []}, "messages must be a list of at least one message, not []", "messages"),
        (one(role="king", content="a"), f"{ROLE} 'king'", "messages"),
        (one(role=1, content="a"), f"{ROLE} 1", "messages"),
        ({"messages": ["a"]}, "messages[0] is no JSON object", "messages"),
        (
            one(role="user", content=3),
            "messages[0].content must be a text or a list of objects, not 3",
            "messages",
        ),
        (one(role="user"), "messages[0].content is missing", "messages"),
        (
            one(role="user", content=[{"type": "text", "text": "a"}, 3]),
            "messages[0].content[1] is no JSON object",
            "messages",
        ),
        (
            one(role="user", content=[{"type": "text", "text": "a"}, {"type": "image_url"}]),
            f"messages[0].content[1].type must be {PARTS}, not 'image_url'",
            "messages",
        ),
        (
            one(role="user", content="a", nmae="me"),
            "unknown option 'messages[0].nmae'; did you mean name?",
            "messages[0].nmae",
        ),
    ],
)
def test_a_chat_that_cannot_be_answered(more, message, param) -> None:
    assert told(lambda body: called(body, CHAT), ASKED | more) == (message, param)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "prompt is missing", "prompt"),
        ({"prompt": 1}, f"{IDS}, not 1", "prompt"),
        ({"prompt": []}, f"{IDS}, not []", "prompt"),
        ({"prompt": [1, "a"]}, f"{IDS}, not [1, 'a']", "prompt"),
        ({"prompt": [True]}, f"{IDS}, not [True]", "prompt"),
        ({"prompt": [-1]}, f"{IDS}, not [-1]", "prompt"),
        ({"prompt": "a", "logprobs": 21}, "logprobs must be from 0 to 20, not 21", "logprobs"),
        (
            {"prompt": "a", "logprobs": True},
            "logprobs must be a whole number, not true",
            "logprobs",
        ),
        ({"prompt": ["a"] * 129}, "n: 129 answers are asked for, and 128 can be", "n"),
        (
            {"prompt": "a", "top_logprobs": 1},
            f"top_logprobs is nothing that {COMPLETION} knows; leave it out",
            "top_logprobs",
        ),
    ],
)
def test_a_text_that_cannot_be_gone_on_with(body, message, param) -> None:
    assert told(lambda body: called(body, COMPLETION), body) == (message, param)


@pytest.mark.parametrize(
    "nothing",
    [
        {"mirostat": 0, "dry_multiplier": 0.0, "xtc_probability": 0, "dynatemp_range": 0},
        {"typical_p": 1, "typ_p": 1.0, "length_penalty": 1, "repetition_penalty": 1},
        {"ignore_eos": False, "min_tokens": 0, "n_probs": 0, "use_beam_search": False},
        {"stop_token_ids": [], "skip_special_tokens": True, "add_generation_prompt": True},
        {"continue_final_message": False, "cache_prompt": True, "function_call": "none"},
        {"top_k": -1, "seed": -1, "max_tokens": -1, "stop": ""},
        {"n_predict": -1, "stop": [""]},
        {"reasoning_effort": "none", "enable_thinking": False, "keep_alive": "5m"},
        {"timings_per_token": True, "return_progress": False, "id_slot": 0, "priority": 0},
        {"request_id": "x", "prediction": None, "verbosity": "low", "reasoning_format": "auto"},
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
    ],
)
def test_what_asks_for_nothing_changes_nothing(nothing: dict) -> None:
    plain = called(one(role="user", content="hello"), CHAT).sampling
    asked = called(one(role="user", content="hello") | nothing, CHAT).sampling
    changed = {"thinking": "off"} if "reasoning_effort" in nothing else {}
    changed |= {"top_k": 0} if "top_k" in nothing else {}
    assert asked == replace(plain, **changed)


@pytest.mark.parametrize(
    "something",
    [{"mirostat": 2}, {"typical_p": 0.9}, {"ignore_eos": True}, {"stop_token_ids": [7]}],
)
def test_what_would_change_the_answer_is_refused(something: dict) -> None:
    ((key, _),) = something.items()
    with pytest.raises(InputError, match=f"{key} .* is not supported here"):
        called(one(role="user", content="hello") | something, CHAT)


def test_other_names_of_options_are_known() -> None:
    named = {"n_predict": 5, "repetition_penalty": 1.5}
    sampling = called(one(role="user", content="hello") | named, CHAT).sampling
    assert (sampling.max_tokens, sampling.repeat_penalty) == (5, 1.5)
