"""Thinking of models with the templates of today's families: what they read, what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tiny_thinkers import FAMILIES, write_thinkers

from eva_local.api import Ensemble, completion_of
from eva_local.opening import load
from eva_local.types import Message, Sampling

ASKED = [Message("system", "Be brief."), Message("user", "Hello there")]
SHORT = {"max_tokens": 12, "thinking_budget": 5}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, templates: Mapping[str, str]) -> Path:
    return write_thinkers(tmp_path_factory.mktemp("thinkers"), templates)


@pytest.fixture(scope="module", params=["pivot", "bytes"])
def space(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=[*FAMILIES, "thinkers", "mixed"])
def ensemble(request: pytest.FixtureRequest, config: Path, space: str) -> Iterator[Ensemble]:
    with load(request.param, config=config, space=space) as found:
        yield found


def knows_thoughts(ensemble: Ensemble) -> bool:
    return ensemble.spec.name != "thoughtless"


def test_on_and_off(ensemble: Ensemble) -> None:
    off = ensemble.complete(ASKED, Sampling(**SHORT, thinking="off"))
    assert (off.reasoning, off.usage.reasoning_steps) == ("", 0)
    on = ensemble.complete(ASKED, Sampling(**SHORT, thinking="on"))
    # Whatever a model of random weights wants, it thinks up to the budget, and then answers.
    assert 0 < on.usage.reasoning_steps <= 5
    assert on.usage.steps > on.usage.reasoning_steps
    assert "think" not in on.text.lower()


def test_untold_several_do_not_think_and_one_does_as_it_would(ensemble: Ensemble) -> None:
    untold = ensemble.complete(ASKED, Sampling(**SHORT))
    thinks = len(ensemble.members) == 1 and ensemble.spec.name not in ("thoughtless", "gemma4")
    assert (untold.usage.reasoning_steps > 0) == thinks
    mode = "on" if thinks else "off"
    if knows_thoughts(ensemble):
        assert untold.text == ensemble.complete(ASKED, Sampling(**SHORT, thinking=mode)).text


def test_streamed_it_is_the_same(ensemble: Ensemble) -> None:
    how = Sampling(**SHORT, thinking="on")
    steps = list(ensemble.stream(ASKED, how))
    whole, streamed = ensemble.complete(ASKED, how), completion_of(steps)
    assert (streamed.text, streamed.reasoning) == (whole.text, whole.reasoning)
    # First the thought, then the answer, and never both.
    answers = [step.reasoning is None for step in steps]
    assert not any(step.reasoning and step.text for step in steps)
    assert answers == sorted(answers)
    assert answers[0] is False


def test_a_schema_binds_the_answer(ensemble: Ensemble) -> None:
    schema = json.dumps({"enum": [{"n": 1}, {"n": 2}]})
    how = Sampling(max_tokens=60, thinking_budget=5, thinking="on", json_schema=schema)
    found = ensemble.complete(ASKED, how)
    assert json.loads(found.text)["n"] in (1, 2)
    assert found.usage.reasoning_steps > 0


def test_the_second_turn_reads_no_thought_and_decodes_what_is_new(ensemble: Ensemble) -> None:
    how = Sampling(**SHORT, thinking="on")
    first = ensemble.complete(ASKED, how)
    turns = [*ASKED, Message("assistant", first.text or "x"), Message("user", "And then?")]
    second = ensemble.complete(turns, how)
    for begun, read, cached in zip(
        first.usage.prompt_tokens,
        second.usage.prompt_tokens,
        second.usage.cached_tokens,
        strict=True,
    ):
        # All but the answer's opening, in which the thought began, is as it was.
        assert begun - 30 <= cached < read
