"""Control tokens that a member wants: dropped, and said once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from engines import bytes_engine, pivot_engine, run, text_of, ticket
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.engine.engine import Engine
from eva_local.spaces.base import ControlTokens
from eva_local.types import Sampling

SPACES = {"pivot": pivot_engine, "bytes": lambda models: bytes_engine(*models)}
spaces = pytest.mark.parametrize("build", SPACES.values(), ids=SPACES)
FEW = Sampling(max_tokens=4)


class Wanting(FakeModel):
    """A model that wants some tokens (by id, with their logits), and else "the"."""

    def __init__(
        self, words: list[bytes], wanted: dict[int, float], name: str = "fine.gguf"
    ) -> None:
        super().__init__(words)
        self.path = self.path.with_name(name)
        self._row = np.full(len(self.vocabulary), -20, dtype=np.float32)
        self._row[self.vocabulary.ids.get(b"t")] = self._row[self.vocabulary.ids.get(b" the")] = 4
        for token_id, logit in wanted.items():
            self._row[token_id] = logit
        self._logits = lambda tokens: self._row


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def write(engine: Engine, models: list[FakeModel], alone: int | None = None) -> bytes:
    asked = models if alone is None else [models[alone]]
    prompts = [[1, *model.tokenizer.encode(b"the")] for model in asked]
    return text_of(run(engine, engine.begin(ticket(engine, prompts, FEW, alone=alone)))[0])


@spaces
def test_a_control_token_that_a_member_wants_is_named_once(
    build: Callable[[list[FakeModel]], Engine], caplog: pytest.LogCaptureFixture
) -> None:
    models = [Wanting(WORDS_A, {}), Wanting(WORDS_B, {1: 9}, "odd.gguf")]
    engine = build(models)
    with_it = [write(engine, models, alone) for alone in (None, 1, None, 0)]
    (said,) = warnings_of(caplog)
    assert said.startswith("odd.gguf wants to go on with '<s>' (99%), a control token ")
    # Nothing else comes of it.
    plain = [Wanting(WORDS_A, {}), Wanting(WORDS_B, {})]
    engine = build(plain)
    assert with_it == [write(engine, plain, alone) for alone in (None, 1, None, 0)]
    assert len(warnings_of(caplog)) == 1


@spaces
@pytest.mark.parametrize("alone", [0, 1])
def test_a_member_that_writes_alone_is_listened_to(
    build: Callable[[list[FakeModel]], Engine], alone: int, caplog: pytest.LogCaptureFixture
) -> None:
    models = [Wanting(WORDS_A, {1: 9}, "0.gguf"), Wanting(WORDS_B, {1: 9}, "1.gguf")]
    write(build(models), models, alone)
    (said,) = warnings_of(caplog)
    assert said.startswith(f"{alone}.gguf wants")


@spaces
def test_what_is_end_or_less_than_half_is_not_said(
    build: Callable[[list[FakeModel]], Engine], caplog: pytest.LogCaptureFixture
) -> None:
    # END by either of its ids; a control token beside two as likely pieces.
    models = [Wanting(WORDS_A, {2: 9, 3: 8, 1: 4}), Wanting(WORDS_A, {1: 4})]
    write(build(models), models)
    assert warnings_of(caplog) == []


def test_the_share_is_that_of_all_of_them_and_the_likeliest_is_named(caplog) -> None:
    model = Wanting(WORDS_A, {0: 3.5, 1: 3.6})
    pad = len(model.vocabulary) - 2
    assert model.vocabulary.pieces[pad] == b"[PAD]"
    row = model._row.copy()
    control = ControlTokens(model)
    control.hear(row)
    assert warnings_of(caplog) == []
    row[pad] = 4.1
    row[0] = row[1] = 3.9
    control.hear(row)
    (said,) = warnings_of(caplog)
    share = np.exp(row[[0, 1, pad]]).sum() / np.exp(row).sum()
    assert share > 0.5
    assert f"wants to go on with '[PAD]' ({100 * share:.0f}%)" in said
    assert "\n" not in said


@spaces
def test_what_is_wanted_in_the_prompt_is_not_said(
    build: Callable[[list[FakeModel]], Engine], caplog: pytest.LogCaptureFixture
) -> None:
    models = [Wanting(words, {}) for words in (WORDS_A, WORDS_B)]
    for model in models:
        odd = model._row.copy()
        odd[1] = 9
        model._logits = lambda said, row=model._row, odd=odd: odd if len(said) < 4 else row
    engine = build(models)
    prompts = [[1, *model.tokenizer.encode(b"the the the")] for model in models]
    run(engine, engine.begin(ticket(engine, prompts, FEW, scored_bytes=20)))
    assert warnings_of(caplog) == []


def test_a_thought_may_end_as_the_answer_does() -> None:
    control = ControlTokens(FakeModel())
    logits = np.zeros(len(FakeModel().vocabulary), dtype=np.float32)
    assert np.array_equal(control.ended(logits, 2), logits)
    both = control.ended(logits, 3)
    assert both[2] == np.logaddexp(np.float32(0), np.float32(0))
    assert both[3] == -np.inf
