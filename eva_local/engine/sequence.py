"""One answer in progress: vote, filter, fuse, choose, commit, until a step is whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eva_local.config.specs import FusionSettings
from eva_local.engine.detokenizer import TextStream
from eva_local.engine.sampling import Chooser, PieceSampler, Samplers
from eva_local.errors import EvaError, passed_on
from eva_local.fusion.fuser import Decision, Fuser
from eva_local.fusion.votes import Marks, Vote
from eva_local.llama.model import Run
from eva_local.spaces.base import MemberState, Slate, Space
from eva_local.types import Ballot, Candidate, FinishReason, Sampling, Step, Trace, Usage

# Candidates of each vote that a trace shows.
_TRACED = 8
# A step of several symbols ends after this many bytes at the latest.
_LONGEST_STEP = 64
# Pieces to choose among where the symbols are bytes.
_PUT_FORWARD = 64


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Members who write a text, the space they vote in, and the rule that fuses their votes.

    `members` are their places among the engine's models.
    """

    members: tuple[int, ...]
    names: tuple[str, ...]
    space: Space[Any]
    fusion: FusionSettings
    samplers: Samplers


class TextSequence:
    """One answer in progress, in one sequence of every member of its panel."""

    def __init__(
        self,
        panel: Panel,
        states: Sequence[MemberState],
        sampling: Sampling,
        sampler: Chooser | PieceSampler,
        judge: Fuser,
        prompts: Sequence[int],
        *,
        judged: bool = False,
        traced: bool = False,
        n_top: int = 0,
    ) -> None:
        """Begin an answer by `states` that have started; `prompts` are their prompt lengths.

        Where the prompts are `judged`, the judge is told what they say of the members.
        """
        self.panel = panel
        self.states = states
        self._places = {member: place for place, member in enumerate(panel.members)}
        self.sampling = sampling
        self.sampler = sampler
        self.judge = judge
        self.traced = traced
        self.n_top = n_top
        self.text = TextStream(sampling.stop)
        self._span = _Span(len(states))
        # The lead alone decides the next step.
        self.sure = False
        self._tells = judged
        self.finished = False
        # What ended the answer before its time.
        self.error: EvaError | None = None
        self.steps = 0
        self.steps_alone = 0
        self.prompt_tokens = tuple(prompts)
        self.cached_tokens: list[int | None] = [None] * len(states)
        self.read_tokens = 0
        self.filtered = np.zeros(len(states), dtype=np.int64)
        self.decode_seconds = np.zeros(len(states))
        self.prompt_seconds = np.zeros(len(states))
        self.last_seconds = np.zeros(len(states))
        self.started = time.perf_counter()
        self.first_seconds = 0.0

    @property
    def ready(self) -> bool:
        """Whether all who are asked can vote."""
        return self.sure or all(state.ready for state in self.states)

    @property
    def share_read(self) -> float:
        """The share of the prompts that all members together have read, from 0 to 1."""
        known = sum(count or 0 for count in self.cached_tokens) + self.read_tokens
        return min(known / sum(self.prompt_tokens), 1.0)

    @property
    def _allowed(self) -> Marks | None:
        """Which symbols may come next, where a grammar says so."""
        grammar = self.sampler.grammar
        return None if grammar is None else grammar.allowed

    def place_of(self, member: int) -> int | None:
        """Return the place in the panel of one of the engine's models, if it is there."""
        return self._places.get(member)

    def fail(self, error: Exception) -> None:
        """End the answer with an error, the first of several."""
        self.error = self.error or passed_on(error)
        self.finished = True

    def count(self, member: int, run: Run, seconds: float) -> None:
        """Record that a run of a member, by its place, was decoded in `seconds`."""
        if self.cached_tokens[member] is None:
            self.cached_tokens[member] = run.start
        self.read_tokens += len(run.tokens)
        self.decode_seconds[member] += seconds
        self.last_seconds[member] += seconds

    def ask_lead(self) -> bool:
        """Let the lead alone decide the next step if it is as sure as the gate; return if it is.

        Each member must have read its prompt first, so that all have something to go on from.
        """
        space, gate = self.panel.space, self.panel.fusion.gate
        if gate == 1 or not self.states[space.lead].ready or self.steps == 0:
            return False
        # Who has not read for a while must find out in time that its context is full.
        if any(state.room - state.unread <= _LONGEST_STEP for state in self.states):
            return False
        if isinstance(self.sampler, PieceSampler):
            vote = self._slate(alone=True).votes[space.lead]
        else:
            vote = space.lead_vote(self.states)
        assert vote is not None
        if self._allowed is not None:
            vote = vote.within(self._allowed)
        self.sure = bool(len(vote)) and vote.top(1)[0][1] >= gate
        return self.sure

    def advance(self) -> Step | None:
        """Choose and commit symbols until a step is whole, or a member must decode first."""
        space, sampler = self.panel.space, self.sampler
        if self._tells:
            self.judge.begin([state.evidence() for state in self.states])
            self._tells = False
        if isinstance(sampler, PieceSampler):
            return self._advance_piece(sampler)
        while self.ready:
            decision = self.judge.decide(self._votes(), self._allowed)
            self._note(decision)
            chosen = sampler.choose(decision.fused)
            self._extend(decision, chosen)
            step = self._completed(ended=chosen == space.end)
            if step is not None:
                return step
        return None

    def _advance_piece(self, sampler: PieceSampler) -> Step | None:
        """Choose among pieces that the member puts forward that counts most."""
        space = self.panel.space
        slate = self._slate(alone=self.sure)
        votes = slate.votes
        self.steps_alone += self.sure
        decision = self.judge.decide(votes)
        self._note(decision)
        chosen = sampler.choose_piece(decision.fused, slate.pieces)

        def shown(vote: Vote | None, count: int) -> tuple[Candidate, ...]:
            top = [] if vote is None else vote.top(count)
            return tuple(Candidate(slate.pieces[place], share) for place, share in top)

        span = self._span
        span.first, span.piece = decision, slate.pieces[chosen]
        span.probability = decision.fused.probability(chosen)
        span.chosen *= [0.0 if v is None else v.probability(chosen) for v in votes]
        if self.traced or self.n_top:
            span.fused_top = shown(decision.fused, max(_TRACED, self.n_top))
            span.tops = [shown(vote, _TRACED) for vote in votes]
        self.judge.learn(decision, chosen, len(span.piece))
        self.sure = False
        assert space.slates is not None
        space.slates.write(self.states, slate, chosen)
        return self._completed(ended=not span.piece)

    def _slate(self, *, alone: bool) -> Slate:
        """Return pieces to choose among, by all members or by the lead alone."""
        space = self.panel.space
        assert space.slates is not None
        only = space.lead if alone else None
        return space.slates.slate(self.states, self.judge.weights, _PUT_FORWARD, only)

    def _votes(self) -> list[Vote | None]:
        space = self.panel.space
        lead = space.lead_vote(self.states)
        if not self.sure:
            return [*space.votes(self.states, lead)]
        self.steps_alone += 1
        return [lead if place == space.lead else None for place in range(len(self.states))]

    def _note(self, decision: Decision) -> None:
        """Count who was filtered; the first decision ends the time of the prompt."""
        if self.steps == 0 and self._span.first is None:
            self.first_seconds = time.perf_counter() - self.started
            self.prompt_seconds = self.decode_seconds.copy()
        self.filtered += [
            vote is not None and not stays
            for vote, stays in zip(decision.votes, decision.stayed, strict=True)
        ]

    def _extend(self, decision: Decision, chosen: int) -> None:
        """Add a chosen symbol to the step, and commit it to every member."""
        space, span = self.panel.space, self._span
        piece = space.piece(chosen)
        if span.first is None:
            span.first = decision
            self._note_tops(decision)
        span.piece += piece
        span.probability *= decision.fused.probability(chosen)
        span.chosen *= [0.0 if v is None else v.probability(chosen) for v in decision.votes]
        self.judge.learn(decision, chosen, len(piece))
        self.sure = False
        if chosen != space.end:
            for state in self.states:
                state.commit(chosen)

    def _note_tops(self, decision: Decision) -> None:
        span = self._span
        count = max(self.n_top, _TRACED if self.traced else 0)
        if count:
            span.fused_top = tuple(
                Candidate(self.panel.space.piece(symbol), share)
                for symbol, share in decision.fused.top(count)
            )
        if self.traced:
            span.tops = [
                ()
                if vote is None
                else tuple(
                    Candidate(piece, share) for piece, share in state.candidates(vote, _TRACED)
                )
                for state, vote in zip(self.states, decision.votes, strict=True)
            ]

    def _completed(self, *, ended: bool) -> Step | None:
        """Return the step, if what was chosen last completes it; `ended` says it was END."""
        span = self._span
        assert span.first is not None
        stops = ended or self.sampler.complete
        full = not ended and any(state.room < state.unread for state in self.states)
        whole = (
            isinstance(self.sampler, PieceSampler)
            or self.panel.space.at_border(self.states, np.asarray(span.first.weights))
            or len(span.piece) >= _LONGEST_STEP
        )
        if not (stops or full or whole or self.text.would_stop(span.piece)):
            return None
        if not ended or span.piece:
            self.steps += 1
        text = self.text.push(span.piece)
        reason: FinishReason | None = None
        if stops or self.text.stopped:
            reason = "stop"
        elif full or self.steps >= self.sampling.max_tokens:
            reason = "length"
        if reason is not None:
            text += self.text.finish()
            self.finished = True
        step = Step(
            piece=span.piece,
            text=text,
            probability=span.probability,
            stayed=span.first.stayed,
            finish_reason=reason,
            usage=None if reason is None else self._usage(),
            trace=self._trace(span.first) if self.traced else None,
            top=span.fused_top[: self.n_top],
        )
        self._next_span()
        return step

    def _next_span(self) -> None:
        """Begin the next step."""
        self._span = _Span(len(self.states))
        self.last_seconds = np.zeros(len(self.states))

    def _trace(self, decision: Decision) -> Trace:
        span = self._span
        ballots = (
            Ballot(
                member=name,
                top=span.tops[member],
                chosen=float(span.chosen[member]),
                stayed=decision.stayed[member],
                reason=decision.reasons[member],
                weight=decision.weights[member],
                seconds=float(self.last_seconds[member]),
            )
            for member, name in enumerate(self.panel.names)
        )
        return Trace(span.fused_top[:_TRACED], tuple(ballots))

    def _usage(self) -> Usage:
        return Usage(
            members=self.panel.names,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=tuple(count or 0 for count in self.cached_tokens),
            filtered=tuple(self.filtered.tolist()),
            decode_seconds=tuple(self.decode_seconds.tolist()),
            prompt_seconds=tuple(self.prompt_seconds.tolist()),
            steps=self.steps,
            steps_alone=self.steps_alone,
            seconds=time.perf_counter() - self.started,
            first_seconds=self.first_seconds,
        )


class _Span:
    """The symbols of a step, as far as they were chosen."""

    def __init__(self, n_members: int) -> None:
        self.piece = b""
        self.probability = 1.0
        # How likely each member thought all of the symbols.
        self.chosen = np.ones(n_members)
        # The decision about the first symbol, and what was thought likeliest then.
        self.first: Decision | None = None
        self.fused_top: tuple[Candidate, ...] = ()
        self.tops: list[tuple[Candidate, ...]] = []
