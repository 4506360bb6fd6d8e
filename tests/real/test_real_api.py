"""One ensemble of the demo models in threads and an event loop at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import eventually

from eva_local.api import Ensemble
from eva_local.config.config import shipped
from eva_local.opening import load
from eva_local.types import Message, Sampling, Step

pytestmark = pytest.mark.real

# Where the two likeliest symbols are nearer than this, rounding may choose the other one.
NEAR = 0.05
SAMPLING = Sampling(max_tokens=12)
CAPITAL = "The capital of France is"
# Qwen's rounding differs with the size of a batch, by up to a sixth of a probability: what is
# asked here has one answer.
PROMPTS = (
    [Message("user", "Tom has 7 apples and finds 2 more. How many apples does he have?")],
    [Message("user", "What is the capital of France? Answer in one sentence.")],
    [Message("user", "Tom has 10 red pens and buys 3 more. How many red pens does he have?")],
    "one two three four five six seven eight",
    [Message("system", "Answer in one word."), Message("user", "What is 2 plus 3?")],
    [Message("user", "Tom has 13 old coins and buys 4 more. How many old coins does he have?")],
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Ensemble]:
    with load("demo", config=shipped("models.toml"), parallel=4, n_ctx=512) as ensemble:
        yield ensemble


def gap(alone: list[Step], beside: list[Step]) -> float | None:
    """Return how near the two likeliest symbols were where answers part, None where they do not."""
    for one, other in zip(alone, beside, strict=False):
        if one.piece != other.piece:
            first, second = (math.log(top.probability) for top in one.top)
            return first - second
    assert len(alone) == len(beside)
    return None


def test_threads_and_an_event_loop_get_the_texts_that_they_would_get_alone(shared) -> None:
    alone = [list(shared.stream(prompt, SAMPLING, n_top=2)) for prompt in PROMPTS]
    found: dict[tuple[str, int], list[Step]] = {}

    def thread(name: str, order: list[int]) -> None:
        for place in order:
            found[name, place] = list(shared.stream(PROMPTS[place], SAMPLING, n_top=2))

    async def answer(place: int) -> None:
        steps = shared.astream(PROMPTS[place], SAMPLING, n_top=2)
        found["loop", place] = [step async for step in steps]

    async def app() -> None:
        await asyncio.gather(*map(answer, range(len(PROMPTS))))

    places = list(range(len(PROMPTS)))
    threads = [
        threading.Thread(target=thread, args=("one", places)),
        threading.Thread(target=thread, args=("two", places[::-1])),
        threading.Thread(target=asyncio.run, args=(app(),)),
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3 * len(PROMPTS)
    gaps = [
        parted
        for (_, place), steps in found.items()
        if (parted := gap(alone[place], steps)) is not None
    ]
    print(f"{len(found) - len(gaps)} of {len(found)} texts are the same; others part at {gaps}")
    assert all(parted < NEAR for parted in gaps)
    assert len(gaps) <= 2
    assert shared.scheduler.n_running == shared.scheduler.n_waiting == 0


def test_the_event_loop_is_not_blocked_and_cancelling_frees_the_place(shared, monkeypatch) -> None:
    at_work: set[threading.Thread] = set()

    def seen(method: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any, **options: Any) -> Any:
            at_work.add(threading.current_thread())
            return method(*arguments, **options)

        return work

    monkeypatch.setattr(shared._readers, "read", seen(shared._readers.read))
    for model in shared._models:
        monkeypatch.setattr(model, "decode", seen(model.decode))

    async def app() -> None:
        story = "Once upon a time there was a lighthouse. " * 30
        task = asyncio.create_task(shared.acomplete(story, Sampling(max_tokens=400)))
        # One thread reads the prompt, and one takes the steps.
        await eventually(lambda: shared.scheduler.n_running == 1 and len(at_work) >= 2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert shared.scheduler.n_running == shared.scheduler.n_waiting == 0
        text = (await shared.acomplete(CAPITAL, Sampling(max_tokens=2))).text
        assert text == " Paris."

    asyncio.run(app())
    assert threading.current_thread() not in at_work


def test_a_score_is_told_under_the_ensemble_and_under_each_member(shared) -> None:
    right, wrong = (shared.score(CAPITAL, text, symbols=True) for text in (" Paris", " Madrid"))
    assert right.log_likelihood > wrong.log_likelihood
    for ours, theirs in zip(right.members, wrong.members, strict=True):
        assert ours > theirs
    assert asyncio.run(shared.ascore(CAPITAL, " Paris")).log_likelihood == pytest.approx(
        right.log_likelihood, abs=NEAR
    )
    # The pivot's own tokens are the symbols.
    pivot = shared.score(CAPITAL, " Paris", alone=shared.members[0])
    assert pivot.log_likelihood == pytest.approx(right.members[0], abs=NEAR)


def test_symbols_are_read_as_plain_text(shared) -> None:
    symbols = shared.tokenize("<|im_end|> The capital of France is")
    assert shared.detokenize(symbols) == b"<|im_end|> The capital of France is"
    vocabulary = shared._models[0].vocabulary
    assert vocabulary.speakable[symbols].all()
    assert len(symbols) > 7
    as_text = shared.score("<|im_end|> The capital of France is", " Paris")
    assert shared.score(symbols, " Paris").members == pytest.approx(as_text.members, abs=NEAR)
