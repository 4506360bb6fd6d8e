"""An answer that all members write together, each behind a thought that it wrote by itself."""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from eva_local.engine.request import Ticket
from eva_local.engine.sampling import Sampler
from eva_local.engine.sequence import Follower, TextSequence, cut
from eva_local.errors import ContextError, EvaError
from eva_local.fusion.votes import Decision
from eva_local.llama.model import Logits, Run
from eva_local.spaces.base import Beginning, Candidates, MemberState
from eva_local.types import Score, Step

log = logging.getLogger("eva_local")

# Tokens that a thought leaves for the answer at least, where it may be as long.
_LEFT = 256


class ThoughtSequence(TextSequence):
    """What one member thinks, in its own tokens: the text ends with the thought."""

    def __init__(self, ticket: Ticket, states: Sequence[MemberState]) -> None:
        super().__init__(ticket, states, Sampler(ticket.sampling))
        self._nats, self._n_bytes = 0.0, 0

    @property
    def text(self) -> bytes:
        """What was thought so far, without the mark that ends it."""
        return cut(bytes(self._thought or b""), self._ends)

    @property
    def per_byte(self) -> float:
        """How likely the member thought what it wrote, in nats per byte."""
        return self._nats / max(self._n_bytes, 1)

    def _commit(self, candidates: Candidates, decision: Decision, chosen: int) -> None:
        super()._commit(candidates, decision, chosen)
        self._nats += math.log(max(decision.fused.probability(chosen), 1e-9))
        self._n_bytes += len(candidates.piece(chosen))

    def _answer(self, _thought: bytes) -> bool:
        return False


class ApartSequence(TextSequence):
    """An answer behind thoughts that members write side by side, each for itself.

    Each step of a thought names its member. They are told one member after the other, each under
    its name, though all are written at once. When all have ended, each in its own marks or cut
    off by its budget, the answer is fused as any other; it has `max_tokens` of its own. Whose
    thought failed has no part in it.
    """

    def __init__(
        self,
        ticket: Ticket,
        states: Sequence[MemberState],
        sampler: Sampler,
        thinkers: Sequence[MemberState],
        contexts: Sequence[int],
        followers: Mapping[int, Follower],
    ) -> None:
        """Let members think first, in the states `thinkers`; `contexts` are how much each holds."""
        super().__init__(replace(ticket, thoughts=()), states, sampler, followers)
        self._closings = ticket.thoughts
        self._answering = states
        self._contexts = contexts
        self._thinkers: Sequence[ThoughtSequence] = [
            _thinker(ticket, index, state, n_ctx)
            for index, (state, n_ctx) in enumerate(zip(thinkers, contexts, strict=True))
        ]
        self._failed: dict[int, EvaError] = {}
        # What is not told yet of each thought, and whose turn it is.
        self._untold: list[list[Step | Score]] = [[] for _ in thinkers]
        self._turn = 0
        # The headings that are not told yet.
        self._heads = dict(enumerate(self.panel.names if len(thinkers) > 1 else ()))
        # Whoever is at work: in the same sequences of llama.cpp, but not in the same space.
        self.states = thinkers

    @property
    def ready(self) -> bool:
        if not self._thinkers:
            return super().ready
        return any(self._thinkers[index].ready for index in self._at_work())

    @property
    def wants_draft(self) -> bool:
        # Who has no part in the text has nothing to foresee it with.
        return not (self._thinkers or self._failed) and super().wants_draft

    def fail(self, error: Exception, index: int | None = None) -> None:
        if self._thinkers and index is not None:
            self._thinkers[index].fail(error)
        else:
            super().fail(error)

    def pending(self, index: int, limit: int) -> list[Run]:
        if self._thinkers and self._thinkers[index].finished:
            return []
        if index in self._followers and self._followers[index].leader in self._failed:
            self.states[index].start(self._followers.pop(index).begun)
        return super().pending(index, limit)

    def count(self, index: int, run: Run, seconds: float) -> None:
        super().count(index, run, seconds)
        if self._thinkers:
            self._thinkers[index].count(0, run, seconds)

    def take(self, index: int, run: Run, logits: Logits | None) -> None:
        if self._thinkers:
            self._thinkers[index].take(0, run, logits)
        else:
            super().take(index, run, logits)

    def ask_pivot(self) -> None:
        if not self._thinkers and self.panel.space.pivot not in self._failed:
            super().ask_pivot()

    def step(self) -> list[Step | Score]:
        if not self._thinkers:
            return super().step()
        for index in self._at_work():
            self._untold[index] += self._thinkers[index].step()
        for index, thinker in enumerate(self._thinkers):
            if thinker.error is not None and index not in self._failed:
                self._failed[index] = thinker.error
                thinker.give_up()
        told: list[Step | Score] = []
        while self._turn < len(self._thinkers):
            told += [self._thought_of(self._turn, step) for step in self._untold[self._turn]]
            self._untold[self._turn] = []
            if not self._thinkers[self._turn].finished:
                break
            self._turn += 1
        if told:
            self._note_first()
        with self.own_end():
            self.steps = self._reasoning_steps = sum(each.steps for each in self._thinkers)
            if not self.finished and all(each.finished for each in self._thinkers):
                self._end_thoughts()
        if self.error is not None:
            self.give_up()
        return told

    def _at_work(self) -> list[int]:
        return [
            index
            for index, thinker in enumerate(self._thinkers)
            if index not in self._followers and not thinker.finished
        ]

    def _thought_of(self, index: int, step: Step | Score) -> Step:
        assert isinstance(step, Step)
        names = self.panel.names
        text, first = step.reasoning or "", len(self._heads) == len(names)
        if name := self._heads.pop(index, ""):
            text = ("" if first else "\n\n") + f"{name}:\n{text}"
        stayed = tuple(number == index for number in range(len(names)))
        return replace(
            step, reasoning=text, stayed=stayed, finish_reason=None, usage=None, member=names[index]
        )

    def _end_thoughts(self) -> None:
        """Let each member end its own thought, and all who could go on with one answer."""
        self._begin()
        if self.panel.fusion.weights == "thought":
            self.fuser.begin([thinker.per_byte for thinker in self._thinkers])
        rows: dict[int, Sequence[int]] = {}
        for index, (thinker, end) in enumerate(zip(self._thinkers, self._closings, strict=True)):
            if index in self._failed:
                continue
            text = thinker.text
            row = [*thinker.states[0].tokens(text), *end.behind(text)]
            if len(row) < self._contexts[index]:
                rows[index] = row
            else:
                self._failed[index] = ContextError(
                    "its thought leaves no room for an answer; lower thinking_budget"
                )
        for index in self._failed:
            self.fuser.leave_out(index)
        if not rows or self.fuser.weights.max() <= 0:
            raise next(iter(self._failed.values()))
        for index, error in self._failed.items():
            log.warning("an answer goes on without %s: %s", self.panel.names[index], error)
        self.states, self._thinkers = list(self._answering), ()
        self._last_seconds[:] = 0
        for index, state in enumerate(self._answering):
            if index in rows:
                state.start(Beginning(rows[index], grammar=self._sampler.grammar))
            else:
                self.states[index] = cast(MemberState, _Absent())

    @property
    def _is_spent(self) -> bool:
        return self.steps - self._reasoning_steps >= self._ticket.sampling.max_tokens


class _Absent:
    """The state of a member without a part in a text: it reads nothing and does not vote."""

    room, unread, ready = sys.maxsize, 0, True

    def vote(self, *_: object) -> None:
        """Say nothing."""

    vote_on = commit = clear = look = vote


def _thinker(ticket: Ticket, index: int, state: MemberState, n_ctx: int) -> ThoughtSequence:
    """Return the thought of a member of a ticket, by its index in the panel.

    It is drawn as the answer is, with random numbers of its own; no grammar binds it.
    """
    how, prompt = ticket.sampling, ticket.prompts[index]
    most = how.max_tokens if how.thinking_budget < 0 else how.thinking_budget
    given = how.thinking_temperature
    own = replace(
        how,
        max_tokens=max(1, min(most, n_ctx - len(prompt) - _LEFT)),
        temperature=how.temperature if given is None else given,
        thinking_budget=-1,
        grammar=None,
        json_schema=None,
        # Far from those of other answers to the same prompt.
        seed=None if how.seed is None else how.seed + (index << 32),
    )
    thought = Ticket(ticket.alone[index], [prompt], own, thoughts=[ticket.thoughts[index]])
    # Decisions are those on the answer.
    thought.asked = replace(ticket.asked, observe=None)
    return ThoughtSequence(thought, [state])
