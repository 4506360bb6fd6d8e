"""What goes wrong with one text is its own end: others go on, and its place is free again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engines import ticket
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import surface
from eva_local.cache.context import PromptLikelihood
from eva_local.config.specs import FusionSettings, LoadSettings
from eva_local.engine.engine import Engine
from eva_local.engine.request import Ticket
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import EvaError, InputError, ModelError, RoomError, passed_on
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Logits, Run, decode_all
from eva_local.spaces.bytes.space import ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling, Step
from tools.tiny_gguf import write_tiny_gguf

SPACES = ["pivot", "bytes"]
FEW = Sampling(max_tokens=6)


class Cramped(FakeModel):
    """A model with `n_cells` for all of its texts, that takes at most `n_fitting` at a time."""

    def __init__(self, words: Sequence[bytes], **options: Any) -> None:
        super().__init__(words, **options)
        self.n_cells = self.n_fitting = 10**6
        # Sequences that cannot be decoded, whatever is asked.
        self.broken: set[int] = set()
        self.n_calls = 0

    def _hashed(self, tokens: Sequence[int]) -> Logits:
        row = super()._hashed(tokens)
        row[2:4] = -30  # never END
        return row

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        self.n_calls += 1
        wanted = sum(len(run.tokens) for run in runs)
        if wanted > self.n_fitting or wanted + sum(map(len, self.cache.values())) > self.n_cells:
            # As where a batch is split, some of it is there already.
            super().decode([Run(runs[0].seq_id, runs[0].start, runs[0].tokens[:1])])
            raise RoomError("no room left")
        if any(run.seq_id in self.broken for run in runs):
            raise ModelError("it failed")
        return super().decode(runs)


class World:
    """An ensemble of two members in one of the spaces, and what its texts were told."""

    def __init__(self, space: str, n_slots: int = 3, **options: Any) -> None:
        self.models = [Cramped(words, **options) for words in (WORDS_A, WORDS_B)]
        fusion = FusionSettings(space=space, filter="off", weights="equal")
        self.engine = Engine(["a", "b"], self.models, self._space(space), fusion)
        self.scheduler = Scheduler(self.engine, n_slots)

    def _space(self, space: str) -> PivotSpace | ByteSpace:
        if space == "bytes":
            return ByteSpace(self.models)
        first, second = self.models
        return PivotSpace(
            self.models, [identity(first), surface(second.tokenizer, first.tokenizer)]
        )

    def ask(self, text: bytes, sampling: Sampling = FEW, scored: int = 0) -> Answer:
        prompts = [[1, *model.tokenizer.encode(text)] for model in self.models]
        answer = Answer()
        answer.request = self.scheduler.submit(
            ticket(self.engine, prompts, sampling, answer.told.append, scored_bytes=scored)
        )
        return answer

    def run(self, most: int = 200) -> None:
        while self.scheduler.n_waiting or self.scheduler.n_running:
            most -= 1
            assert most, "it never ends"
            self.scheduler.step()


class Answer:
    request: Ticket

    def __init__(self) -> None:
        self.told: list[Step | EvaError] = []

    @property
    def text(self) -> bytes:
        return b"".join(step.piece for step in self.told if isinstance(step, Step))

    @property
    def error(self) -> EvaError | None:
        last = self.told[-1]
        return last if isinstance(last, EvaError) else None

    @property
    def cached(self) -> tuple[int, ...]:
        last = self.told[-1]
        assert isinstance(last, Step)
        assert last.usage is not None
        return last.usage.cached_tokens


def alone(space: str, text: bytes, scored: int = 0) -> bytes:
    world = World(space)
    answer = world.ask(text, scored=scored)
    world.run()
    return answer.text


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("fault", [ModelError("not this one"), ZeroDivisionError("a slip")])
@pytest.mark.parametrize("what", ["pending", "take", "read", "per_byte", "commit"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_fault_of_one_text_ends_that_one_alone(
    space: str, fault: Exception, what: str, place: int
) -> None:
    world = World(space)
    fine = [world.ask(text, scored=9) for text in (b"the unbelievable", b"z the")]
    bad = world.ask(b"Paris is the end", scored=9)
    begin = world.engine.begin

    def slip(*_arguments: object) -> None:
        raise fault

    def begin_badly(asked: Ticket, slot: int) -> Any:
        sequence = begin(asked, slot)
        if list(asked.prompts[0]) == list(bad.request.prompts[0]):
            state = sequence.states[place]
            setattr(state if hasattr(state, what) else state.cache.likelihood, what, slip)
        return sequence

    world.engine.begin = begin_badly  # type: ignore[method-assign]
    world.run()
    world.engine.begin = begin  # type: ignore[method-assign]
    assert str(fault) in str(bad.error)
    assert [each.text for each in fine] == [
        alone(space, text, scored=9) for text in (b"the unbelievable", b"z the")
    ]
    # Its slot holds nothing that anybody would go on with.
    slot = 2
    states = world.engine._states[slot]
    assert states[place].cache.n_cached == 0
    world.engine._states[slot] = world.engine._all.space.states(slot)
    again = world.ask(b"Paris is the end", scored=9)
    world.run()
    assert again.text == alone(space, b"Paris is the end", scored=9)


@pytest.mark.parametrize("space", SPACES)
def test_who_asks_again_after_a_failure_reads_everything(space: str) -> None:
    world = World(space, 1)
    world.ask(b"the unbelievable")
    world.run()
    world.models[1].broken = set(range(8))
    bad = world.ask(b"the unbelievable Paris")
    world.run()
    assert str(bad.error) == "it failed"
    assert world.scheduler.n_running == 0
    world.models[1].broken = set()
    again = world.ask(b"the unbelievable Paris")
    world.run()
    assert again.text == alone(space, b"the unbelievable Paris")
    assert again.cached == (0, 0)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_batch_that_fails_for_one_text_is_decoded_without_it(space: str, when: int) -> None:
    world = World(space)
    answers = [world.ask(text) for text in (b"the unbelievable", b"z the", b"Paris is")]
    for _ in range(when):
        world.scheduler.step()
    width = 8 if space == "bytes" else 1
    world.models[1].broken = set(range(width, 2 * width))
    world.run()
    assert str(answers[1].error) == "it failed"
    assert [answers[0].text, answers[2].text] == [
        alone(space, text) for text in (b"the unbelievable", b"Paris is")
    ]


@pytest.mark.parametrize("space", SPACES)
@given(n_fitting=st.integers(1, 12))
def test_smaller_batches_are_tried_where_there_is_no_room(space: str, n_fitting: int) -> None:
    world = World(space)
    for model in world.models:
        model.n_fitting = n_fitting
    texts = (b"the unbelievable Paris is the end", b"zzz the", b" a")
    answers = [world.ask(text) for text in texts]
    world.run()
    assert [each.error for each in answers] == [None] * 3
    assert [each.text for each in answers] == [alone(space, text) for text in texts]


@pytest.mark.parametrize("space", SPACES)
def test_only_the_text_that_does_not_fit_ends(space: str) -> None:
    world = World(space)
    world.models[0].n_cells = 60
    fine = world.ask(b"the end")
    long = world.ask(b"z" * 80)
    late = world.ask(b" a")
    world.run()
    assert isinstance(long.error, RoomError)
    assert fine.text == alone(space, b"the end")
    assert late.text == alone(space, b" a")
    assert world.scheduler.n_running == 0


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("error", [ModelError("not now"), KeyboardInterrupt()])
def test_a_beginning_that_is_cut_off_leaves_nothing_to_go_on_with(
    space: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(space, 1)
    world.ask(b"the unbelievable")
    world.run()
    begin = PromptLikelihood.begin

    def cut_off(*arguments: Any) -> int:
        if len(arguments[1]):
            raise error
        return begin(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PromptLikelihood, "begin", cut_off)
        bad = world.ask(b"the unbelievable Paris")
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                world.scheduler.step()
        else:
            world.run()
            assert str(bad.error) == str(error)
    again = world.ask(b"the unbelievable Paris")
    world.run()
    assert again.cached == (0, 0)
    assert again.text == alone(space, b"the unbelievable Paris")


def test_no_text_keeps_its_place_where_nobody_knows_whose_fault_it_was() -> None:
    world = World("pivot", 2)
    answers = [world.ask(text) for text in (b"the", b" a", b"un")]
    world.scheduler.step()
    world.engine._take = lambda _decoded: 1 / 0  # type: ignore[method-assign]
    world.scheduler.step()
    assert ["division by zero" in str(each.error) for each in answers[:2]] == [True, True]
    assert answers[0].error is not answers[1].error
    del world.engine._take
    world.run()
    assert answers[2].text == alone("pivot", b"un")


def test_a_model_whose_device_is_gone_is_asked_once_more_for_each_text() -> None:
    world = World("pivot")
    world.models[0].broken = {0, 1, 2}
    answers = [world.ask(text) for text in (b"the", b" a", b"un")]
    world.run()
    assert [str(each.error) for each in answers] == ["it failed"] * 3
    assert world.models[0].n_calls == 4
    assert world.scheduler.n_running == world.scheduler.n_waiting == 0


def test_llama_decodes_what_there_is_room_for(tmp_path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, n_layers=1)
    rows = [[1, *range(60, 160)] * 3, [1, 80, 90], [1, *range(50, 150)] * 4]
    with LlamaModel(path, LoadSettings(n_ctx=64, n_batch=1024), n_branches=3) as model:
        runs = [Run(sequence, 0, row) for sequence, row in enumerate(rows)]
        found = decode_all(model, runs)
        fits, short, full = found
        assert isinstance(full, RoomError)
        assert isinstance(fits, np.ndarray)
        assert isinstance(short, np.ndarray)
        assert model.remove(2, 0) == 0
        for sequence, logits in ((0, fits), (1, short)):
            assert model.remove(sequence, 0) == 0
            (fresh,) = model.decode([Run(sequence, 0, rows[sequence])])
            assert fresh is not None
            assert np.allclose(logits, fresh, atol=1e-4)


@pytest.mark.parametrize("n_logits", [0, 1, 4, 6])
def test_what_is_decoded_in_parts_has_the_logits_that_it_has_in_one(n_logits: int) -> None:
    run = Run(0, 0, [1, 40, 41, 42, 43, 44], n_logits)
    (whole,) = Cramped(WORDS_A).decode([run])
    model = Cramped(WORDS_A)
    model.n_fitting = max(n_logits, 2)
    (found,) = decode_all(model, [run])
    assert model.cache[0] == run.tokens
    assert (found is None) == (whole is None)
    assert whole is None or np.array_equal(found, whole)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (KeyError("x"), "a fault of eva-local"),
        (InputError("it is wrong"), "it is wrong"),
    ],
)
def test_the_end_of_memory_is_no_fault_of_eva_local(error: Exception, told: str) -> None:
    assert told in str(passed_on(error))
