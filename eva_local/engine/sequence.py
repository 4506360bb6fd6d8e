"""One text in progress, written or given: what was chosen, who voted for it, and what it cost."""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eva_local.engine.conversation import CallStream
from eva_local.engine.detokenizer import TextStream
from eva_local.engine.grammar import calls_of
from eva_local.engine.lookahead import LookAhead
from eva_local.engine.request import Ticket
from eva_local.engine.sampling import Sampler
from eva_local.errors import ContextError, EvaError, passed_on
from eva_local.fusion.votes import Decision, Fuser, Vote
from eva_local.llama.model import LOGIT_ROWS, Logits, Run
from eva_local.spaces.base import Beginning, Candidates, MemberState
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Ballot, Candidate, FinishReason, Score, ScoredSymbol, Step, Trace, Usage

log = logging.getLogger("eva_local")

# Candidates of each vote that a trace shows.
_TRACED = 8
# A piece has no more bytes.
_LONGEST_PIECE = 64


@dataclass(frozen=True, slots=True)
class Follower:
    """A member that begins when `leader`, another one of its model, has read `n_tokens`."""

    leader: int
    n_tokens: int
    begun: Beginning


class TextSequence:
    """A text in progress, in one slot of every member of its panel.

    Nobody else writes what is here. A fault of its own ends it, and no other text.
    """

    def __init__(
        self,
        ticket: Ticket,
        states: Sequence[MemberState],
        sampler: Sampler,
        followers: Mapping[int, Follower] | None = None,
    ) -> None:
        """Begin after prompts that `states`, those of the panel's members, have started.

        The `followers`, by their index, are still to do so.
        """
        self.panel = ticket.panel
        self.states = states
        self.fuser = Fuser(ticket.panel.fusion, len(states))
        self.steps = self._reasoning_steps = 0
        self.finished = False
        # What ended the answer before its time.
        self.error: EvaError | None = None
        self._ticket = ticket
        self._followers = dict(followers or {})
        self._sampler = sampler
        self._text = TextStream(ticket.sampling.stop)
        # The bytes of the thought that is under way, and the answer's grammar meanwhile.
        self._thought: bytearray | None = None
        self._grammar = sampler.grammar
        ends = ticket.sampling.stop if any(each.is_text for each in ticket.thoughts) else ()
        self._ends = [*(each.end for each in ticket.thoughts if each.end), *ends]
        if ticket.thoughts:
            self._thought = bytearray()
            self._text = TextStream(self._ends)
            sampler.grammar = None
        calls = calls_of(ticket.sampling)
        self._calls = None if calls is None else CallStream(calls)
        #: Candidates on which the pivot alone is asked: it is sure.
        self.sure: Candidates | None = None
        #: What is drafted of the text, where drafts are of use.
        self.ahead: LookAhead | None = None
        #: Whether members decode what is sure to come in one run.
        self.foretold = False
        self._prompt_tokens = tuple(map(len, ticket.prompts))
        self._cached_tokens: list[int | None] = [None] * len(states)
        self._steps_alone = self._read_tokens = 0
        self._filtered, self._passes, self._decoded = np.zeros((3, len(states)), dtype=np.int64)
        self._decode_seconds, self._prompt_seconds, self._last_seconds = np.zeros((3, len(states)))
        self._started = time.perf_counter()
        self._first_seconds = 0.0

    @property
    def ready(self) -> bool:
        """Whether all who are asked can vote."""
        if self._followers:
            return False
        return self.sure is not None or all(state.ready for state in self.states)

    @property
    def wants_draft(self) -> bool:
        """Whether members must decode, and what may come next could go along with it."""
        return self.ahead is not None and self.steps > 0 and not (self.finished or self.ready)

    @property
    def share_read(self) -> float:
        """The share of the prompts that all members together have read, from 0 to 1."""
        known = sum(count or 0 for count in self._cached_tokens) + self._read_tokens
        return min(known / sum(self._prompt_tokens), 1.0)

    def fail(self, error: Exception, _index: int | None = None) -> None:
        """End with an error, the first of several, maybe of one member's part of the text."""
        self.error = self.error or passed_on(error)
        self.finished = True

    @contextlib.contextmanager
    def own_end(self, index: int | None = None) -> Iterator[None]:
        """Let what goes wrong, maybe in one member's part, end this text and no other."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, EvaError):
                log.exception("an answer failed")
            self.fail(error, index)

    def pending(self, index: int, limit: int) -> list[Run]:
        """Return what a member, by its index in the panel, must decode before it can vote."""
        state = self.states[index]
        if self.finished:
            return []
        if (follower := self._followers.get(index)) is not None:
            leader = self.states[follower.leader]
            if leader.cache.n_cached < follower.n_tokens:
                return []
            state.cache.adopt(leader.cache)
            state.start(follower.begun)
            del self._followers[index]
        return [] if state.ready else state.pending(limit)

    def foretell(self, most: int) -> None:
        """Let members decode, where they must, at most so many tokens that are sure to come."""

    def count(self, index: int, run: Run, seconds: float) -> None:
        """Record that a run of a member was decoded in `seconds`."""
        if self._cached_tokens[index] is None:
            self._cached_tokens[index] = run.start
        self._read_tokens += len(run.tokens)
        if self._first_seconds:
            self._passes[index] += 1
            self._decoded[index] += len(run.tokens)
        self._decode_seconds[index] += seconds
        self._last_seconds[index] += seconds

    def take(self, index: int, run: Run, logits: Logits | None) -> None:
        """Hand a member what was decoded for it."""
        with self.own_end():
            if not self.finished:
                self.states[index].take(run, logits)

    def ask_pivot(self) -> None:
        """Let the pivot alone decide the next step if it is as sure as the gate.

        Each member must have read its prompt first, so that all have something to go on from.
        """
        space, gate = self.panel.space, self.panel.fusion.gate
        begun = self.steps > self._reasoning_steps or self._thought
        if self.finished or gate == 1 or not begun or not self.states[space.pivot].ready:
            return
        # Who has not read for a while must find out in time that its context is full.
        is_full = any(state.room - state.unread <= _LONGEST_PIECE for state in self.states)
        # And what others are held against is not what is wanted.
        if is_full or self.fuser.weights[space.pivot] < 0:
            return
        candidates = self._candidates(space.pivot)
        vote = candidates.votes[space.pivot]
        assert vote is not None
        if candidates.allowed is not None:
            vote = vote.within(candidates.allowed)
        if len(vote) and vote.top(1)[0][1] >= gate:
            self.sure = candidates

    def step(self) -> list[Step | Score]:
        """Go a step further if all who are asked can vote; return what is to be told."""
        told: list[Step | Score] = []
        with self.own_end():
            if not self.finished and self.ready:
                step = self._advance()
                told = [] if step is None else [step]
        if self.error is not None:
            self.give_up()
        return told

    def give_up(self) -> None:
        """Let nobody go on with what the caches hold of a text that failed: it is unknown."""
        with self.own_end():
            for state in self.states:
                state.clear()

    def _advance(self) -> Step | Score | None:
        """Vote, fuse, choose among pieces, commit the piece to every member, emit it."""
        candidates = self._vote()
        decision = self._fuse(candidates)
        chosen = self._sampler.choose(decision.fused, candidates)
        self._commit(candidates, decision, chosen)
        return self._emit(candidates, decision, chosen)

    def _vote(self) -> Candidates:
        if not self._first_seconds:
            self._begin()
        candidates, self.sure = self.sure, None
        self._steps_alone += candidates is not None
        return candidates or self._candidates()

    def _begin(self) -> None:
        self._note_first()
        if self._ticket.scored_bytes:
            self.fuser.begin([state.cache.likelihood.per_byte() for state in self.states])

    def _note_first(self) -> None:
        if not self._first_seconds:
            self._first_seconds = time.perf_counter() - self._started
            self._prompt_seconds = self._decode_seconds.copy()

    def _candidates(self, only: int | None = None) -> Candidates:
        grammar = self._sampler.grammar
        return self.panel.space.candidates(self.states, self.fuser.weights, grammar, only)

    def _fuse(self, candidates: Candidates) -> Decision:
        decision = self.fuser.decide(candidates.votes, candidates.allowed)
        self._filtered += [
            vote is not None and not stays
            for vote, stays in zip(decision.votes, decision.stayed, strict=True)
        ]
        return decision

    def _commit(self, candidates: Candidates, decision: Decision, chosen: int) -> None:
        """Let all learn what was chosen, and go on from there."""
        n_bytes = len(candidates.piece(chosen))
        self.fuser.learn(decision, chosen, n_bytes)
        if (observe := self._ticket.asked.observe) is not None:
            observe(decision, chosen, n_bytes)
        if chosen != candidates.end:
            self.panel.space.commit(self.states, candidates, chosen)
        if self.ahead is not None:
            self.ahead.chosen(candidates.piece(chosen))

    @property
    def _is_full(self) -> bool:
        return any(state.room < state.unread for state in self.states)

    @property
    def _is_spent(self) -> bool:
        return self.steps >= self._ticket.sampling.max_tokens

    def _emit(self, candidates: Candidates, decision: Decision, chosen: int) -> Step:
        """Return the step, the last one if it ends the text."""
        ticket, piece = self._ticket, candidates.piece(chosen)
        ended = chosen == candidates.end
        self.steps += not ended
        shown = self._text.push(piece)
        is_over = ended or self._sampler.complete or self._text.stopped
        thought = self._thought
        if thought is not None:
            thought += piece
            self._reasoning_steps = self.steps
            is_over |= self.steps == ticket.sampling.thinking_budget
        reason: FinishReason | None = "stop" if is_over and thought is None else None
        if reason is None and (self._is_full or self._is_spent):
            reason = "length"
        if is_over or reason is not None:
            shown += self._text.finish()
        if thought is not None and is_over and reason is None and not self._answer(bytes(thought)):
            reason = "length"
        self.finished = reason is not None
        calls: tuple[Mapping[str, Any], ...] = ()
        if self._calls is not None and thought is None:
            shown, calls = self._calls.push(shown, reason)
            reason = "tool_calls" if calls and reason == "stop" else reason
        asked = ticket.asked
        n_top = max(asked.n_top, _TRACED if asked.trace else 0)
        top = likeliest(decision.fused, n_top, candidates)
        step = Step(
            piece=piece,
            text=shown if thought is None else "",
            probability=decision.fused.probability(chosen),
            stayed=decision.stayed,
            finish_reason=reason,
            usage=None if reason is None else self._usage(),
            trace=self._trace(candidates, decision, chosen, top) if asked.trace else None,
            top=top[: asked.n_top],
            reasoning=None if thought is None else shown,
            disagreement=decision.disagreement,
            dissenters=decision.dissenters(chosen, self.panel.names),
            tool_calls=calls,
        )
        self._last_seconds = np.zeros(len(self.states))
        return step

    def _answer(self, thought: bytes) -> bool:
        """Let each member end the thought in its own marks, and answer; False without room."""
        thoughts = self._ticket.thoughts
        thought = cut(thought, self._ends)
        pairs = list(zip(self.states, [each.behind(thought) for each in thoughts], strict=True))
        if any(state.room - state.unread <= len(tokens) for state, tokens in pairs):
            return False
        for state, tokens in pairs:
            state.start(Beginning([*state.tokens(thought), *tokens], grammar=self._grammar))
        self._thought, self._sampler.grammar = None, self._grammar
        self._text = TextStream(self._ticket.sampling.stop)
        return True

    def _trace(
        self, candidates: Candidates, decision: Decision, chosen: int, top: tuple[Candidate, ...]
    ) -> Trace:
        ballots = (
            Ballot(
                member=name,
                top=likeliest(vote, _TRACED, candidates),
                chosen=0.0 if vote is None else vote.probability(chosen),
                stayed=decision.stayed[index],
                reason=decision.reasons[index],
                weight=decision.weights[index],
                seconds=float(self._last_seconds[index]),
            )
            for index, (name, vote) in enumerate(zip(self.panel.names, decision.votes, strict=True))
        )
        return Trace(top[:_TRACED], tuple(ballots))

    def _usage(self) -> Usage:
        return Usage(
            members=self.panel.names,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=tuple(count or 0 for count in self._cached_tokens),
            filtered=tuple(self._filtered.tolist()),
            decode_seconds=tuple(self._decode_seconds.tolist()),
            prompt_seconds=tuple(self._prompt_seconds.tolist()),
            steps=self.steps,
            steps_alone=self._steps_alone,
            reasoning_steps=self._reasoning_steps,
            passes=tuple(self._passes.tolist()),
            decoded=tuple(self._decoded.tolist()),
            drafted=self.ahead.drafted if self.ahead else 0,
            accepted=self.ahead.accepted if self.ahead else 0,
            seconds=time.perf_counter() - self._started,
            first_seconds=self._first_seconds,
        )


class ScoredSequence(TextSequence):
    """A text that is given: its symbols are committed one by one, by `Vote.likelihood`."""

    def __init__(
        self,
        ticket: Ticket,
        states: Sequence[MemberState],
        followers: Mapping[int, Follower] | None = None,
    ) -> None:
        super().__init__(ticket, states, Sampler(ticket.sampling), followers)
        self._symbols = tuple(ticket.symbols or ())
        # In bytes a member also needs rows that end elsewhere; a gate asks for one step at a time.
        space, fusion = self.panel.space, self.panel.fusion
        self.foretold = isinstance(space, PivotSpace) and fusion.gate == 1
        # After how many symbols each member was told what comes.
        self._told_at = [0] * len(states)
        self._log_likelihood = 0.0
        self._unseen = 0
        # None for a member that was not asked each time.
        self._members: list[float | None] = [0.0] * len(states)
        self._told: list[ScoredSymbol] = []

    def foretell(self, most: int) -> None:
        """Let members decode what comes in one run, each at most so many tokens."""
        # A member may need other tokens in between: it is told more only as far as that held.
        upcoming = self._symbols[self.steps : -1][: 2 * LOGIT_ROWS]
        data = b"".join(map(self.panel.space.piece, upcoming)) if self.foretold else b""
        for index, state in enumerate(self.states):
            if data and not state.ready:
                went, self._told_at[index] = self.steps - self._told_at[index], self.steps
                state.propose(data, min(most, 2 * went + 1))

    def _advance(self) -> Score | None:
        while self.ready:
            candidates = self._vote()
            decision = self._fuse(candidates)
            symbol = self._symbols[self.steps]
            self.steps += 1
            self._add(candidates, decision, symbol)
            self._commit(candidates, decision, symbol)
            if self.steps == len(self._symbols):
                self.finished = True
                return self._score()
            if self._is_full:
                raise ContextError(
                    f"the text to be scored does not fit: {self.steps} of {len(self._symbols)} "
                    "symbols did; shorten it or raise n_ctx"
                )
        return None

    def _candidates(self, only: int | None = None) -> Candidates:
        return self.panel.space.symbols(self.states, only)

    def _add(self, candidates: Candidates, decision: Decision, symbol: int) -> None:
        fused, n_symbols = decision.fused, self.panel.space.end + 1
        likelihood = fused.likelihood(symbol, n_symbols)
        self._log_likelihood += likelihood
        self._unseen += not fused.probability(symbol)
        self._members = [
            None if vote is None or known is None else known + vote.likelihood(symbol, n_symbols)
            for known, vote in zip(self._members, decision.votes, strict=True)
        ]
        asked = self._ticket.asked
        if asked.symbols or asked.n_top > 0:
            top = likeliest(fused, asked.n_top, candidates)
            self._told.append(ScoredSymbol(candidates.piece(symbol), likelihood, top))

    def _score(self) -> Score:
        piece = self.panel.space.piece
        return Score(
            log_likelihood=self._log_likelihood,
            n_bytes=sum(len(piece(symbol)) for symbol in self._symbols),
            n_symbols=len(self._symbols),
            filtered=tuple(self._filtered.tolist()),
            unseen=self._unseen,
            members=tuple(self._members),
            symbols=tuple(self._told),
        )


def cut(text: bytes, ends: Iterable[str]) -> bytes:
    """Return a text up to the first of its `ends`."""
    found = [text.find(end.encode("utf-8", "surrogatepass")) for end in ends]
    return text[: min((at for at in found if at >= 0), default=None)]


def likeliest(vote: Vote | None, count: int, candidates: Candidates) -> tuple[Candidate, ...]:
    """Return the `count` likeliest candidates of a vote, as they are told."""
    top = [] if vote is None or not count else vote.top(count)
    return tuple(Candidate(candidates.piece(each), share) for each, share in top)
