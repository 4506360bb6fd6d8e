"""Answers that event loops await: what threads get, without blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shared import ENDLESS, PROMPTS, Endless, alone, open_shared
from waiting import PATIENCE_S, Gate, eventually, step_gate

from eva_local.api import Ensemble
from eva_local.errors import ClosedError, ContextError, InputError, ModelError
from eva_local.types import Sampling

LONG = Sampling(max_tokens=ENDLESS)
FEW = Sampling(max_tokens=9)


def run(app: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(app, PATIENCE_S))


def is_idle(ensemble: Ensemble) -> bool:
    return ensemble.scheduler.n_running == ensemble.scheduler.n_waiting == 0


def drivers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "eva-local"]


def test_awaited_answers_are_those_that_a_thread_gets() -> None:
    async def app() -> None:
        texts = await asyncio.gather(*(ensemble.acomplete(prompt, FEW) for prompt in PROMPTS))
        assert [each.text for each in texts] == expected
        steps = [step async for step in ensemble.astream("the", FEW, trace=True, n_top=3)]
        assert "".join(step.text for step in steps) == expected[0]
        assert all(step.trace and len(step.top) == 3 for step in steps)
        assert [step.finish_reason for step in steps] == [None] * 8 + ["length"]
        assert await ensemble.ascore("the", " Paris", symbols=True) == score
        one = await ensemble.acomplete("the", FEW, alone="b")
        assert one.usage.members == ("b",)

    expected = [alone(prompt, FEW) for prompt in PROMPTS]
    with open_shared(3) as ensemble:
        score = ensemble.score("the", " Paris", symbols=True)
        run(app())
        assert is_idle(ensemble)
    assert not drivers()


def test_threads_and_an_event_loop_share_one_ensemble() -> None:
    async def app() -> list[str]:
        found = []
        for _ in range(3):
            found += await asyncio.gather(*(ensemble.acomplete(each, FEW) for each in PROMPTS))
        return [each.text for each in found]

    expected = [alone(prompt, FEW) for prompt in PROMPTS]
    with open_shared(4) as ensemble, ThreadPoolExecutor(3) as threads:
        loops = [threads.submit(asyncio.run, app()) for _ in range(2)]
        plain = threads.submit(
            lambda: [ensemble.complete(prompt, FEW).text for prompt in PROMPTS * 3]
        )
        for task in (*loops, plain):
            assert task.result(PATIENCE_S) == expected * 3
        assert is_idle(ensemble)


def test_the_loop_goes_on_while_a_step_takes_its_time() -> None:
    async def app() -> None:
        with gate.closed():
            answer = asyncio.create_task(ensemble.acomplete("the", FEW))
            # Who would step in the loop's own thread would never come to open the gate.
            await eventually(lambda: gate.is_held)
        assert (await answer).text == alone("the", FEW)

    with open_shared(2) as ensemble:
        gate = step_gate(ensemble)
        run(app())


def test_the_loop_goes_on_while_a_prompt_is_tokenised() -> None:
    async def app() -> None:
        with gate.closed():
            answer = asyncio.create_task(ensemble.acomplete("the", FEW))
            await eventually(lambda: gate.is_held)
        assert (await answer).text == alone("the", FEW)

    with open_shared(2) as ensemble:
        gate = reading_gate(ensemble)
        run(app())


def reading_gate(ensemble: Ensemble) -> Gate:
    """Return a gate that every prompt passes when it is tokenised."""
    gate, tokenizer = Gate(), ensemble._models[0].tokenizer
    raw = tokenizer._raw

    def passing(text: bytes) -> list[int]:
        gate.pass_through()
        return raw(text)

    tokenizer._raw = passing
    return gate


def test_closing_the_iterator_frees_the_place_within_one_step() -> None:
    async def app() -> None:
        steps = ensemble.astream("the", LONG)
        async with contextlib.aclosing(steps):
            async for _ in steps:
                break
        assert is_idle(ensemble)
        late = await ensemble.acomplete(" a", FEW)
        assert late.text == alone(" a", FEW)

    with open_shared(1) as ensemble:
        run(app())


def test_cancelled_tasks_leave_within_a_step_and_nobody_else_notices() -> None:
    async def app() -> None:
        scheduler, gate = ensemble.scheduler, step_gate(ensemble)
        sampling = Sampling(max_tokens=60)
        with gate.closed():
            stay = asyncio.create_task(ensemble.acomplete("the", sampling))
            await eventually(lambda: gate.is_held)
            leave = [asyncio.create_task(ensemble.acomplete(prompt, LONG)) for prompt in PROMPTS]
            await eventually(lambda: scheduler.n_waiting == 8)
            # At the next step three are at work.
            gate.let(1)
            await eventually(lambda: scheduler.n_running == 3 and gate.is_held)
            for task in leave:
                task.cancel()
            found = await asyncio.gather(*leave, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in found)
            assert scheduler.n_waiting == 0
            assert scheduler.n_running == 1
        assert (await stay).text == alone("the", sampling)

    with open_shared(3) as ensemble:
        run(app())


@pytest.mark.parametrize("turns", range(4))
def test_a_task_that_is_cancelled_before_its_prompt_is_read_asks_for_nothing(turns) -> None:
    async def app() -> None:
        with gate.closed():
            task = asyncio.create_task(ensemble.acomplete("the", LONG))
            if turns == 3:
                await eventually(lambda: gate.is_held)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert (await ensemble.acomplete("the", FEW)).text == alone("the", FEW)
        assert is_idle(ensemble)
        assert ensemble._models[1].decoded == n_decoded

    with open_shared(2, drafter="off") as other:
        other.complete("the", FEW)
        n_decoded = other._models[1].decoded
    with open_shared(2, drafter="off") as ensemble:
        gate = reading_gate(ensemble)
        run(app())


def test_time_limits_work() -> None:
    async def app() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ensemble.acomplete("the", LONG)
        assert is_idle(ensemble)

    with open_shared(1) as ensemble:
        run(app())


def test_errors_reach_those_whom_they_concern() -> None:
    async def app() -> None:
        fine = asyncio.create_task(ensemble.acomplete("the", FEW))
        with pytest.raises(ContextError):
            await ensemble.acomplete("z" * 80)
        with pytest.raises(InputError, match="no member"):
            await ensemble.acomplete("the", alone="c")
        with pytest.raises(InputError, match="at least one message"):
            await ensemble.acomplete([])
        with pytest.raises(InputError, match="3 prompts need as many samplings"):
            ensemble.complete_many(["the", " a", "un"], [])
        with pytest.raises(InputError, match="no text"):
            await ensemble.ascore("the", "")
        assert (await fine).text == alone("the", FEW)
        await eventually(lambda: is_idle(ensemble))

    with open_shared(2, n_ctx=40) as ensemble:
        run(app())


@pytest.mark.parametrize("fault", [ModelError("no room left"), ZeroDivisionError("a slip")])
def test_a_failed_step_reaches_all_and_the_next_may_succeed(fault) -> None:
    async def app() -> None:
        tasks = [asyncio.create_task(ensemble.acomplete(prompt, LONG)) for prompt in PROMPTS[:3]]
        await eventually(lambda: ensemble.scheduler.n_running == 2)
        model.fault = fault
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [ModelError] * 3
        assert all(str(fault) in str(error) for error in errors)
        model.fault = None
        assert is_idle(ensemble)
        assert (await ensemble.acomplete("the", FEW)).text == alone("the", FEW)

    with open_shared(2) as ensemble:
        model = ensemble._models[1]
        assert isinstance(model, Endless)
        run(app())


def test_an_error_in_the_step_of_a_thread_reaches_the_loop_too() -> None:
    async def app() -> None:
        thread = asyncio.create_task(asyncio.to_thread(ensemble.complete, "the", LONG))
        task = asyncio.create_task(ensemble.acomplete(" a", LONG))
        await eventually(lambda: ensemble.scheduler.n_running == 2)
        model.fault = ModelError("no room left")
        errors = await asyncio.gather(thread, task, return_exceptions=True)
        assert [str(error) for error in errors] == ["no room left"] * 2
        model.fault = None

    with open_shared(2) as ensemble:
        model = ensemble._models[1]
        assert isinstance(model, Endless)
        run(app())


def test_closing_tells_all_who_await() -> None:
    async def app() -> None:
        tasks = [asyncio.create_task(ensemble.acomplete(prompt, LONG)) for prompt in PROMPTS[:4]]
        tasks.append(asyncio.create_task(asyncio.to_thread(ensemble.complete, "the", LONG)))
        scheduler = ensemble.scheduler
        await eventually(lambda: scheduler.n_running + scheduler.n_waiting == 5)
        await asyncio.to_thread(ensemble.close)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [ClosedError] * 5
        with pytest.raises(ClosedError):
            await ensemble.acomplete("the")
        with pytest.raises(ClosedError):
            await ensemble.ascore("the", " a")

    ensemble = open_shared(2)
    run(app())
    assert not drivers()


def test_a_loop_that_ends_in_mid_answer_frees_its_place() -> None:
    loop = asyncio.new_event_loop()
    with open_shared(1) as ensemble:
        steps = ensemble.astream("the", LONG)
        loop.run_until_complete(anext(steps))
        # Closed as by a program that does not clean up.
        loop.close()
        assert ensemble.complete(" a", FEW).text == alone(" a", FEW)
        assert is_idle(ensemble)
        # What is left of the iterator ends without a loop.
        with pytest.raises(StopIteration):
            steps.aclose().send(None)


def test_the_thread_begins_with_the_first_answer_and_ends_after_the_last() -> None:
    async def app() -> None:
        async with contextlib.aclosing(ensemble.astream("the", LONG)) as steps:
            await anext(steps)
            assert len(drivers()) == 1
            # One thread is enough for all.
            await ensemble.acomplete(" a", FEW)
            assert len(drivers()) == 1
        await eventually(lambda: not drivers())

    with open_shared(2) as ensemble:
        ensemble.complete("the", FEW)
        assert not drivers()
        run(app())
        run(app())
        # Whose answer nobody awaits is not written by the thread either.
        steppers: set[str] = set()
        step = ensemble.scheduler.step

        def seen(*arguments, **options) -> None:
            steppers.add(threading.current_thread().name)
            step(*arguments, **options)

        ensemble.scheduler.step = seen
        paused = ensemble.stream("the", LONG)
        for _ in range(50):
            next(paused)
        assert steppers == {threading.current_thread().name}
        paused.close()
    assert not drivers()


def test_a_program_that_forgets_to_close_ends() -> None:
    program = """
        import asyncio
        from shared import open_shared
        from eva_local.types import Sampling

        async def app():
            async for step in ensemble.astream("the", Sampling(max_tokens=1_000_000)):
                print("one step")
                break

        ensemble = open_shared(1)
        answers = ensemble.astream("the", Sampling(max_tokens=1_000_000))
        asyncio.run(app())
        loop = asyncio.new_event_loop()
        loop.run_until_complete(anext(answers))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout == "one step\n"
    assert "Fatal" not in done.stderr


def test_a_thread_that_cannot_start_is_told_and_tried_again(monkeypatch) -> None:
    start, refused = threading.Thread.start, []

    def no_more(thread: threading.Thread) -> None:
        if thread.name == "eva-local" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)

    async def ask(ensemble) -> str:
        with pytest.raises(ModelError, match="not enough memory"):
            await ensemble.acomplete("the", max_tokens=2)
        return (await asyncio.wait_for(ensemble.acomplete("the", max_tokens=2), 60)).text

    with open_shared() as ensemble:
        assert asyncio.run(ask(ensemble)) == ensemble.complete("the", max_tokens=2).text
    assert refused
