"""The step loop over many texts: decode for all of them, then advance each."""

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain, product
from typing import Any

from eva_local.cache.context import common
from eva_local.config.specs import FusionSettings
from eva_local.engine.apart import ApartSequence
from eva_local.engine.grammar import Grammar
from eva_local.engine.lookahead import DRAFTERS, MOST, DecodeTimes, LookAhead
from eva_local.engine.request import Panel, Ticket
from eva_local.engine.sampling import Samplers
from eva_local.engine.sequence import Follower, ScoredSequence, TextSequence
from eva_local.errors import ContextError, ModelError
from eva_local.llama.backend import cores
from eva_local.llama.model import LOGIT_ROWS, Logits, Model, Run, decode_all, decode_every
from eva_local.spaces.base import Beginning, MemberState, Space
from eva_local.types import Score, Step

log = logging.getLogger("eva_local")

# Tokens of prompts that are read beside answers: as fast as more of them, and short steps.
CHUNK = 128
# A shorter beginning of a prompt is decoded again rather than copied: llama.cpp copies whole
# sequences, which costs about as much as decoding this share of a context.
_WORTH_COPYING = 1 / 256
_LEAST_COPIED = 16
# Larger batches, of prompts, say nothing of how long drafts will take.
_PACED = 8 * (1 + MOST)
# Threads that take in logits: what needs the GIL lets no more of them be of use.
_MOST_TAKERS = 4

# A run of a text's member, by its index in the panel; and with the logits after it.
Work = tuple[TextSequence, int, Run]
Decoded = tuple[TextSequence, int, Run, Logits | None]


class Engine:
    """Members, a shared space and the rule by which their votes become one choice."""

    def __init__(
        self,
        names: Sequence[str],
        models: Sequence[Model],
        space: Space[Any],
        fusion: FusionSettings,
        *,
        side_by_side: Collection[Model] = (),
        chunk: int | None = CHUNK,
    ) -> None:
        """Fuse `models` in `space`; those `side_by_side` decode each in a thread of its own.

        Beside answers that are being written, at most `chunk` tokens of prompts are read in a
        step, so that no answer has to wait long; None fills the batches, which reads faster.
        Threads pay where members run on devices of their own, or elsewhere. On one CPU each member
        uses all cores, one after the other.
        """
        self.names = tuple(names)
        self._models = tuple(models)
        self._most_of_one = max(map(self._models.count, self._models))
        self.chunk = chunk
        #: Bytes that some member has no token for.
        self.missing_bytes = frozenset[int]().union(*(m.tokenizer.missing_bytes for m in models))
        samplers = Samplers(space, self.missing_bytes)
        self._all = Panel(tuple(range(len(models))), self.names, space, fusion, samplers)
        self._alone: dict[int, Panel] = {}
        self._beside = set(side_by_side)
        self._n_takers = min(cores(), _MOST_TAKERS)
        self._pool = ThreadPoolExecutor(max(len(models), self._n_takers))
        self._states: dict[int, Sequence[MemberState]] = {}
        self._times = DecodeTimes()
        #: Who drafts the answers that begin from now on; see `FusionSettings`.
        self.drafter = fusion.drafter

    def panel(self, alone: int | None = None) -> Panel:
        """Return all members, or one who writes alone, by its number."""
        if alone is None:
            return self._all
        if alone not in self._alone:
            space = self._all.space.alone(alone)
            # What one model says is not weighed, and nobody else need be asked.
            fusion = replace(self._all.fusion, weights="equal", filter="off", gate=1.0)
            samplers = Samplers(space, self._models[alone].tokenizer.missing_bytes)
            panel = Panel((alone,), (self.names[alone],), space, fusion, samplers)
            # Of several threads that ask for it, all get the same.
            self._alone.setdefault(alone, panel)
        return self._alone[alone]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def begin(self, ticket: Ticket, slot: int = 0) -> TextSequence:
        """Begin what a ticket asks for, in sequence `slot` of each of its members.

        What the members' caches hold of its prompts, in this slot or in another, is not decoded
        again. Raises ContextError, with the numbers, where a prompt leaves no room for an answer,
        and InputError where a bias, grammar or schema cannot be used.
        """
        panel = ticket.panel
        self.refuse_too_long("prompt", {m: len(p) for m, p in ticket.prompt_of.items()})
        held = self._states_of(slot)
        states = [held[member] for member in panel.members]
        grammar = None
        if ticket.symbols is None:
            sampler = (ticket.sampler or panel.samplers.prepare(ticket.sampling))()
            # It binds the answer, and not the thought before it.
            grammar = None if ticket.thoughts else sampler.grammar
        try:
            for member, prompt in ticket.prompt_of.items():
                self._copy_beginning(member, held[member], prompt)
            if panel.space is not self._all.space:
                states = panel.space.over(states)
            readers = states
            if ticket.alone:
                pairs = zip(ticket.alone, states, strict=True)
                readers = [own.space.over([state])[0] for own, state in pairs]
            followers = self._start(ticket, readers, grammar)
        except BaseException:
            # Cut off in the middle, they do not know what their caches hold.
            for state in states:
                state.clear()
            raise
        if ticket.symbols is not None:
            return ScoredSequence(ticket, states, followers)
        models = [self._models[member] for member in panel.members]
        sequence: TextSequence
        if ticket.alone:
            contexts = [model.n_ctx for model in models]
            sequence = ApartSequence(ticket, states, sampler, readers, contexts, followers)
        else:
            sequence = TextSequence(ticket, states, sampler, followers)
        if (drafter := self.drafter_for(panel)) is not None:
            sequence.ahead = LookAhead(drafter, models, self._times, ticket.said)
        return sequence

    def refuse_too_long(self, what: str, lengths: Mapping[int, int], at_least: str = "") -> None:
        """Raise ContextError where a member has no room behind so many tokens of a text."""
        contexts = {member: self._models[member].n_ctx for member in lengths}
        if any(lengths[member] >= n_ctx for member, n_ctx in contexts.items()):
            needs = ", ".join(
                f"{self.names[member]} needs {at_least}{lengths[member] + 1} tokens of {n_ctx}"
                for member, n_ctx in contexts.items()
            )
            raise ContextError(f"the {what} does not fit: {needs}; shorten it or raise n_ctx")

    def drafter_for(self, panel: Panel) -> str | int | None:
        """Return who drafts for a panel, its own members by their index; None for nobody."""
        drafter = self.drafter
        if panel.fusion.gate < 1:
            return None
        if drafter in panel.names:
            return panel.names.index(drafter)
        if drafter == "auto" and len({self._models[member] for member in panel.members}) == 1:
            return None  # One model writes as llama.cpp alone does, near-ties and all.
        return drafter if drafter in DRAFTERS else None

    def _start(
        self, ticket: Ticket, readers: Sequence[MemberState], grammar: Grammar | None
    ) -> dict[int, Follower]:
        """Begin the texts of the members of a ticket; return who is still to begin."""
        led = self._led(ticket, readers)
        followers: dict[int, Follower] = {}
        ends = [thought.end_id for thought in ticket.thoughts] or [None] * len(readers)
        rows = zip(ticket.panel.members, readers, ticket.prompts, ends, strict=True)
        for index, (member, state, prompt, end) in enumerate(rows):
            copied = [n_tokens for leader, n_tokens in led.values() if leader == index]
            shared = max([ticket.shared.get(member, 0), *copied])
            begun = Beginning(prompt, ticket.scored_bytes, grammar, end, shared)
            if index in led:
                followers[index] = Follower(*led[index], begun)
            else:
                state.start(begun)
        return followers

    def _led(self, ticket: Ticket, states: Sequence[MemberState]) -> dict[int, tuple[int, int]]:
        """Return who waits for which other member of its model to have read how many tokens."""
        members, prompts = ticket.panel.members, ticket.prompts
        led: dict[int, tuple[int, int]] = {}
        for index, member in enumerate(members):
            model, prompt = self._models[member], prompts[index]
            found = [
                (min(common(prompts[other], prompt), len(prompt) - 1), -other)
                for other in range(index)
                if other not in led and self._models[members[other]] is model
            ]
            n_tokens, leader = max(found, default=(0, 0))
            if n_tokens - states[index].cache.holds(prompt) >= self.worth_copying(member):
                led[index] = -leader, n_tokens
        return led

    def lost(self, prompts: Mapping[int, Sequence[int]], slot: int) -> int:
        """Return how many tokens a slot holds of other texts, which these prompts would end."""
        states = self._states_of(slot)
        return sum(
            states[member].cache.n_cached - states[member].cache.holds(prompt)
            for member, prompt in prompts.items()
        )

    def held(self, prompts: Mapping[int, Sequence[int]], slots: Iterable[int]) -> dict[int, int]:
        """Return how much of each member's prompt the best of `slots` holds, in tokens."""
        states = [self._states_of(slot) for slot in slots]
        return {
            member: max((each[member].cache.holds(prompt) for each in states), default=0)
            for member, prompt in prompts.items()
        }

    def move(self, slot: int, free: int) -> None:
        """Let the text of a slot go on in another one, whose own text is over."""
        for state, other in zip(self._states_of(slot), self._states_of(free), strict=True):
            state.cache.trade(other.cache)
        self._states[slot], self._states[free] = self._states[free], self._states[slot]

    def needs_snapshots(self, member: int) -> bool:
        """Return whether a beginning of a prompt can be copied only where a snapshot was taken."""
        return not self._models[member].can_roll_back

    def worth_copying(self, member: int) -> float:
        """Return how long a beginning of a prompt must be to be copied rather than decoded."""
        if self.needs_snapshots(member) and not self._models[member].n_snapshots:
            return math.inf
        return max(_LEAST_COPIED, int(self._models[member].n_ctx * _WORTH_COPYING))

    def step(self, sequences: Sequence[TextSequence]) -> list[list[Step | Score]]:
        """Take every text a step further, all of them in one batch per model.

        Long prompts are decoded in parts, a batch at a time; a text that is still at its prompt
        gets nothing. What goes wrong with a text is its own `error` and nobody else's; what its
        members' caches held of it is given up.
        """
        try:
            self._decode(sequences)
        except Exception as error:
            # Nobody knows whose fault it was, so nobody's text is sure to be whole.
            log.exception("a step failed")
            for sequence in sequences:
                sequence.fail(error)
        return [sequence.step() for sequence in sequences]

    def _states_of(self, slot: int) -> Sequence[MemberState]:
        if slot not in self._states:
            self._states[slot] = self._all.space.states(slot)
        return self._states[slot]

    def _copy_beginning(self, member: int, state: MemberState, prompt: Sequence[int]) -> None:
        """Copy the beginning of a prompt from the slot that holds most of it, if that pays."""
        alike = [n for n, model in enumerate(self._models) if model is self._models[member]]
        caches = (states[index].cache for states in self._states.values() for index in alike)
        best = max(caches, key=lambda other: other.holds(prompt))
        if best.holds(prompt) - state.cache.holds(prompt) >= self.worth_copying(member):
            state.cache.adopt(best)

    def _decode(self, sequences: Sequence[TextSequence]) -> None:
        """Let members decode what is pending; where the pivot is sure, the others are not asked."""
        members = list(range(len(self._models)))
        if len(sequences) == 1:
            self._look_ahead(sequences[0])
        most = LOGIT_ROWS // max(self._most_of_one * len(sequences), 1) - 1
        for sequence in sequences:
            sequence.foretell(most)
        if self._all.fusion.gate < 1 and len(members) > 1:
            pivot = self._all.space.pivot
            members.remove(pivot)
            self._decode_members([pivot], sequences)
            for sequence in sequences:
                with sequence.own_end():
                    sequence.ask_pivot()
            sequences = [sequence for sequence in sequences if sequence.sure is None]
        self._decode_members(members, sequences)

    def _look_ahead(self, sequence: TextSequence) -> None:
        """Draft what may come next, where that pays, for members who must decode anyway."""
        ahead = sequence.ahead
        length = ahead.plan() if ahead is not None and sequence.wants_draft else 0
        if ahead is None or not length:
            return
        if (index := ahead.foreseer) is not None:
            member, state = sequence.panel.members[index], sequence.states[index]
            self._decode_members([member], [sequence])
            for run in ahead.foresee(state, length):
                decoded = self._run(self._models[member], [(sequence, index, run)], drafted=True)
                self._take(decoded)
                if sequence.finished or not decoded:
                    return
        # Others may need more tokens than a member for what it foresaw.
        most = length if ahead.foreseer is None else ahead.most
        for state in sequence.states if ahead.draft else ():
            if not state.ready:
                state.propose(ahead.draft, most)

    def _decode_members(self, members: Iterable[int], sequences: Sequence[TextSequence]) -> None:
        decoded: list[Decoded] = []
        by_model: dict[Model, list[int]] = {}
        for member in members:
            by_model.setdefault(self._models[member], []).append(member)

        def decode(model: Model) -> None:
            if work := self._work(model, by_model[model], sequences):
                decoded.extend(self._run(model, work))

        try:
            beside = [model for model in by_model if model in self._beside]
            asked = [self._pool.submit(decode, model) for model in beside]
            try:
                for model in (each for each in by_model if each not in beside):
                    decode(model)
            finally:
                _await(asked)
        finally:
            # Where Ctrl-C ends one, the others need not decode again.
            self._take(decoded)

    def _run(self, model: Model, work: Sequence[Work], *, drafted: bool = False) -> list[Decoded]:
        decoded: list[Decoded] = []
        began = time.perf_counter()
        found = decode_all(model, [run for _, _, run in work])
        seconds, n_tokens = time.perf_counter() - began, sum(len(run.tokens) for _, _, run in work)
        each_token = seconds / n_tokens
        first = work[0][0]
        if first.steps and n_tokens <= _PACED and all(sequence is first for sequence, _, _ in work):
            self._times.note(model, n_tokens, seconds)
        for (sequence, index, run), row in zip(work, found, strict=True):
            sequence.count(index, run, each_token * len(run.tokens))
            if not isinstance(row, ModelError):
                decoded.append((sequence, index, run, row))
            elif sequence.ahead is not None and (drafted or run.logits > 1):
                # What must be decoded may fit, or have numbers for logits, by itself.
                sequence.ahead.give_up()
                sequence.states[index].propose(b"", 0)
            elif run.logits > 1:
                sequence.foretold = False
            else:
                sequence.fail(row, index)
        return decoded

    def _work(
        self, model: Model, members: Sequence[int], sequences: Sequence[TextSequence]
    ) -> list[Work]:
        """Return what fits into a batch; runs that score a prompt are decoded here."""
        work: list[Work] = []
        room = model.n_batch
        writing = any(sequence.steps for sequence in sequences)
        prompt_room = (self.chunk or room) if writing else room
        for sequence, member in product(sequences, members):
            limit = room if sequence.steps else min(room, prompt_room)
            if member not in sequence.panel.members or limit <= 0:
                continue
            index = sequence.panel.members.index(member)
            with sequence.own_end(index):
                for run in sequence.pending(index, limit):
                    prompt_room -= 0 if sequence.steps else len(run.tokens)
                    if run.every:
                        began = time.perf_counter()
                        state, blocks = sequence.states[index], decode_every(model, run)
                        state.take(run, state.cache.likelihood.read(run, blocks))
                        sequence.count(index, run, time.perf_counter() - began)
                    else:
                        work.append((sequence, index, run))
                        room -= len(run.tokens)
        return work

    def _take(self, decoded: Iterable[Decoded]) -> None:
        """Let member states take their logits, each in one of some threads.

        numpy goes through a whole vocabulary there, without the GIL. It does so when nobody
        decodes, for llama.cpp is slowed down by more than that takes where it has all cores.
        """
        by_state: dict[MemberState, list[Decoded]] = {}
        for each in decoded:
            by_state.setdefault(each[0].states[each[1]], []).append(each)
        rows = list(by_state.values())
        mine, *others = [rows[first :: self._n_takers] for first in range(self._n_takers)]
        asked = [self._pool.submit(_hand_over, part) for part in others if part]
        try:
            _hand_over(mine)
        finally:
            _await(asked)


def _hand_over(rows: Iterable[Iterable[Decoded]]) -> None:
    for sequence, index, run, logits in chain.from_iterable(rows):
        sequence.take(index, run, logits)


def _await(asked: Sequence[Future[None]]) -> None:
    try:
        for each in asked:
            each.result()
    finally:
        # Where one fails, the others must be done before anybody is asked again.
        wait(asked)
