"""The requests of many rows at once, through an ensemble, as they come."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from eva_local.api import Ensemble, completion_of
from eva_local.engine.request import Request
from eva_local.errors import EvaError
from eva_local.types import Completion, Score, Step


def answer_each(
    ensemble: Ensemble, rows: Sequence[Sequence[Request]]
) -> Iterator[tuple[int, list[Completion | Score]]]:
    """Answer the requests of each row; yield rows as they end, by their numbers.

    Rows go side by side, the requests of one row after each other, so that a prompt that they
    have in common is read once.
    """
    found: list[list[Completion | Score]] = [[] for _ in rows]
    others = iter(range(len(rows)))
    # Rows that can go on, the row of each request, and how many rows are not done.
    ready: deque[int] = deque()
    asked: list[int] = []
    left = len(rows)

    def requests() -> Iterator[Request | None]:
        while left:
            row = ready.popleft() if ready else next(others, None)
            if row is None:
                yield None
            else:
                asked.append(row)
                yield rows[row][len(found[row])]

    steps: defaultdict[int, list[Step]] = defaultdict(list)
    with closing(ensemble.run_many(requests())) as all_told:
        for number, told in all_told:
            if isinstance(told, EvaError):
                raise told
            if isinstance(told, Step):
                steps[number].append(told)
                if told.finish_reason is None:
                    continue
            row = asked[number]
            found[row].append(completion_of(steps.pop(number)) if isinstance(told, Step) else told)
            if len(found[row]) < len(rows[row]):
                ready.append(row)
            else:
                left -= 1
                yield row, found[row]
