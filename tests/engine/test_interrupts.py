"""What Ctrl-C and a full context leave of texts in the middle of their steps."""

import os
import signal
from collections.abc import Sequence
from functools import partial

import pytest
from engines import ticket
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.alignment.library import identity
from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine
from eva_local.engine.request import Ticket
from eva_local.engine.scheduler import Scheduler
from eva_local.engine.sequence import TextSequence
from eva_local.errors import EvaError
from eva_local.spaces.bytes.space import ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling, Step

Told = list[Step | EvaError]


def scheduler(
    models: Sequence[FakeModel], *, bytewise: bool = False, parallel: int = 2, gate: float = 1.0
) -> Scheduler:
    space = ByteSpace(models) if bytewise else PivotSpace(models, [identity(m) for m in models])
    fusion = FusionSettings(weights="equal", gate=gate, space="bytes" if bytewise else "pivot")
    names = [f"m{place}" for place in range(len(models))]
    return Scheduler(Engine(names, models, space, fusion), parallel)


def ask(asked: Scheduler, first: int, n: int, members: int = 1) -> tuple[Ticket, Told]:
    told: Told = []
    prompt = list(range(first, first + 20))
    sampling = Sampling(max_tokens=n)
    return asked.submit(ticket(asked.engine, [prompt] * members, sampling, told.append)), told


def finish(asked: Scheduler, request: Ticket) -> int:
    """Step until a request is done; return how often that was interrupted."""
    interrupts = 0
    for _ in range(200):
        if request.done:
            return interrupts
        try:
            asked.step()
        except KeyboardInterrupt:
            interrupts += 1
    raise AssertionError("it was never done")


def pieces(told: Told) -> list[bytes]:
    return [each.piece for each in told if isinstance(each, Step)]


@pytest.mark.parametrize("when", [1, 3, 6])
def test_ctrl_c_in_a_step_takes_nothing_from_another_text(when, monkeypatch) -> None:
    undisturbed, wanted = ask(alone := scheduler([FakeModel(WORDS_A, endless=True)]), 40, 6)
    finish(alone, undisturbed)
    shared = scheduler([FakeModel(WORDS_A, endless=True)])
    request, told = ask(shared, 40, 6)
    other, _ = ask(shared, 60, 50)
    advance, calls = TextSequence._advance, []

    def interrupted(sequence: TextSequence) -> Step | None:
        if sequence is other.sequence:
            calls.append(sequence)
            if len(calls) == when:
                os.kill(os.getpid(), signal.SIGINT)
        return advance(sequence)

    monkeypatch.setattr(TextSequence, "_advance", interrupted)
    assert finish(shared, request) == 1
    assert pieces(told) == pieces(wanted)


def test_ctrl_c_while_a_request_is_admitted_does_not_lose_it(monkeypatch) -> None:
    model = FakeModel(WORDS_A, endless=True)
    shared = scheduler([model])
    request, told = ask(shared, 40, 3)
    holds, calls = model.holds, []

    def interrupted(seq_id: int, start: int) -> bool:
        calls.append(start)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return holds(seq_id, start)

    monkeypatch.setattr(model, "holds", interrupted)
    assert finish(shared, request) == 1
    assert len(pieces(told)) == 3


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("snapshots", [None, 0, 4])
def test_a_prompt_that_was_cut_off_is_read_anew(bytewise, snapshots, monkeypatch) -> None:
    rolls_back = snapshots is None
    model = FakeModel(WORDS_A, can_roll_back=rolls_back, snapshots=snapshots or 0, n_batch=16)
    shared = scheduler([model], bytewise=bytewise)
    request, told = ask(shared, 40, 3)
    decode, calls = model.decode, []

    def interrupted(runs: Sequence[object]) -> object:
        found = decode(runs)
        calls.append(runs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(model, "decode", interrupted)
    assert finish(shared, request) == 1
    assert all(isinstance(each, Step) for each in told)


@pytest.mark.parametrize("gate", [0.3, 0.05])
def test_who_is_seldom_asked_finds_out_in_time_that_its_context_is_full(gate) -> None:
    for first in (40, 44, 48):
        models = [FakeModel(WORDS_A, endless=True), FakeModel(WORDS_B, endless=True, n_ctx=120)]
        shared = scheduler(models, bytewise=True, gate=gate)
        request, told = ask(shared, first, 400, members=2)
        decode = models[1].decode
        models[1].decode = partial(_within, models[1], decode)  # type: ignore[method-assign]
        for _ in range(500):
            if request.done:
                break
            shared.step()
        assert isinstance(told[-1], Step)
        assert told[-1].finish_reason == "length"


def _within(model: FakeModel, decode, runs):
    assert all(run.start + len(run.tokens) <= model.n_ctx for run in runs)
    return decode(runs)
