"""Thoughts apart: each member thinks for itself, and all write one answer behind their own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from thinkers import NO_THOUGHTS, OTHER, TOLD, WORDS_B, Thinking, thinking_ensemble

from eva_local.config.specs import FusionSettings
from eva_local.engine.lookahead import DecodeTimes
from eva_local.errors import ContextError, ModelError
from eva_local.fusion.votes import Fuser, Vote
from eva_local.types import Message, Sampling

ASKED = [Message("user", "is it")]
APART = Sampling(max_tokens=90, thinking="apart")
ONE = "<think>\nthe un\n</think>\n\nParis is the end"
OTHERS = "[THINK]a there[/THINK]Paris is the end"
TOLD_TO = "is it\n\nThink step by step. Then write Answer: and your answer.<|im_end|><s>assistant\n"


@pytest.fixture(params=["pivot", "bytes"])
def space(request: pytest.FixtureRequest) -> str:
    return request.param


def test_each_thinks_for_itself_and_all_answer_as_one(space) -> None:
    one, other = Thinking(TOLD, ONE), Thinking(OTHER, OTHERS, words=WORDS_B)
    with thinking_ensemble(one, other, space=space) as ensemble:
        steps = list(ensemble.stream(ASKED, APART))
        found = ensemble.complete(ASKED, APART)
    thoughts = {
        name: "".join(step.reasoning or "" for step in steps if step.member == name)
        for name in ("m0", "m1")
    }
    assert thoughts == {"m0": "m0:\nthe un\n", "m1": "\n\nm1:\na there"}
    # They were written at once, and are told one after the other.
    told = [step.member for step in steps if step.member]
    assert told == sorted(told)
    assert found.text == "".join(step.text for step in steps) == "Paris is the end"
    assert found.reasoning == "m0:\nthe un\n\n\nm1:\na there"
    assert one.seen.endswith(ONE)
    assert other.seen.endswith(OTHERS)
    usage = found.usage
    assert usage.reasoning_steps == sum(bool(step.piece) for step in steps if step.member)
    assert usage.steps > usage.reasoning_steps
    answers = [step.reasoning is None for step in steps]
    assert answers == sorted(answers)


def test_who_has_no_marks_is_told_how_to_think(space) -> None:
    says = "the un\nAnswer:\nParis is the end"
    model = Thinking(NO_THOUGHTS, says, words=[b"Answer:", b"T", b"hink", b"W", b"A", b":", b"\n"])
    with thinking_ensemble(model, space=space) as ensemble:
        found = ensemble.complete(ASKED, APART)
        assert (found.reasoning, found.text) == ("the un\n", "Paris is the end")
        assert model.seen.endswith(TOLD_TO + says)
        own = Sampling(thinking="apart", thinking_mark="So:", thinking_instruction="un {mark}")
        model.says = "the unSo:"
        ensemble.complete(ASKED, own)
        assert "is it\n\nun So:<|im_end|>" in model.seen


def test_a_text_is_gone_on_with_up_to_the_mark(space) -> None:
    model = Thinking(NO_THOUGHTS, "the un\nAnswer: Paris", words=[b"Answer:", b"A", b":", b"\n"])
    model.opening = "it"
    with thinking_ensemble(model, space=space) as ensemble:
        found = ensemble.complete("is it", APART)
        assert (found.reasoning, found.text) == ("the un\n", " Paris")
        # What ends an answer ends the thought too: here it had no mark.
        model.says = "the unAnswer: Paris"
        found = ensemble.complete("is it", Sampling(thinking="apart", stop=("\n", "un")))
        assert (found.reasoning, found.text) == ("the ", "")
        assert model.seen.endswith("is itthe Answer:")


def test_a_budget_cuts_each_thought_and_the_answer_has_its_own(space) -> None:
    one = Thinking(TOLD, "<think>\n" + "the un" * 90 + "\n</think>\n\nno")
    with thinking_ensemble(one, one, space=space) as ensemble:
        how = Sampling(max_tokens=3, thinking="apart", thinking_budget=4)
        usage = ensemble.complete(ASKED, how).usage
        assert usage.reasoning_steps == 8
        assert usage.steps <= 11
        # Without one, it is as long as the answer may be.
        usage = ensemble.complete(ASKED, Sampling(max_tokens=3, thinking="apart")).usage
        assert usage.reasoning_steps == 6


def test_a_grammar_binds_the_answer_alone(space) -> None:
    # It would answer without quotes.
    one = Thinking(TOLD, "<think>\nthe un\n</think>\n\nParis is the end")
    schema = json.dumps({"enum": ["Paris", "the end"]})
    with thinking_ensemble(one, one, space=space) as ensemble:
        found = ensemble.complete(ASKED, Sampling(thinking="apart", json_schema=schema))
    assert json.loads(found.text) in ("Paris", "the end")
    assert "the un" in found.reasoning


def test_thoughts_of_one_model_are_drawn_with_numbers_of_their_own(space) -> None:
    def thought(seed: int) -> tuple[str, str]:
        model = Uncertain(TOLD, "")
        with thinking_ensemble(model, model, space=space) as ensemble:
            how = Sampling(
                max_tokens=8, thinking="apart", thinking_temperature=2.0, seed=seed, top_k=0
            )
            found = ensemble.complete(ASKED, how)
        first, _, second = found.reasoning.partition("m1:\n")
        return first.removeprefix("m0:\n").strip(), second.strip()

    once = thought(1)
    assert once[0] != once[1]
    assert once == thought(1)
    assert once != thought(2)
    # Nor do several answers to a prompt, of seeds beside each other, share any.
    assert not {*once} & {*thought(2), *thought(3)}


class Uncertain(Thinking):
    """One that wants nothing in particular."""

    def _scripted(self, tokens):
        return self._hashed(tokens) / 4


def test_thoughts_that_were_likelier_count_for_more() -> None:
    sure, unsure = Thinking(TOLD, ONE), Thinking(TOLD, ONE.replace("Paris", "un"))
    plain = unsure._logits
    unsure._logits = lambda tokens: plain(tokens) / 4
    with thinking_ensemble(sure, unsure, weights="thought") as ensemble:
        steps = list(ensemble.stream(ASKED, APART, trace=True))
    first = next(step for step in steps if step.reasoning is None)
    shares = [ballot.weight for ballot in first.trace.ballots]
    assert shares[0] > 0.6
    assert math.isclose(sum(shares), 1)
    # What each step of a thought rests on is its member's vote alone.
    thought = steps[0]
    assert [ballot.member for ballot in thought.trace.ballots] == [thought.member]


def test_what_members_of_one_model_begin_with_is_read_once(space) -> None:
    model = Thinking(TOLD, ONE)
    long = [Message("user", "the unbelievable end of it " * 12)]
    with thinking_ensemble(model, model, model, space=space) as ensemble:
        usage = ensemble.complete(long, APART).usage
    assert usage.cached_tokens[0] == 0
    assert min(usage.cached_tokens[1:]) >= usage.prompt_tokens[0] - 1


def test_thoughts_that_leave_no_room_are_an_error_that_says_so() -> None:
    model = Thinking(TOLD, "<think>\n" + "the " * 200)
    with thinking_ensemble(model) as ensemble:
        asked = [Message("user", "i" * 15)]
        model.n_ctx = len(ensemble._readers.read(asked, APART)[0][0]) + 2
        with pytest.raises(ContextError, match="no room for an answer; lower thinking_budget"):
            ensemble.complete(asked, APART)


def test_one_that_fails_ends_the_answer_and_no_other(space) -> None:
    model = Thinking(TOLD, ONE)
    with thinking_ensemble(model, model, space=space, parallel=3) as ensemble:
        requests = [ASKED, [Message("user", "un")], ASKED]
        found = ensemble.complete_many(requests, APART)
        assert [each.text for each in found] == ["Paris is the end"] * 3
        stream = ensemble.stream(ASKED, APART)
        next(stream)
        stream.close()
        assert ensemble.complete(ASKED, APART).text == "Paris is the end"


def test_what_the_prompts_say_of_the_members_counts_after_thoughts_too() -> None:
    def weights(thinking: str) -> list[float]:
        one, other = Uncertain(TOLD, ""), Uncertain(OTHER, "", words=WORDS_B)
        with thinking_ensemble(one, other, weights="prompt-perplexity") as ensemble:
            how = Sampling(max_tokens=3, thinking=thinking, thinking_budget=3)
            steps = list(ensemble.stream("the unbelievable", how, trace=True))
        first = next(step for step in steps if step.reasoning is None)
        return [ballot.weight for ballot in first.trace.ballots]

    assert weights("apart") == weights("off")
    assert weights("apart")[0] != 0.5


def test_a_mark_that_is_no_text_ends_nothing() -> None:
    with thinking_ensemble(Thinking(NO_THOUGHTS, "the un?")) as ensemble:
        how = Sampling(thinking="apart", thinking_mark="\ud800", max_tokens=40)
        assert ensemble.complete(ASKED, how).reasoning == "the un?"


class Faulty(Thinking):
    """One that cannot decode in some sequences of llama.cpp once its texts are `fails_at` long."""

    fails_at, broken = 10**6, range(99)

    def decode(self, runs):
        for run in runs:
            if run.seq_id in self.broken and run.start + len(run.tokens) >= self.fails_at:
                raise ModelError("it failed")
        return super().decode(runs)


def goes_on_without(caplog, *names: str) -> bool:
    said = [each.getMessage() for each in caplog.records if "goes on" in each.getMessage()]
    return [each.split()[5].rstrip(":") for each in said] == list(names)


# At its prompt, in the middle of its thought, and where its thought has almost ended.
@pytest.mark.parametrize("fails_after", [0, 2, 3])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("gate", [1.0, 0.3])
def test_who_fails_in_its_thought_is_left_out_of_the_answer(
    space, place, fails_after, gate, caplog
) -> None:
    # Who fails would be heard: it is surer of another answer.
    models = [Faulty(TOLD, ONE), Faulty(OTHER, OTHERS, words=WORDS_B)]
    bad = models[place]
    bad.says = bad.says.replace("Paris", "unable")
    with thinking_ensemble(*models, space=space, gate=gate) as ensemble:
        expected = ensemble.complete(ASKED, APART, alone=f"m{1 - place}")
        bad.fails_at = ensemble.prompt_tokens(ASKED, APART)[place] + fails_after
        steps = list(ensemble.stream(ASKED, APART, trace=True))
        assert goes_on_without(caplog, f"m{place}")
        answer = [step for step in steps if step.reasoning is None]
        assert "".join(step.text for step in answer) == expected.text == "Paris is the end"
        # What was thought before is told, if anything was.
        names = {name for name in ("m0", "m1") if fails_after > 0 or name != f"m{place}"}
        assert {step.member for step in steps if step.member} == names
        assert steps[0].reasoning.startswith(f"{min(names)}:\n")
        usage = steps[-1].usage
        assert usage.steps == sum(bool(step.piece) for step in steps)
        assert (usage.steps_alone, usage.filtered) == (usage.steps_alone * (gate < 1), (0, 0))
        for step in answer:
            left = step.trace.ballots[place]
            assert (step.stayed[place], left.weight) == (False, 0)
            assert left.reason == "left out of this answer: its thought failed"
        # The next answer has them all again.
        bad.fails_at, bad.says = 10**6, bad.says.replace("unable", "Paris")
        assert ensemble.complete(ASKED, APART).reasoning.count(":\n") == 2
        assert goes_on_without(caplog, f"m{place}")


@pytest.mark.parametrize("place", [0, 1])
def test_who_is_left_out_of_an_answer_foresees_nothing(place, monkeypatch) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", lambda *_: 1.0)
    models = [Faulty(TOLD, ONE), Faulty(OTHER, OTHERS, words=WORDS_B)]
    models[place].fails_at = 1
    with thinking_ensemble(*models) as ensemble:
        assert ensemble.complete(ASKED, APART).text == "Paris is the end"


def test_who_waits_for_one_that_fails_reads_by_itself(space, caplog) -> None:
    model = Faulty(TOLD, ONE, n_ctx=1024)
    long = [Message("user", "the unbelievable end of it " * 12)]
    with thinking_ensemble(model, model, model, space=space) as ensemble:
        states = ensemble._engine._states_of(0)
        model.fails_at, model.broken = 1, states[0]._seq_ids if space == "bytes" else [0]
        found = ensemble.complete(long, APART)
        assert (found.text, found.usage.cached_tokens) == ("Paris is the end", (0, 0, 0))
    assert goes_on_without(caplog, "m0")


def test_an_error_in_what_is_taken_in_is_no_end_of_a_thought(space, caplog, monkeypatch) -> None:
    one, other = Thinking(TOLD, ONE), Thinking(OTHER, OTHERS, words=WORDS_B)
    with thinking_ensemble(one, other, space=space) as ensemble:
        taking = type(ensemble._engine._states_of(0)[0]).take

        def take(state, run, logits):
            if "a there" in other.seen.rpartition("[THINK]")[2] and logits is not None:
                monkeypatch.undo()
                raise ModelError("it failed")
            taking(state, run, logits)

        monkeypatch.setattr(type(ensemble._engine._states_of(0)[0]), "take", take)
        assert ensemble.complete(ASKED, APART).text == "Paris is the end"
        assert len([each for each in caplog.records if "goes on" in each.getMessage()]) == 1


def test_where_all_fail_the_first_error_ends_the_answer(space, caplog) -> None:
    models = [Faulty(TOLD, ONE), Faulty(OTHER, OTHERS, words=WORDS_B), Faulty(TOLD, ONE)]
    with thinking_ensemble(*models, space=space, weights=(2.0, 0.0, 1.0)) as ensemble:
        for each in models:
            each.fails_at = 1
        with pytest.raises(ModelError, match="it failed"):
            ensemble.complete(ASKED, APART)
        # Of those who are left none counts.
        models[1].fails_at = 10**6
        with pytest.raises(ModelError, match="it failed"):
            ensemble.complete(ASKED, APART)
        assert goes_on_without(caplog)
        models[2].fails_at = 10**6
        assert ensemble.complete(ASKED, APART).text == "Paris is the end"
        assert goes_on_without(caplog, "m0")


def test_whom_nobody_can_be_held_against_writes_nothing(space) -> None:
    expert, amateur = Faulty(TOLD, ONE), Thinking(TOLD, ONE)
    options = {"combine": "geometric", "weights": (2.0, -1.0)}
    with thinking_ensemble(expert, amateur, space=space, **options) as ensemble:
        expert.fails_at = 1
        with pytest.raises(ModelError, match="it failed"):
            ensemble.complete(ASKED, APART)


@pytest.mark.parametrize("weights", ["thought", "running", "prompt-perplexity", (1.0, 9.0, 1.0)])
def test_the_others_weights_go_on(space, weights, caplog) -> None:
    bad = Faulty(TOLD, ONE.replace("Paris", "unable"))
    models = [Thinking(TOLD, ONE), bad, Thinking(OTHER, OTHERS, words=WORDS_B)]
    with thinking_ensemble(*models, space=space, weights=weights) as ensemble:
        bad.fails_at = ensemble.prompt_tokens(ASKED, APART)[1] + 2
        steps = list(ensemble.stream(ASKED, APART, trace=True))
    assert goes_on_without(caplog, "m1")
    assert "".join(step.text for step in steps) == "Paris is the end"
    for step in steps:
        if step.reasoning is None:
            shares = [ballot.weight for ballot in step.trace.ballots]
            assert shares[1] == 0
            assert math.isclose(sum(shares), 1)


def test_weights_follow_the_text_without_who_is_left_out() -> None:
    fuser, pair = (Fuser(FusionSettings(weights="running"), count) for count in (3, 2))
    votes = [Vote(np.arange(2), np.asarray(each)) for each in ((0.9, 0.1), (0.4, 0.6))]
    fuser.leave_out(1)
    for _ in range(3):
        fuser.learn(fuser.decide([votes[0], None, votes[1]]), 0, 1)
        pair.learn(pair.decide(votes), 0, 1)
    assert fuser.weights.tolist() == [pair.weights[0], 0, pair.weights[1]]
    assert pair.weights[0] > 0.5


def test_a_thought_that_leaves_no_room_leaves_its_member_out(space, caplog) -> None:
    long = Thinking(TOLD, "<think>\n" + "the " * 200)
    with thinking_ensemble(long, Thinking(OTHER, OTHERS, words=WORDS_B), space=space) as ensemble:
        long.n_ctx = ensemble.prompt_tokens(ASKED, APART)[0] + 4
        found = ensemble.complete(ASKED, APART)
    assert found.text == "Paris is the end"
    assert goes_on_without(caplog, "m0")
    assert "m0: its thought leaves no room for an answer; lower thinking_budget" in caplog.text
