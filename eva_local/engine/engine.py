"""The step loop over many texts: decode for all of them, then advance each."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain
from typing import Any

from eva_local.config.specs import FusionSettings
from eva_local.engine.decoding import decode_all
from eva_local.engine.request import Panel, Ticket
from eva_local.engine.sampling import Samplers
from eva_local.engine.scoring import ScoredSequence
from eva_local.engine.sequence import TextSequence
from eva_local.errors import ContextError, ModelError
from eva_local.llama.backend import cores
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.base import MemberState, Space
from eva_local.types import Score, Step

log = logging.getLogger("eva_local")

# Tokens of prompts that are read beside answers: as fast as more of them, and short steps.
CHUNK = 128
# A shorter beginning of a prompt is decoded again rather than copied: llama.cpp copies whole
# sequences, which costs about as much as decoding this share of a context.
_WORTH_COPYING = 1 / 256
_LEAST_COPIED = 16
# Threads that take in logits: what needs the GIL lets no more of them be of use.
_MOST_TAKERS = 4

# A run of a text's member, by its index in the panel, and the logits after it.
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
        side_by_side: bool = False,
        chunk: int | None = CHUNK,
    ) -> None:
        """Fuse `models` in `space`; `side_by_side` decodes each in a thread of its own.

        Beside answers that are being written, at most `chunk` tokens of prompts are read in a
        step, so that no answer has to wait long; None fills the batches, which reads faster.
        Threads pay where members run on devices of their own. On one CPU each member uses
        all cores, one after the other.
        """
        self.names = tuple(names)
        self._models = tuple(models)
        self.chunk = chunk
        #: Bytes that some member has no token for.
        self.missing_bytes = frozenset[int]().union(*(m.tokenizer.missing_bytes for m in models))
        samplers = Samplers(space, self.missing_bytes)
        self._all = Panel(tuple(range(len(models))), self.names, space, fusion, samplers)
        self._alone: dict[int, Panel] = {}
        self._pool = ThreadPoolExecutor(len(models)) if side_by_side else None
        self._n_takers = min(cores(), _MOST_TAKERS)
        self._takers = ThreadPoolExecutor(self._n_takers)
        self._states: dict[int, Sequence[MemberState]] = {}

    @property
    def n_symbols(self) -> int:
        """How many symbols the shared space has, END included."""
        return self._all.space.end + 1

    def panel(self, alone: int | None = None) -> Panel:
        """Return all members, or one who writes alone, by its number."""
        return self._all if alone is None else self._alone_panel(alone)

    def close(self) -> None:
        """End the threads, if there are any."""
        self._takers.shutdown()
        if self._pool is not None:
            self._pool.shutdown()

    def begin(self, ticket: Ticket, slot: int = 0) -> TextSequence:
        """Begin what a ticket asks for, in sequence `slot` of each of its members.

        What the members' caches hold of its prompts, in this slot or in another, is not decoded
        again. Raises ContextError, with the numbers, where a prompt leaves no room for an answer,
        and InputError where a bias, grammar or schema cannot be used.
        """
        panel = ticket.panel
        self._refuse_too_long(panel, ticket.prompts)
        held = self._states_of(slot)
        states = [held[member] for member in panel.members]
        grammar = None
        if ticket.symbols is None:
            sampler = (ticket.sampler or panel.samplers.prepare(ticket.sampling))()
            grammar = sampler.grammar
        try:
            for member, prompt in ticket.prompt_of.items():
                self._copy_beginning(member, held[member], prompt)
            if panel is not self._all:
                states = panel.space.over(states)
            for state, prompt in zip(states, ticket.prompts, strict=True):
                state.start(prompt, ticket.scored_bytes, grammar)
        except BaseException:
            # Cut off in the middle, they do not know what their caches hold.
            for state in states:
                state.clear()
            raise
        if ticket.symbols is not None:
            return ScoredSequence(ticket, states)
        return TextSequence(ticket, states, sampler)

    def lost(self, prompts: Mapping[int, Sequence[int]], slot: int) -> int:
        """Return how many tokens a slot holds of other texts, which these prompts would end."""
        states = self._states_of(slot)
        return sum(
            states[member].n_cached - states[member].holds(prompt)
            for member, prompt in prompts.items()
        )

    def held(self, prompts: Mapping[int, Sequence[int]], slots: Iterable[int]) -> dict[int, int]:
        """Return how much of each member's prompt the best of `slots` holds, in tokens."""
        states = [self._states_of(slot) for slot in slots]
        return {
            member: max((each[member].holds(prompt) for each in states), default=0)
            for member, prompt in prompts.items()
        }

    def move(self, slot: int, free: int) -> None:
        """Let the text of a slot go on in another one, whose own text is over."""
        for state, other in zip(self._states_of(slot), self._states_of(free), strict=True):
            state.trade(other)
        self._states[slot], self._states[free] = self._states[free], self._states[slot]

    def worth_copying(self, member: int) -> float:
        """Return how long a beginning of a prompt must be to be copied rather than decoded."""
        if not self._models[member].can_roll_back:
            return math.inf
        return max(_LEAST_COPIED, int(self._models[member].n_ctx * _WORTH_COPYING))

    def step(self, sequences: Sequence[TextSequence]) -> list[Step | Score | None]:
        """Take every text a step further, all of them in one batch per member.

        Long prompts are decoded in parts, a batch at a time; a text that is still at its prompt
        gets None. What goes wrong with a text is its own `error` and nobody else's; what its
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

    def _alone_panel(self, member: int) -> Panel:
        if member not in self._alone:
            space = self._all.space.alone(member)
            # What one model says is not weighed, and nobody else need be asked.
            fusion = replace(self._all.fusion, weights="equal", filter="off", gate=1.0)
            samplers = Samplers(space, self._models[member].tokenizer.missing_bytes)
            panel = Panel((member,), (self.names[member],), space, fusion, samplers)
            # Of several threads that ask for it, all get the same.
            self._alone.setdefault(member, panel)
        return self._alone[member]

    def _states_of(self, slot: int) -> Sequence[MemberState]:
        if slot not in self._states:
            self._states[slot] = self._all.space.states(slot)
        return self._states[slot]

    def _copy_beginning(self, member: int, state: MemberState, prompt: Sequence[int]) -> None:
        """Copy the beginning of a prompt from the slot that holds most of it, if that pays."""
        others = (states[member] for states in self._states.values())
        best = max(others, key=lambda other: other.holds(prompt))
        if best.holds(prompt) - state.holds(prompt) >= self.worth_copying(member):
            state.adopt(best)

    def _decode(self, sequences: Sequence[TextSequence]) -> None:
        """Let members decode what is pending; where the pivot is sure, the others are not asked."""
        members = list(range(len(self._models)))
        if self._all.fusion.gate < 1 and len(members) > 1:
            pivot = self._all.space.pivot
            members.remove(pivot)
            self._decode_members([pivot], sequences)
            for sequence in sequences:
                with sequence.own_end():
                    sequence.ask_pivot()
            sequences = [sequence for sequence in sequences if not sequence.sure]
        self._decode_members(members, sequences)

    def _decode_members(self, members: Iterable[int], sequences: Sequence[TextSequence]) -> None:
        decoded: list[Decoded] = []
        decode = functools.partial(self._decode_member, sequences=sequences, decoded=decoded)
        try:
            if self._pool is None:
                for member in members:
                    decode(member)
            else:
                _await([self._pool.submit(decode, member) for member in members])
        finally:
            # Where Ctrl-C ends one, the others need not decode again.
            self._take(decoded)

    def _decode_member(
        self, member: int, sequences: Sequence[TextSequence], decoded: list[Decoded]
    ) -> None:
        """Decode what all texts want of a member, in one batch."""
        model = self._models[member]
        work = self._work(member, sequences)
        if not work:
            return
        began = time.perf_counter()
        found = decode_all(model, [run for _, _, run in work])
        each_token = (time.perf_counter() - began) / sum(len(run.tokens) for _, _, run in work)
        for (sequence, index, run), row in zip(work, found, strict=True):
            sequence.count(index, run, each_token * len(run.tokens))
            if isinstance(row, ModelError):
                sequence.fail(row)
            else:
                decoded.append((sequence, index, run, row))

    def _work(
        self, member: int, sequences: Sequence[TextSequence]
    ) -> list[tuple[TextSequence, int, Run]]:
        """Return what fits into a batch; runs that score a prompt are decoded here."""
        model = self._models[member]
        work: list[tuple[TextSequence, int, Run]] = []
        room = model.n_batch
        writing = any(sequence.steps for sequence in sequences)
        prompt_room = (self.chunk or room) if writing else room
        for sequence in sequences:
            index = sequence.panel.index(member)
            limit = room if sequence.steps else min(room, prompt_room)
            if index is None or limit <= 0:
                continue
            with sequence.own_end():
                for run in sequence.pending(index, limit):
                    prompt_room -= 0 if sequence.steps else len(run.tokens)
                    if run.every:
                        began = time.perf_counter()
                        sequence.states[index].read(run, model.decode_every(run))
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
        asked = [self._takers.submit(_hand_over, part) for part in others if part]
        try:
            _hand_over(mine)
        finally:
            _await(asked)

    def _refuse_too_long(self, panel: Panel, prompts: Sequence[Sequence[int]]) -> None:
        contexts = [self._models[member].n_ctx for member in panel.members]
        lengths = [len(prompt) for prompt in prompts]
        if any(length >= n_ctx for length, n_ctx in zip(lengths, contexts, strict=True)):
            raise too_long("prompt", zip(panel.names, lengths, contexts, strict=True))


def too_long(what: str, sizes: Iterable[tuple[str, int, int]], at_least: str = "") -> ContextError:
    """Return an error for a text that does not fit; a size is of a member: tokens, and context."""
    needs = ", ".join(
        f"{name} needs {at_least}{length + 1} tokens of {n_ctx}" for name, length, n_ctx in sizes
    )
    return ContextError(f"the {what} does not fit: {needs}; shorten it or raise n_ctx")


def _hand_over(rows: Iterable[Iterable[Decoded]]) -> None:
    for sequence, index, run, logits in chain.from_iterable(rows):
        sequence.take(index, run, logits)


def _await(asked: Sequence[Future[None]]) -> None:
    """Wait for all of them; raise what one of them raised."""
    try:
        for each in asked:
            each.result()
    finally:
        # Where one fails, the others must be done before anybody is asked again.
        wait(asked)
