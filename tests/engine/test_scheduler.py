"""Many requests over one engine of fake models: who runs when, and what they get."""

from __future__ import annotations

import threading
from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from engines import ticket
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import surface
from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine
from eva_local.engine.request import Ticket
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import ContextError, EvaError, InputError
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling, Step


class WatchedModel(FakeModel):
    """A fake model that remembers its batches, as (sequence, number of tokens)."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.batches: list[list[tuple[int, int]]] = []

    def decode(self, runs):
        self.batches.append([(run.seq_id, len(run.tokens)) for run in runs])
        return super().decode(runs)


def open_engine(n_batch: int = 64, chunk: int = 16, **options) -> tuple[Engine, list[WatchedModel]]:
    models = [WatchedModel(words, n_batch=n_batch, **options) for words in (WORDS_A, WORDS_B)]
    mappings = [identity(models[0]), surface(models[1].tokenizer, models[0].tokenizer)]
    space = PivotSpace(models, mappings)
    fusion = FusionSettings(filter="off")
    return Engine(["a", "b"], models, space, fusion, chunk=chunk), models


@dataclass
class Answer:
    """What the sink of a request was told."""

    request: Ticket | None = None
    steps: list[Step] = field(default_factory=list)
    error: EvaError | None = None

    def __call__(self, told: Step | EvaError) -> None:
        assert self.error is None
        if isinstance(told, Step):
            self.steps.append(told)
        else:
            self.error = told

    @property
    def text(self) -> bytes:
        return b"".join(step.piece for step in self.steps)

    @property
    def finished(self) -> bool:
        return bool(self.steps) and self.steps[-1].finish_reason is not None


def ask(
    scheduler: Scheduler,
    models: list[WatchedModel],
    text: bytes,
    sampling: Sampling | None = None,
    member: int | None = None,
) -> Answer:
    answer = Answer()
    asked = models if member is None else [models[member]]
    prompts = [[1, *model.tokenizer.encode(text)] for model in asked]
    sampling = sampling or Sampling(max_tokens=8)
    answer.request = scheduler.submit(
        ticket(scheduler.engine, prompts, sampling, answer, alone=member)
    )
    return answer


def run(scheduler: Scheduler, most: int = 10_000) -> None:
    while scheduler.n_waiting or scheduler.n_running:
        most -= 1
        assert most > 0, "it never ends"
        scheduler.step()


def alone(text: bytes, sampling: Sampling | None = None, **options) -> bytes:
    engine, models = open_engine(**options)
    scheduler = Scheduler(engine)
    answer = ask(scheduler, models, text, sampling)
    run(scheduler)
    return answer.text


texts = st.lists(
    st.builds(
        lambda head, tail: head + tail,
        st.sampled_from([b"", b"the unbelievable Paris is the end. " * 3, b" a" * 30]),
        st.sampled_from([b"the", b" a", b"Paris", b"un", b""]),
    ),
    min_size=1,
    max_size=10,
)


@given(texts, st.integers(1, 5), st.sampled_from([4, 64]), st.sampled_from([1, 16]), st.booleans())
def test_every_answer_is_the_one_it_would_be_alone(asked, n_slots, n_batch, chunk, gapless) -> None:
    engine, models = open_engine(max(n_batch, n_slots), chunk)
    scheduler = Scheduler(engine, n_slots)
    scheduler.gapless = gapless
    answers = [ask(scheduler, models, text) for text in asked]
    run(scheduler)
    assert [answer.text for answer in answers] == [alone(text) for text in asked]
    assert all(answer.finished for answer in answers)


def test_a_place_is_taken_at_once_by_the_next() -> None:
    engine, models = open_engine(endless=True)
    scheduler = Scheduler(engine, 3)
    lengths = [2, 9, 4, 1, 7, 3, 5, 2]
    answers = [ask(scheduler, models, b"%d" % n, Sampling(max_tokens=n)) for n in lengths]
    while scheduler.n_waiting or scheduler.n_running:
        waiting = scheduler.n_waiting
        scheduler.step()
        batch = models[0].batches[-1]
        assert len(batch) == 3 or not waiting
    assert [len(answer.steps) for answer in answers] == lengths


def test_running_answers_go_first_and_step_on_while_a_long_prompt_is_read() -> None:
    engine, models = open_engine(n_batch=64, chunk=8, endless=True)
    scheduler = Scheduler(engine, 3)
    running = [ask(scheduler, models, t, Sampling(max_tokens=100)) for t in (b"the", b" un")]
    scheduler.step()
    assert [len(answer.steps) for answer in running] == [1, 1]
    late = ask(scheduler, models, b"a, " * 40, Sampling(max_tokens=3))
    before = len(models[0].batches)
    while not late.steps:
        scheduler.step()
    batches = models[0].batches[before:]
    assert len(batches) >= 120 / 8
    for batch in batches:
        assert [sequence for sequence, _ in batch] == [0, 1, 2]
        assert batch[-1][1] <= 8
    assert [len(answer.steps) for answer in running] == [1 + len(batches)] * 2


def test_texts_move_together_when_nothing_waits() -> None:
    engine, models = open_engine(endless=True)
    scheduler = Scheduler(engine, 6)
    scheduler.gapless = True
    lengths = [3, 20, 5, 20, 8, 20]
    prompts = [b"%d the" % n for n in range(6)]
    answers = [
        ask(scheduler, models, prompt, Sampling(max_tokens=n))
        for prompt, n in zip(prompts, lengths, strict=True)
    ]
    run(scheduler)
    assert [len(answer.steps) for answer in answers] == lengths
    for batch in models[0].batches[6:]:
        assert sorted(sequence for sequence, _ in batch) == list(range(len(batch)))
    for prompt, answer in zip(prompts, answers, strict=True):
        sampling = Sampling(max_tokens=len(answer.steps))
        assert answer.text == alone(prompt, sampling, endless=True)


@given(texts, st.integers(1, 3), st.lists(st.sampled_from([None, 0, 1]), min_size=9, max_size=9))
def test_members_alone_write_beside_all_what_they_would_write_by_themselves(
    asked, n_slots, who
) -> None:
    engine, models = open_engine()
    scheduler = Scheduler(engine, n_slots)
    answers = [
        ask(scheduler, models, text, member=member)
        for text, member in zip(asked, who, strict=False)
    ]
    run(scheduler)
    for text, member, answer in zip(asked, who, answers, strict=False):
        if member is None:
            assert answer.text == alone(text)
            continue
        model = WatchedModel((WORDS_A, WORDS_B)[member])
        space = PivotSpace([model], [identity(model)])
        single = Scheduler(Engine(["one"], [model], space, FusionSettings(weights="equal")))
        expected = ask(single, [model], text)
        run(single)
        assert answer.text == expected.text
        assert answer.steps[-1].usage.members == (("a", "b")[member],)


def test_a_prompt_alone_is_read_in_whole_batches() -> None:
    engine, models = open_engine(n_batch=64, chunk=8)
    scheduler = Scheduler(engine, 3)
    ask(scheduler, models, b"a, " * 60)
    scheduler.step()
    assert models[0].batches == [[(0, 64)]]


def test_a_common_beginning_is_decoded_once() -> None:
    engine, models = open_engine(n_batch=64)
    scheduler = Scheduler(engine, 4)
    prefix = b"the unbelievable Paris is the end. " * 10
    asked = [prefix + tail for tail in (b"un", b"the", b"ing", b" a", b"Paris", b"is")]
    answers = [ask(scheduler, models, text, Sampling(max_tokens=1)) for text in asked]
    run(scheduler)
    for model in models:
        size = len(model.tokenizer.encode(prefix))
        assert size < model.decoded < size + 6 * 12
    assert [answer.text for answer in answers] == [
        alone(text, Sampling(max_tokens=1)) for text in asked
    ]
    later = answers[-1].steps[-1].usage
    for cached, read in zip(later.cached_tokens, later.prompt_tokens, strict=True):
        assert cached > 0.9 * read


def test_who_shares_nothing_overtakes_who_waits_for_a_common_beginning() -> None:
    engine, models = open_engine(n_batch=32)
    scheduler = Scheduler(engine, 3)
    prefix = b"the unbelievable Paris is the end. " * 20
    first, second = (ask(scheduler, models, prefix + tail) for tail in (b"un", b"ing"))
    other = ask(scheduler, models, b"zzz")
    scheduler.step()
    assert first.request.sequence is not None
    assert second.request.sequence is None
    assert other.request.sequence is not None
    run(scheduler)
    assert second.finished


def test_a_common_beginning_is_not_copied_where_nothing_can_be_taken_back() -> None:
    engine, models = open_engine(can_roll_back=False)
    scheduler = Scheduler(engine, 3)
    asked = [b"the unbelievable Paris is the end. " * 4 + tail for tail in (b"un", b"ing", b" a")]
    answers = [ask(scheduler, models, text) for text in asked]
    run(scheduler)
    assert all(answer.finished for answer in answers)
    assert len(models[0].batches[0]) > 1


@given(st.data())
def test_cancelled_requests_leave_within_a_step_and_nobody_else_notices(data) -> None:
    engine, models = open_engine()
    scheduler = Scheduler(engine, 2)
    asked = [b"%d the" % number for number in range(6)]
    answers = [ask(scheduler, models, text) for text in asked]
    cancelled = data.draw(st.sets(st.integers(0, 5)))
    moments = {place: data.draw(st.integers(0, 12)) for place in cancelled}
    for moment in range(60):
        for place in cancelled:
            if moments[place] == moment and not answers[place].finished:
                told = len(answers[place].steps)
                scheduler.cancel(answers[place].request)
                scheduler.step()
                assert answers[place].request not in scheduler._running.values()
                assert len(answers[place].steps) == told
        scheduler.step()
    assert scheduler.n_running == scheduler.n_waiting == 0
    for text, answer in zip(asked, answers, strict=True):
        if answer.finished:
            assert answer.text == alone(text)
        else:
            assert asked.index(text) in cancelled


def test_what_is_wrong_with_one_request_ends_that_one_alone() -> None:
    engine, models = open_engine(n_ctx=60)
    scheduler = Scheduler(engine, 2)
    fine, long, biased, last = (
        ask(scheduler, models, b"the"),
        ask(scheduler, models, b"z" * 80),
        ask(scheduler, models, b"the", Sampling(logit_bias={"no such symbol": 1.0})),
        ask(scheduler, models, b" a"),
    )
    run(scheduler)
    assert isinstance(long.error, ContextError)
    assert isinstance(biased.error, InputError)
    assert fine.text == alone(b"the")
    assert last.text == alone(b" a")
    assert all(answer.request.done for answer in (fine, long, biased, last))


@pytest.mark.parametrize("fault", [InputError("nothing can be written"), ValueError("a slip")])
def test_an_error_amid_an_answer_ends_that_one_alone(fault: Exception) -> None:
    engine, models = open_engine()
    scheduler = Scheduler(engine, 2)
    fine, bad = ask(scheduler, models, b"the"), ask(scheduler, models, b" a")
    scheduler.step()

    def stuck(fused, candidates):
        raise fault

    bad.request.sequence._sampler.choose = stuck
    run(scheduler)
    assert isinstance(bad.error, EvaError)
    assert str(fault) in str(bad.error)
    assert fine.text == alone(b"the")


def test_a_slip_at_the_beginning_of_an_answer_ends_that_one_alone() -> None:
    engine, models = open_engine()
    scheduler = Scheduler(engine, 2)
    begin = engine.begin

    def slip(asked, slot):
        if len(asked.prompts[0]) > 5:
            raise ValueError("a slip")
        return begin(asked, slot)

    engine.begin = slip
    fine, bad = ask(scheduler, models, b"the"), ask(scheduler, models, b"zzzzzzzz")
    run(scheduler)
    assert "a slip" in str(bad.error)
    assert fine.text == alone(b"the")


class Awaited(Answer):
    """An answer for which another thread can wait."""

    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()

    def __call__(self, told) -> None:
        super().__call__(told)
        if self.finished or self.error:
            self.done.set()


def test_other_threads_submit_and_cancel_while_one_steps() -> None:
    engine, models = open_engine()
    scheduler = Scheduler(engine, 4)
    expected = {text: alone(text) for text in (b"the", b" a", b"Paris", b"un", b"ing")}
    ended = threading.Event()
    right: list[bool] = []

    def drive() -> None:
        while not ended.is_set():
            scheduler.step()

    def use(number: int) -> None:
        for turn in range(12):
            text = list(expected)[(number + turn) % 5]
            told, done = answered_by_another_thread(scheduler, models, text)
            if turn % 3 == 2:
                scheduler.cancel(told.request)
            else:
                right.append(done.wait(PATIENCE_S) and told.text == expected[text])

    driver = threading.Thread(target=drive)
    users = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in (driver, *users):
        thread.start()
    for thread in users:
        thread.join()
    ended.set()
    driver.join()
    assert right == [True] * 6 * 8
    assert scheduler.n_running == scheduler.n_waiting == 0


def answered_by_another_thread(scheduler, models, text) -> tuple[Answer, threading.Event]:
    told, done = Answer(), threading.Event()

    def sink(step) -> None:
        told(step)
        if told.finished or told.error:
            done.set()

    prompts = [[1, *model.tokenizer.encode(text)] for model in models]
    told.request = scheduler.submit(ticket(scheduler.engine, prompts, Sampling(max_tokens=8), sink))
    return told, done


def test_the_likeliest_symbols_are_told_on_request() -> None:
    engine, models = open_engine()
    scheduler = Scheduler(engine)
    answer = Answer()
    prompts = [[1, *model.tokenizer.encode(b"the")] for model in models]
    scheduler.submit(ticket(scheduler.engine, prompts, Sampling(max_tokens=3), answer, n_top=4))
    run(scheduler)
    for step in answer.steps:
        assert len(step.top) == 4
        assert step.top[0].piece == step.piece
        assert step.top[0].probability == step.probability


def slot_of(scheduler: Scheduler, answer: Answer) -> int:
    return next(slot for slot, held in scheduler._running.items() if held is answer.request)


class Slots:
    """Asks one thing after the other, as a chat does, and says which slot each had."""

    def __init__(self, n_slots: int = 4, *, gapless: bool = False, n_ctx: int = 4096) -> None:
        self.engine, self.models = open_engine(endless=True, n_ctx=n_ctx)
        self.scheduler = Scheduler(self.engine, n_slots)
        self.scheduler.gapless = gapless

    def ask(self, text: bytes, max_tokens: int = 5) -> tuple[int, bytes]:
        """Return the slot, and the text that a next turn begins with."""
        answer = ask(self.scheduler, self.models, text, Sampling(max_tokens=max_tokens))
        self.scheduler.step()
        slot = slot_of(self.scheduler, answer)
        before = sum(model.decoded for model in self.models)
        run(self.scheduler)
        self.read = sum(self.last(answer, "prompt_tokens")) - sum(
            self.last(answer, "cached_tokens")
        )
        assert before <= sum(model.decoded for model in self.models)
        return slot, text + answer.text

    def last(self, answer: Answer, name: str) -> tuple[int, ...]:
        return getattr(answer.steps[-1].usage, name)


SYSTEM = b"the unbelievable Paris is the end. " * 4


@pytest.mark.parametrize("shared", [b"", SYSTEM])
def test_a_new_conversation_takes_an_empty_slot(shared) -> None:
    slots = Slots()
    first, a = slots.ask(shared + b"zz is the first of them")
    second, b = slots.ask(shared + b"and this one is another")
    assert (first, second) == (0, 1)
    # What both have in common was copied.
    assert slots.read < 60
    for turn in (b" go on", b" and on"):
        slot, a = slots.ask(a + turn)
        assert slot == 0
        assert slots.read < 30
        slot, b = slots.ask(b + turn)
        assert slot == 1
        assert slots.read < 30


@pytest.mark.parametrize("shared", [b"", SYSTEM])
def test_where_no_slot_is_empty_the_least_recently_used_is_taken(shared) -> None:
    slots = Slots(3)
    talks = [slots.ask(shared + b"%d is the number of this: " % n * 30)[1] for n in range(3)]
    slot, talks[0] = slots.ask(talks[0] + b" go on")
    assert slot == 0
    slot, late = slots.ask(shared + b"something else ")
    assert slot == 1
    assert slots.ask(late + b" go on")[0] == 1
    assert slots.ask(talks[2] + b" go on")[0] == 2
    assert slots.ask(talks[0] + b" go on")[0] == 0


def test_a_text_that_is_asked_for_again_stays_where_it_is() -> None:
    slots = Slots()
    prompt = SYSTEM + b"say it again: "
    assert [slots.ask(prompt)[0] for _ in range(3)] == [0, 0, 0]
    # The empty beginning is nothing to stay for.
    assert slots.ask(b"")[0] == 1


def test_a_turn_that_is_edited_where_no_slot_is_empty_ends_its_own_old_answer_alone() -> None:
    slots = Slots(2)
    other = slots.ask(b"zz " * 40)[1]
    slots.ask(SYSTEM + b"is it so")
    assert slots.ask(SYSTEM + b"was it so")[0] == 1
    assert slots.ask(other + b" go on")[0] == 0


def test_texts_that_move_together_use_the_slot_that_holds_most_of_a_prompt() -> None:
    slots = Slots(gapless=True)
    assert slots.ask(SYSTEM + b"one")[0] == 0
    assert slots.ask(SYSTEM + b"two")[0] == 0
    assert slots.ask(b"zz is something else")[0] == 0


@pytest.mark.parametrize("n_tokens", [60, 12])
def test_the_time_of_a_batch_is_shared_out_by_tokens(n_tokens, monkeypatch) -> None:
    engine, models = open_engine(chunk=128, n_batch=128, endless=True)
    now = iter(range(10**6))
    clock = SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr("eva_local.engine.engine.time", clock)
    scheduler = Scheduler(engine, 2)
    short = ask(scheduler, models, b"the", Sampling(max_tokens=2))
    scheduler.step()
    before = short.request.sequence._decode_seconds.copy()
    long = ask(scheduler, models, b"z" * (n_tokens - 1), Sampling(max_tokens=2))
    run(scheduler)
    # One second of each member, for one token beside all of the other's prompt.
    spent = np.array(short.steps[-1].usage.decode_seconds) - before
    batches = [dict(model.batches[1]) for model in models]
    assert [batch[1] for batch in batches] == [n_tokens] * 2
    assert spent.tolist() == [pytest.approx(b[0] / (b[0] + n_tokens)) for b in batches]
    assert long.steps[-1].usage.prompt_seconds == tuple(
        pytest.approx(n_tokens / (b[0] + n_tokens)) for b in batches
    )


def test_no_prompt_is_walked_through_in_a_step() -> None:
    class Walked(array):
        n_walks = 0

        def __iter__(self):
            Walked.n_walks += 1
            return super().__iter__()

    engine, models = open_engine(n_ctx=10_000, n_batch=512, chunk=512)
    scheduler = Scheduler(engine, 4)
    heads = [model.tokenizer.encode(b"the unbelievable Paris is ")[:4] for model in models]
    for tail in range(6):
        prompts = [Walked("i", [1, *head * 2000, 20 + tail]) for head in heads]
        scheduler.submit(ticket(scheduler.engine, prompts, Sampling(max_tokens=2)))
    run(scheduler)
    assert Walked.n_walks == 0
