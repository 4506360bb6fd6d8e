"""Requests in OpenAI's shape: whatever comes, it is understood or refused in plain words."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eva_local.errors import ConfigError, InputError
from eva_local.openai.answer import Answer, tokens_of
from eva_local.openai.request import CHAT, COMPLETION, KEYS, read_body, read_call
from eva_local.server.guard import problem_of
from eva_local.types import Sampling, Step

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["equal", "running", "json_schema", "json_object", "user", "text", "1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(sorted(KEYS)), inner, max_size=4)
    ),
    max_leaves=8,
)
BODIES = st.dictionaries(
    st.sampled_from([*sorted(KEYS), "continuation"]) | st.text(max_size=4), JSON, max_size=4
)
ASKED = {"messages": [{"role": "user", "content": "a"}]}


def call(body, endpoint=COMPLETION):
    return read_call(
        body,
        endpoint,
        Sampling(),
        piece_of=lambda token: bytes([token]) if token < 256 else b"",
        members=("a", "b"),
    )


def problem_with(read, body) -> str | None:
    """Return what is said of a body that is refused; nothing else may be raised."""
    try:
        read(body)
    except (InputError, ConfigError) as error:
        return problem_of(error)["error"]["message"]
    return None


@given(BODIES, st.sampled_from([CHAT, COMPLETION]))
def test_any_body_is_understood_or_refused(body, endpoint) -> None:
    prompt = {"prompt": "a"} if endpoint == COMPLETION else dict(ASKED)
    for each in (body, prompt | body):
        for read in (
            lambda body: call(body, endpoint),
            lambda body: read_body(body, endpoint, Sampling()),
        ):
            message = problem_with(read, each)
            assert message is None or (0 < len(message) <= 501 and message.isprintable())


def param_of(body, endpoint=CHAT) -> str:
    """Return what is named of a body that is refused."""
    with pytest.raises(InputError) as raised:
        call(body, endpoint)
    return problem_of(raised.value)["error"]["param"]


def message(**more) -> dict:
    return {
        "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b", **more}]
    }


def part(**more) -> dict:
    return message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b", **more}])


def formatted(**form) -> dict:
    return {**ASKED, "response_format": form}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**ASKED, "temprature": 1}, "temprature"),
        (message(nmae="me"), "messages[1].nmae"),
        (message(images=["aGk="]), "messages[1].images"),
        (message(tool_calls=[{"id": "1"}]), "messages"),
        (message(reasoning_content=["so"]), "messages"),
        (message(thoughts="so"), "messages[1].thoughts"),
        (part(cache_control={"type": "ephemeral"}), "messages[1].content[1].cache_control"),
        ({**ASKED, "stream": True, "stream_options": {"chunks": 1}}, "stream_options.chunks"),
        (formatted(type="text", schema={"type": "array"}), "response_format.schema"),
        (formatted(type="json_object", strict=True), "response_format.strict"),
        (formatted(type="json_object", schema=[1]), "response_format"),
        (formatted(type="json_object", schema=False), "response_format"),
        (formatted(type="json_schema", schema={"type": "array"}), "response_format.schema"),
        (
            formatted(type="json_schema", json_schema={"schema": {}, "shema": {"type": "array"}}),
            "response_format.json_schema.shema",
        ),
        ({**formatted(type="json_object"), "grammar": 'root ::= "a"'}, "grammar"),
        ({**formatted(type="json_object"), "json_schema": {"type": "array"}}, "json_schema"),
        ({**formatted(type="text"), "json_schema": {"type": "array"}}, "json_schema"),
        ({**formatted(type="text"), "grammar": 'root ::= "a"'}, "grammar"),
        ({**ASKED, "json_schema": True}, "json_schema"),
        ({**ASKED, "json_schema": []}, "json_schema"),
        ({**ASKED, "json_schema": ""}, "json_schema"),
        ({**ASKED, "prompt": "a"}, "prompt"),
        ({**ASKED, "max_tokens": 5, "max_completion_tokens": 9}, "max_completion_tokens"),
        ({**ASKED, "max_completion_tokens": 9, "max_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_what_nobody_reads_is_refused_by_its_name(body, param) -> None:
    assert param_of(body) == param
    with pytest.raises(InputError):
        read_body(body, CHAT, Sampling())


def test_all_keys_are_known_to_who_misspells_one() -> None:
    with pytest.raises(InputError, match="did you mean stream_options\\?"):
        call({"prompt": "a", "stream_option": {}})
    with pytest.raises(InputError, match="known are: ") as raised:
        call({"prompt": "a", "zzz": 1})
    told = str(raised.value).partition("known are: ")[2].split(", ")
    assert told == sorted(KEYS)


def test_completions_refuse_what_chats_alone_know() -> None:
    assert param_of({"prompt": "a", **ASKED}, COMPLETION) == "messages"
    assert param_of({"prompt": "a", "top_logprobs": 2}, COMPLETION) == "top_logprobs"
    echoed = {"prompt": "a", "echo": True, "max_tokens": 0, "max_completion_tokens": 7}
    assert param_of(echoed, COMPLETION) == "max_completion_tokens"


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_messages_may_hold_what_asks_for_nothing(nothing) -> None:
    """Clients give an answer back as they got it."""
    calls = nothing or []
    body = message(tool_calls=calls, annotations=nothing, refusal=nothing, name="me")
    assert [each.content for each in call(body, CHAT).prompts[0]] == ["a", "b"]


def test_a_schema_in_each_of_its_places_is_obeyed() -> None:
    schema = {"type": "array"}
    for form, expected in (
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": None}, {"type": "object"}),
        ({"type": "json_object", "schema": {}}, {"type": "object"}),
        ({"type": "json_object", "schema": schema}, schema),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "x", "description": "y", "strict": True, "schema": schema},
            },
            schema,
        ),
    ):
        assert json.loads(call(formatted(**form), CHAT).sampling.json_schema) == expected
    assert call(formatted(type="text"), CHAT).sampling == Sampling()


def test_one_number_under_two_names_is_one() -> None:
    body = {**ASKED, "max_tokens": 5, "max_completion_tokens": 5}
    assert call(body, CHAT).sampling.max_tokens == 5


def test_prompts_in_every_shape() -> None:
    assert call({"prompt": "a"}).prompts == ("a",)
    assert call({"prompt": ["a", "b"]}).prompts == ("a", "b")
    assert call({"prompt": [1, 2]}).prompts == ((1, 2),)
    assert call({"prompt": [[1, 2], "b"]}).prompts == ((1, 2), "b")
    for bad in ([], [[]], [True], [-1], [1, "a"], {"a": 1}, 1, None, [[1.5]]):
        with pytest.raises(InputError, match="prompt"):
            call({"prompt": bad})


def test_biases_by_id_become_texts() -> None:
    found = call({"prompt": "a", "logit_bias": {"97": 5, "98": False}}).sampling
    assert dict(found.logit_bias) == {"a": 5.0, "b": float("-inf")}
    with pytest.raises(InputError, match="'a' has a bias already"):
        call({"prompt": "a", "logit_bias": {"97": 5, "097": 5}})
    for bad in ("200", "300", "-1", "1" * 12, "x", "¹"):
        with pytest.raises(InputError, match="logit_bias"):
            call({"prompt": "a", "logit_bias": {bad: 1}})


def test_a_bias_of_what_is_no_text_is_named() -> None:
    def piece_of(token: int) -> bytes:
        raise InputError(f"{token} is no text here; put conversations as messages")

    body = {"prompt": "a", "logit_bias": {"2": -100}}
    with pytest.raises(InputError, match=r"^logit_bias 2: no token") as raised:
        read_call(body, COMPLETION, Sampling(), piece_of=piece_of, members=("a",))
    assert problem_of(raised.value)["error"]["param"] == "logit_bias"


def test_what_is_asked_of_the_members() -> None:
    for weights in ("equal", "running"):
        assert call({"prompt": "a", "weights": weights}).weights == weights
    assert call({"prompt": "a", "weights": [1, 0.5]}).weights == (1.0, 0.5)
    assert call({"prompt": "a", "weights": {"b": 1, "a": 0}}).weights == (0.0, 1.0)
    for bad in ([1], [1, 2, 3], [-1, 2], [0, 0], {"a": 1}, "prompt-perplexity", 1, [True, 1]):
        with pytest.raises(InputError, match="weights must be"):
            call({"prompt": "a", "weights": bad})
    for endless in ([10**400, 1], [10**400, 1.5], [1e308, 1e308], [10**308, 10**308]):
        with pytest.raises(InputError, match="with a sum above 0 that is finite"):
            call({"prompt": "a", "weights": endless})


@pytest.mark.parametrize("bias", [10**400, -(10**400)])
def test_a_bias_must_be_finite(bias) -> None:
    with pytest.raises(InputError, match="must be a number or false, and finite"):
        call({"prompt": "a", "logit_bias": {"97": bias}})


def test_options_of_a_stream() -> None:
    stream = {"prompt": "a", "stream": True}
    options = {"include_usage": True, "include_obfuscation": False}
    assert call({**stream, "stream_options": options}).request.stream_options.include_usage
    untold = call({**stream, "stream_options": {"include_usage": None}})
    assert not untold.request.stream_options.include_usage
    with pytest.raises(
        InputError, match=r"'stream_options\.include_usge'; did you mean include_usage"
    ):
        call({**stream, "stream_options": {"include_usge": True}})


def test_nothing_is_written_behind_an_echo_of_zero_tokens() -> None:
    assert call({"prompt": "a", "echo": True, "max_tokens": 0}).scored
    assert not call({"prompt": "a", "echo": True, "max_tokens": 1}).scored
    with pytest.raises(InputError, match="max_tokens"):
        call({"prompt": "a", "max_tokens": 0})


def test_null_says_nothing() -> None:
    body = dict.fromkeys(KEYS) | {"prompt": "a"}
    assert call(body).sampling == Sampling()


def telling(echo: str | None = None) -> Answer:
    """An answer, perhaps behind an echo of its prompt, whose tokens are told."""
    answer = Answer(told=True)
    if echo is not None:
        answer.repeat(echo, 1, (), last=False)
    return answer


@given(st.binary(min_size=1, max_size=12), st.text(max_size=5), st.integers(1, 3))
def test_the_tokens_of_a_shown_text_are_all_told(data, echo, size) -> None:
    """Whatever the pieces, their places are those of the text that they spell."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    # The text lags behind, and comes all at the end.
    texts = [""] * (len(pieces) - 1) + [data.decode("utf-8", "replace")]
    for answer in (telling(), telling(echo)):
        told = [
            token
            for piece, text in zip(pieces, texts, strict=True)
            for token in answer.push(Step(piece, text, 0.5, (True,)))
        ]
        assert told == answer.tokens
        assert b"".join(token.piece for token in told) == data
        assert all(a.start <= b.start for a, b in itertools.pairwise(told))
    assert told[0].start == len(echo)
    assert tokens_of(()) == ()


def test_behind_an_echo_each_choice_is_told() -> None:
    """lm_eval takes the last token off, whichever was written: half a character, or END."""
    for piece in (b"\xc3", b""):
        step = Step(piece, "", 0.25, (True,))
        assert telling().push(step) == []
        (token,) = telling("the").push(step)
        assert (token.piece, token.start) == (piece, 3)
