"""Many answers and many scores at once, through the scheduler of an ensemble, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from eva_local.api import Ensemble, completion_of
from eva_local.engine.scheduler import Request
from eva_local.engine.scoring import Scoring
from eva_local.errors import EvaError
from eva_local.fusion.fuser import Fuser
from eva_local.llama.prompt import Prompt
from eva_local.types import Completion, Sampling, Score, Step


def complete_each(
    ensemble: Ensemble, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[tuple[int, Completion]]:
    """Complete prompts side by side; yield the place of each with its completion, as they end."""
    told: list[list[Step | EvaError]] = [[] for _ in prompts]
    waiting: dict[int, Request] = {}
    try:
        for place, prompt in enumerate(prompts):
            waiting[place] = ensemble.submit(prompt, sampling, told[place].append)
        while waiting:
            ensemble.scheduler.step()
            for place in [place for place, request in waiting.items() if request.done]:
                del waiting[place]
                yield place, completion_of(told[place])
    finally:
        for request in waiting.values():
            ensemble.scheduler.cancel(request)


def score_each(
    ensemble: Ensemble,
    rows: Sequence[Sequence[tuple[Prompt, str]]],
    judge_of: Callable[[int], Fuser | None] = lambda _place: None,
) -> Iterator[tuple[int, list[Score]]]:
    """Score the texts of each row, each after its prompt; yield rows as they end.

    Rows go side by side, the texts of one row after each other, so that a prompt that they have
    in common is read once.
    `judge_of` is asked once for each text, with the place of its row; see `Ensemble.score`.
    """
    waiting = iter(enumerate(rows))
    lanes: list[_Lane] = []
    try:
        while True:
            while len(lanes) < ensemble.scheduler.n_slots and (row := next(waiting, None)):
                lanes.append(_Lane(ensemble, *row, judge_of))
            if not lanes:
                return
            ensemble.scheduler.step()
            for lane in lanes:
                lane.go_on()
            for lane in [lane for lane in lanes if lane.done]:
                lanes.remove(lane)
                yield lane.place, lane.scores
    finally:
        for lane in lanes:
            lane.cancel()


class _Lane:
    """One row that is being scored, a text at a time."""

    def __init__(
        self,
        ensemble: Ensemble,
        place: int,
        row: Sequence[tuple[Prompt, str]],
        judge_of: Callable[[int], Fuser | None],
    ) -> None:
        self.place = place
        self.scores: list[Score] = []
        self._ensemble = ensemble
        self._row = iter(row)
        self._judge_of = judge_of
        self._now: Scoring | None = None
        self._submit()

    @property
    def done(self) -> bool:
        return self._now is None

    def go_on(self) -> None:
        if self._now is not None and self._now.done:
            self.scores.append(self._now.result())
            self._submit()

    def cancel(self) -> None:
        if self._now is not None:
            self._ensemble.scheduler.cancel(self._now.request)

    def _submit(self) -> None:
        scored = next(self._row, None)
        if scored is None:
            self._now = None
        else:
            self._now = self._ensemble.submit_score(*scored, self._judge_of(self.place))
