"""One ensemble in several threads: everyone gets what they would get alone."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import ENDLESS, PROMPTS, Endless, alone, open_shared, submit
from waiting import PATIENCE_S, step_gate, until

from eva_local.api import Ensemble
from eva_local.errors import ClosedError, ContextError, InputError, ModelError
from eva_local.types import Sampling

LONG = Sampling(max_tokens=ENDLESS)


def fault_of(ensemble: Ensemble, error: Exception | None) -> None:
    model = ensemble._models[1]
    assert isinstance(model, Endless)
    model.fault = error


def waiting_threads(ensemble: Ensemble) -> int:
    """Return how many threads wait for the end of the step that is under way."""
    return len(ensemble.scheduler._changed._waiters)


@settings(max_examples=15)
@given(
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=2, max_size=8), parallel=st.integers(1, 4)
)
def test_threads_get_the_texts_that_they_would_get_alone(prompts, parallel) -> None:
    sampling = Sampling(max_tokens=9)
    with open_shared(parallel) as ensemble, ThreadPoolExecutor(len(prompts)) as threads:
        found = list(threads.map(lambda p: ensemble.complete(p, sampling).text, prompts))
        assert found == [alone(prompt, sampling) for prompt in prompts]
        assert ensemble.scheduler.n_running == ensemble.scheduler.n_waiting == 0


def test_every_way_of_asking_shares_the_batch() -> None:
    sampling = Sampling(max_tokens=12)
    with open_shared(4) as ensemble, ThreadPoolExecutor(8) as threads:
        expected = {prompt: alone(prompt, sampling) for prompt in PROMPTS}
        score = ensemble.score("the", " Paris")
        tasks: list[Future[bool]] = []
        for _ in range(3):
            tasks += [
                threads.submit(lambda: ensemble.score("the", " Paris") == score),
                threads.submit(
                    lambda: (
                        [each.text for each in ensemble.complete_many(PROMPTS[:4], sampling)]
                        == [expected[prompt] for prompt in PROMPTS[:4]]
                    )
                ),
                threads.submit(
                    lambda: (
                        "".join(step.text for step in ensemble.stream("the", sampling))
                        == expected["the"]
                    )
                ),
            ]
        assert all(task.result(PATIENCE_S) for task in tasks)


def test_a_consumer_that_stops_iterating_stops_nobody() -> None:
    with open_shared(2) as ensemble, ThreadPoolExecutor(2) as threads:
        paused = ensemble.stream("the", Sampling(max_tokens=30))
        first = next(paused)
        sampling = Sampling(max_tokens=50)
        found = threads.submit(lambda: ensemble.complete(" a", sampling).text)
        assert found.result(PATIENCE_S) == alone(" a", sampling)
        # Its answer was written on with the others', and nothing of it is lost.
        text = first.text + "".join(step.text for step in paused)
        assert text == alone("the", Sampling(max_tokens=30))


def test_nobody_starves_beside_a_thread_that_always_steps() -> None:
    with open_shared(2) as ensemble, ThreadPoolExecutor(1) as threads:
        busy = threads.submit(lambda: ensemble.complete("the", LONG))
        until(lambda: ensemble.scheduler.n_running == 1)
        for _ in range(5):
            assert len(list(ensemble.stream(" a", Sampling(max_tokens=10)))) == 10
        assert not busy.done()
        ensemble.close()
        with pytest.raises(ClosedError):
            busy.result(PATIENCE_S)


def test_nobody_starves_in_the_queue() -> None:
    with open_shared(1) as ensemble, ThreadPoolExecutor(6) as threads:
        sampling = Sampling(max_tokens=5)
        tasks = [
            threads.submit(lambda: [ensemble.complete(p, sampling).text for p in PROMPTS])
            for _ in range(6)
        ]
        expected = [alone(prompt, sampling) for prompt in PROMPTS]
        assert [task.result(PATIENCE_S) for task in tasks] == [expected] * 6


def test_closing_an_iterator_frees_its_place_within_a_step() -> None:
    with open_shared(1) as ensemble:
        endless = ensemble.stream("the", LONG)
        next(endless)
        late = submit(ensemble, " a", Sampling(max_tokens=1), lambda _: None)
        endless.close()
        assert ensemble.scheduler.n_running == 0
        ensemble.scheduler.step()
        assert late.done


def test_a_failed_step_reaches_all_who_wait_for_it_and_the_next_may_succeed() -> None:
    with open_shared(3) as ensemble, ThreadPoolExecutor(3) as threads:
        gate = step_gate(ensemble)
        tasks = [threads.submit(ensemble.complete, prompt, LONG) for prompt in PROMPTS[:3]]
        until(lambda: ensemble.scheduler.n_running == 3)
        with gate.closed():
            # One of them is at the step, and the others wait for its end.
            until(lambda: gate.is_held and waiting_threads(ensemble) == 2)
            fault_of(ensemble, ModelError("no room left"))
        errors = [task.exception(PATIENCE_S) for task in tasks]
        assert [type(error) for error in errors] == [ModelError] * 3
        assert {str(error) for error in errors} == {"no room left"}
        # Each thread has one of its own, with the way that it took there.
        assert len({id(error) for error in errors}) == 3
        fault_of(ensemble, None)
        until(lambda: ensemble.scheduler.n_running == 0)
        few = Sampling(max_tokens=5)
        assert ensemble.complete("the", few).text == alone("the", few)


def test_a_fault_of_ours_leaves_nobody_waiting() -> None:
    with open_shared(2) as ensemble, ThreadPoolExecutor(2) as threads:
        tasks = [threads.submit(ensemble.complete, prompt, LONG) for prompt in PROMPTS[:2]]
        until(lambda: ensemble.scheduler.n_running == 2)
        fault_of(ensemble, ZeroDivisionError("a slip"))
        errors = [task.exception(PATIENCE_S) for task in tasks]
        assert {type(error) for error in errors} <= {ZeroDivisionError, ModelError}
        assert all("a slip" in str(error) for error in errors)
        fault_of(ensemble, None)


def test_closing_tells_all_who_wait_and_refuses_all_who_come() -> None:
    with open_shared(2) as ensemble, ThreadPoolExecutor(6) as threads:
        paused = ensemble.stream("the", LONG)
        next(paused)
        with step_gate(ensemble).closed():
            tasks = [threads.submit(ensemble.complete, prompt, LONG) for prompt in PROMPTS[:5]]
            tasks.append(threads.submit(ensemble.score, "the", " Paris" * 500))
            until(lambda: ensemble.scheduler.n_running + ensemble.scheduler.n_waiting == 7)
        ensemble.close()
        errors = [task.exception(PATIENCE_S) for task in tasks]
        assert [type(error) for error in errors] == [ClosedError] * 6
        assert all("is closed" in str(error) for error in errors)
        with pytest.raises(ClosedError):
            list(paused)
        for use in (
            lambda: ensemble.complete("the"),
            lambda: ensemble.complete_many(["the"]),
            lambda: ensemble.score("the", " a"),
            lambda: ensemble.tokenize("the"),
            lambda: ensemble.prompt_tokens("the"),
            ensemble.scheduler.step,
        ):
            with pytest.raises(ClosedError):
                use()
        ensemble.close()


def test_a_thread_whose_prompt_does_not_fit_disturbs_nobody() -> None:
    with open_shared(2, n_ctx=40) as ensemble, ThreadPoolExecutor(3) as threads:
        few = Sampling(max_tokens=8)
        fine = [threads.submit(ensemble.complete, prompt, few) for prompt in ("the", " a")]
        with pytest.raises(ContextError):
            ensemble.complete("z" * 80)
        with pytest.raises(InputError):
            ensemble.complete([])
        with pytest.raises(InputError):
            ensemble.complete_many(["the", []])
        assert [task.result(PATIENCE_S).text for task in fine] == [
            alone("the", few),
            alone(" a", few),
        ]
        assert ensemble.scheduler.n_running == ensemble.scheduler.n_waiting == 0


def test_threads_that_come_and_go_leak_no_running() -> None:
    with open_shared(3) as ensemble:
        wrong: list[str] = []

        def use(number: int) -> None:
            for turn in range(15):
                prompt = PROMPTS[(number + turn) % len(PROMPTS)]
                answer = ensemble.stream(prompt, Sampling(max_tokens=6))
                if turn % 3 == 0:
                    next(answer)
                    answer.close()
                elif "".join(step.text for step in answer) != expected[prompt]:
                    wrong.append(prompt)

        expected = {prompt: alone(prompt, Sampling(max_tokens=6)) for prompt in PROMPTS}
        threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not wrong
        assert ensemble.scheduler.n_running == ensemble.scheduler.n_waiting == 0
        ensemble.scheduler.step()
        assert not ensemble.scheduler._running
