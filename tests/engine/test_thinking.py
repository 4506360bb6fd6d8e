"""A thought before the answer: who thinks, how it ends, and what the answer comes after."""

from __future__ import annotations

import json
import logging

import pytest
from thinkers import (
    BY_ARGUMENT,
    NO_THOUGHTS,
    OTHER,
    TOLD,
    TURNS,
    UNTOLD,
    WORDS_B,
    Thinking,
    thinking_ensemble,
)

from eva_local.errors import InputError
from eva_local.llama.vocab import Kind
from eva_local.types import Completion, Message, Sampling

SAYS = "<think>\nthe un\n</think>\n\nParis is the end"
ASKED = [Message("user", "is it")]
SPACES = ("pivot", "bytes")


def answer(
    *models: Thinking, space: str = "pivot", arguments: dict | None = None, **how: object
) -> Completion:
    with thinking_ensemble(*models, space=space, arguments=arguments) as ensemble:
        return ensemble.complete(ASKED, Sampling(max_tokens=90, **how))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", [Kind.USER, Kind.CONTROL, None])
@pytest.mark.parametrize("template", [TOLD, UNTOLD])
def test_one_alone_thinks_as_it_does_untold(template, kind, space) -> None:
    model = Thinking(template, SAYS, kind=kind)
    found = answer(model, space=space)
    assert (found.reasoning.strip(), found.text) == ("the un", "Paris is the end")
    assert found.finish_reason == "stop"
    assert model.seen.endswith(f"<s>assistant\n{SAYS}")
    assert 0 < found.usage.reasoning_steps < found.usage.steps


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("template", [TOLD, UNTOLD])
def test_off_puts_an_empty_thought_before_the_answer(template, space) -> None:
    model = Thinking(template, "<think>\n\n</think>\n\nParis")
    found = answer(model, space=space, thinking="off")
    assert (found.reasoning, found.text) == ("", "Paris")


@pytest.mark.parametrize("space", SPACES)
def test_several_do_not_think_unless_they_are_told(space) -> None:
    one = Thinking(TOLD, "<think>\n\n</think>\n\nParis")
    other = Thinking(OTHER, "[THINK][/THINK]Paris", words=WORDS_B)
    found = answer(one, other, space=space)
    assert (found.reasoning, found.text, found.finish_reason) == ("", "Paris", "stop")


@pytest.mark.parametrize("space", SPACES)
def test_each_thinks_in_its_own_marks(space) -> None:
    one = Thinking(TOLD, SAYS)
    other = Thinking(OTHER, "[THINK]the un\n[/THINK]Paris is the end", words=WORDS_B)
    found = answer(one, other, space=space, thinking="on")
    assert (found.reasoning.strip(), found.text) == ("the un", "Paris is the end")
    assert one.seen.endswith(SAYS)
    assert other.seen.endswith("[THINK]the un\n[/THINK]Paris is the end")


def test_who_cannot_think_reads_the_thought_and_is_named_once(caplog) -> None:
    plain = Thinking(NO_THOUGHTS, "the un\n\n\nParis is the end")
    with (
        caplog.at_level(logging.WARNING, "eva_local"),
        thinking_ensemble(Thinking(TOLD, SAYS), plain) as ensemble,
    ):
        for _ in range(2):
            found = ensemble.complete(ASKED, Sampling(thinking="on"))
            assert found.text == "Paris is the end"
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith("m1 cannot think by itself")


@pytest.mark.parametrize("space", SPACES)
def test_a_budget_ends_the_thought(space) -> None:
    model = Thinking(TOLD, "<think>\nth\n</think>\n\nend")
    model.says = "<think>\nthe unbelievable end\n</think>\n\nno"
    with thinking_ensemble(model, space=space) as ensemble:
        steps = list(ensemble.stream(ASKED, Sampling(max_tokens=9, thinking_budget=2)))
    assert steps[-1].usage.reasoning_steps == 2
    assert "</think>" in model.seen
    assert answer(Thinking(TOLD, "<think>\n\n</think>\n\nno"), thinking_budget=0).text == "no"


def test_max_tokens_counts_the_thought() -> None:
    found = answer(Thinking(TOLD, SAYS), thinking="on").usage.steps
    with thinking_ensemble(Thinking(TOLD, SAYS)) as ensemble:
        cut = ensemble.complete(ASKED, Sampling(max_tokens=2))
        assert (cut.text, cut.finish_reason) == ("", "length")
        assert cut.usage.reasoning_steps == cut.usage.steps == 2 < found


@pytest.mark.parametrize("space", SPACES)
def test_a_grammar_binds_the_answer_alone(space) -> None:
    model = Thinking(TOLD, '<think>\nthe un\n</think>\n\n"Paris"')
    found = answer(model, space=space, json_schema=json.dumps({"enum": ["Paris", "the end"]}))
    assert (found.reasoning.strip(), json.loads(found.text)) == ("the un", "Paris")


def test_a_stop_string_counts_in_the_answer_alone() -> None:
    found = answer(Thinking(TOLD, SAYS), stop=("un", " end"))
    assert (found.reasoning.strip(), found.text) == ("the un", "Paris is the")


def test_a_thought_that_leaves_no_room_is_cut_off() -> None:
    model = Thinking(TOLD, "<think>\n" + "the " * 200 + "\n</think>\n\nno", n_ctx=64)
    found = answer(model, thinking_budget=-1)
    assert (found.text, found.finish_reason) == ("", "length")


def test_what_was_thought_is_not_told_in_the_next_turn() -> None:
    model = Thinking(TOLD, SAYS)
    with thinking_ensemble(model, drafter="off") as ensemble:
        said = ensemble.complete(ASKED)
        turns = [*ASKED, Message("assistant", said.text), Message("user", "un")]
        ensemble.complete(turns)
    assert "<think>\nthe un" not in model.seen.rpartition("user")[0]
    assert "assistant\nParis is the end<|im_end|>" in model.seen


def test_a_last_answer_is_gone_on_with_and_a_text_has_no_thought() -> None:
    model = Thinking(NO_THOUGHTS, "Paris is")
    model.chat_template = UNTOLD
    with thinking_ensemble(model) as ensemble:
        how = Sampling(thinking="on")
        assert ensemble.complete([*ASKED, Message("assistant", "Paris")], how).text == " is"
        model.says = "x"
        assert ensemble.complete("assistant\n", how).reasoning == ""


def test_scores_are_of_answers() -> None:
    model = Thinking(TOLD, "<think>\n\n</think>\n\nParis")
    with thinking_ensemble(model) as ensemble:
        assert ensemble.score(ASKED, "Paris").log_likelihood > -0.1


def test_arguments_of_the_template_say_it_too() -> None:
    assert Sampling(chat_template_kwargs={"enable_thinking": False}).thinking == "off"
    assert Sampling(chat_template_kwargs={"thinking": True}).thinking == "on"
    with pytest.raises(InputError, match="enable_thinking must be true or false"):
        Sampling(chat_template_kwargs={"enable_thinking": "no"})
    with pytest.raises(InputError, match="which ends a thought"):
        Sampling(thinking_instruction="think and write {mrk}")
    with pytest.raises(InputError, match="thinking"):
        Sampling(thinking="perhaps")  # type: ignore[arg-type]


def test_another_template_of_a_request_is_used() -> None:
    model = Thinking(NO_THOUGHTS, "Paris")
    template = "{{ messages[0].content }} {{ mood }} assistant\n\n"
    with thinking_ensemble(model) as ensemble:
        how = Sampling(chat_template=template, chat_template_kwargs={"mood": "the"})
        assert ensemble.complete(ASKED, how).text == "Paris"
    assert model.seen == "<s>is it the assistant\nParis"


def test_the_dialogue_of_a_model_without_a_template_ends_where_the_user_would_speak() -> None:
    model = Thinking(NO_THOUGHTS, " Paris\nUser: un")
    model.chat_template, model.opening = None, "Assistant:"
    with thinking_ensemble(model) as ensemble:
        assert ensemble.complete(ASKED).text == " Paris"
    assert "User: is it\n\nAssistant:" in model.seen


def test_a_vocabulary_with_chatml_has_its_marks() -> None:
    model = Thinking(NO_THOUGHTS, "Paris")
    model.chat_template = None
    model.vocabulary.markers = {**model.vocabulary.markers, "<|im_start|>": 1}
    with thinking_ensemble(model) as ensemble:
        assert ensemble.complete(ASKED).text == "Paris"
    assert model.seen == "<s>user\nis it<|im_end|>\n<s>assistant\nParis"


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("told", [True, False])
def test_what_a_model_s_own_arguments_say_is_its_default(told, mode) -> None:
    says = "<think>\nun\n</think>Paris" if told and mode == "auto" else "</think>Paris"
    model = Thinking(BY_ARGUMENT, says)
    found = answer(model, arguments={"enable_thinking": told}, thinking=mode)
    assert (found.reasoning.strip(), found.text) == ("un" if "un" in says else "", "Paris")


def test_a_plain_text_that_is_to_be_thought_about_is_named_once(caplog) -> None:
    model = Thinking(NO_THOUGHTS, "Paris")
    with caplog.at_level(logging.WARNING, "eva_local"), thinking_ensemble(model) as ensemble:
        for _ in range(2):
            ensemble.complete("is it", Sampling(thinking="on", max_tokens=1))
        ensemble.prompt_tokens("un", Sampling(thinking="on"))
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == "m0 does not think: a plain text is gone on with"


@pytest.mark.parametrize("told", [True, False])
def test_a_model_s_own_arguments_decide_where_its_template_only_asks_for_thoughts(told) -> None:
    # As Granite 3.3 is told.
    template = TURNS.replace("assistant\n", "{{ 'un <think>' if thinking else '' }}assistant\n")
    model = Thinking(template + "{% endif %}", SAYS if told else "Paris is the end")
    with thinking_ensemble(model, arguments={"thinking": told}) as ensemble:
        found = ensemble.complete(ASKED)
    assert (found.reasoning.strip(), found.text) == ("the un" * told, "Paris is the end")
