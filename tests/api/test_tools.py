"""Calls of functions in Python and in batches, and how far votes are apart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from batches import ensemble_of_models, errand, fake_spec, results
from callers import ADD, Calculator
from fakes import WORDS_A, FakeModel

from eva_local.api import Ensemble
from eva_local.batch.job import carry_out
from eva_local.errors import InputError
from eva_local.types import Sampling

QUESTION = {"role": "user", "content": "What is 1 + 2?"}


@pytest.fixture
def calculators(tmp_path) -> Iterator[Ensemble]:
    models = [Calculator(), Calculator()]
    with ensemble_of_models(fake_spec(tmp_path), models, 4) as ensemble:
        yield ensemble


def test_a_call_and_its_result_over_two_turns(calculators) -> None:
    asked = {"tools": [ADD], "max_tokens": 300}
    first = calculators.complete([QUESTION], **asked)
    assert (first.text, first.finish_reason) == ("Let me see.", "tool_calls")
    (call,) = first.tool_calls
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
    said = {"role": "assistant", "content": first.text, "tool_calls": first.tool_calls}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "3"}
    second = calculators.complete([QUESTION, said, result], **asked)
    assert (second.text, second.finish_reason, second.tool_calls) == ("It is 3.", "stop", ())
    # The same of a stream: nothing of the call is shown, and it comes with the last step.
    *_, last = steps = list(calculators.stream([QUESTION], Sampling(tools=[ADD], max_tokens=300)))
    assert "".join(step.text for step in steps) == "Let me see."
    assert last.tool_calls[0]["function"] == call["function"]
    assert not any(step.tool_calls for step in steps[:-1])
    assert calculators.complete([QUESTION], max_tokens=300).text == "There are no tools."


def test_a_call_that_must_be_and_what_cannot_be(calculators) -> None:
    due = calculators.complete([QUESTION], tools=[ADD], tool_choice="required", max_tokens=99)
    assert (due.text, [each["function"]["name"] for each in due.tool_calls]) == ("", ["add"])
    with pytest.raises(InputError, match="tools are for messages"):
        calculators.complete("1 + 2 =", tools=[ADD])
    with pytest.raises(InputError, match=r"tools\[0\].function is missing"):
        calculators.complete([QUESTION], tools=[{"type": "function"}])
    with pytest.raises(InputError, match="there are no tools to choose from"):
        calculators.complete([QUESTION], tool_choice="required")


def test_what_is_nested_too_deeply_is_refused(calculators) -> None:
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "add", "parameters": deep}}
    with pytest.raises(InputError, match="what is asked for is nested too deeply"):
        calculators.complete([QUESTION], tools=[tool])
    with pytest.raises(InputError, match="json_schema must be a text"):
        calculators.complete([QUESTION], json_schema=deep)
    with pytest.raises(InputError, match=r"messages\[0\].content must be .*nested too deeply"):
        calculators.complete([{"role": "user", "content": deep}])
    call = {"function": {"name": "add", "arguments": deep}}
    with pytest.raises(InputError, match="messages: arguments are nested too deeply"):
        calculators.complete([{"role": "assistant", "tool_calls": [call]}])


def test_rows_with_tools(tmp_path) -> None:
    rows = [
        {"id": 1, "messages": [QUESTION], "tools": [ADD]},
        {"id": 2, "messages": [QUESTION], "tools": [ADD], "tool_choice": "none"},
        {"id": 3, "messages": [QUESTION], "tools": [{"type": "function"}]},
    ]
    source, target, spec = tmp_path / "in.jsonl", tmp_path / "out.jsonl", fake_spec(tmp_path)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = errand(source, target, spec, sampling=Sampling(max_tokens=300))
    carry_out(job, lambda _: ensemble_of_models(spec, [Calculator(), Calculator()], 4))
    found = {row["id"]: row for row in results(target)}
    assert found[1]["finish_reason"] == "tool_calls"
    assert found[1]["tool_calls"][0]["function"]["name"] == "add"
    assert "tool_calls" not in found[2]
    assert found[2]["text"] == "There are no tools."
    assert "tools[0].function is missing" in found[3]["error"]["message"]
    # In OpenAI's form too.
    body = {"messages": [QUESTION], "tools": [ADD], "max_tokens": 300}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    source.write_text(json.dumps(row) + "\n")
    job = errand(source, tmp_path / "openai.jsonl", spec, form="openai")
    carry_out(job, lambda _: ensemble_of_models(spec, [Calculator(), Calculator()], 4))
    (answer,) = results(tmp_path / "openai.jsonl")
    choice = answer["response"]["body"]["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "Let me see.")
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "add"


def word(number: int) -> FakeModel:
    """A model that always wants the same symbol."""
    row = np.zeros(len(FakeModel(WORDS_A).vocabulary), dtype=np.float32)
    row[number] = 20
    return FakeModel(WORDS_A, logits=lambda _: row)


def test_how_far_votes_are_apart(tmp_path) -> None:
    one, other = 275, 280
    spec = fake_spec(tmp_path)
    with ensemble_of_models(spec, [word(one), word(other)], 1) as ensemble:
        answer = ensemble.complete("a", max_tokens=3)
        steps = list(ensemble.stream("a", max_tokens=3))
        alone = ensemble.complete("a", max_tokens=3, alone=ensemble.members[0])
    # Two that have hardly anything in common are a bit apart.
    assert 0.9 < answer.disagreement <= 1
    assert all(len(step.dissenters) == 1 for step in steps)
    assert math.isclose(answer.disagreement, sum(s.disagreement for s in steps) / len(steps))
    assert answer.disputed
    assert alone.disagreement is None
    assert alone.disputed == ()
    with ensemble_of_models(spec, [word(one), word(one)], 1) as ensemble:
        agreed = ensemble.complete("a", max_tokens=3)
    assert math.isclose(agreed.disagreement, 0, abs_tol=1e-6)
    assert agreed.disputed == ()
