"""Many answers and many scores at once, through an ensemble, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from eva_local.api import Ensemble, completion_of
from eva_local.engine.request import Request
from eva_local.errors import EvaError
from eva_local.fusion.fuser import Observer
from eva_local.llama.prompt import Prompt
from eva_local.types import Completion, Sampling, Score, Step


def complete_each(
    ensemble: Ensemble, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[tuple[int, Completion]]:
    """Complete prompts side by side; yield the number of each with its completion, as they end."""
    steps: list[list[Step]] = [[] for _ in prompts]
    requests = (Request(prompt, sampling) for prompt in prompts)
    with closing(ensemble.run_many(requests)) as all_told:
        for number, told in all_told:
            if isinstance(told, EvaError):
                raise told
            assert isinstance(told, Step)
            steps[number].append(told)
            if told.finish_reason is not None:
                yield number, completion_of(steps[number])
                steps[number] = []


def score_each(
    ensemble: Ensemble,
    rows: Sequence[Sequence[tuple[Prompt, str]]],
    observer_of: Callable[[int], Observer | None] = lambda _row: None,
) -> Iterator[tuple[int, list[Score]]]:
    """Score the texts of each row, each after its prompt; yield rows as they end.

    Rows go side by side, the texts of one row after each other, so that a prompt that they have
    in common is read once. `observer_of` is asked once for each text, with the number of its row.
    """
    scores: list[list[Score]] = [[] for _ in rows]
    others = iter(range(len(rows)))
    # Rows that can go on, and the row of each request.
    ready: deque[int] = deque()
    asked: list[int] = []

    done: set[int] = set()

    def requests() -> Iterator[Request | None]:
        while len(done) < len(rows):
            row = ready.popleft() if ready else next(others, None)
            if row is None:
                yield None
            else:
                asked.append(row)
                prompt, text = rows[row][len(scores[row])]
                yield Request(prompt, continuation=text, observe=observer_of(row))

    with closing(ensemble.run_many(requests())) as all_told:
        for number, told in all_told:
            if isinstance(told, EvaError):
                raise told
            assert isinstance(told, Score)
            row = asked[number]
            scores[row].append(told)
            if len(scores[row]) < len(rows[row]):
                ready.append(row)
            else:
                done.add(row)
                yield row, scores[row]
