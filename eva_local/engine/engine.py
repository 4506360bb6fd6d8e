"""The step loop over many texts: decode for all of them, then advance each."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain
from typing import Any

from eva_local.cache.context import as_row
from eva_local.config.specs import FusionSettings
from eva_local.engine.decoding import decode_all
from eva_local.engine.sampling import ChooserMaker, Samplers
from eva_local.engine.sequence import Panel, TextSequence
from eva_local.errors import ContextError, EvaError, ModelError
from eva_local.fusion.fuser import Fuser
from eva_local.llama.backend import cores
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.base import MemberState, Space
from eva_local.types import Sampling, Step

log = logging.getLogger("eva_local")

# Tokens of prompts that are read beside answers: as fast as more of them, and short steps.
CHUNK = 128
# A shorter beginning of a prompt is decoded again rather than copied: llama.cpp copies whole
# sequences, which costs about as much as decoding this share of a context.
_WORTH_COPYING = 1 / 256
_LEAST_COPIED = 16
# Threads that take in logits: what needs the GIL lets no more of them be of use.
_MOST_TAKERS = 4

# A run of a draft's member, by its place there, and the logits after it.
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
        samplers = Samplers(space, self.missing_bytes, by_piece=space.slates is not None)
        members = tuple(range(len(models)))
        self._all = Panel(members, self.names, space, fusion, samplers)
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
        """Return all members, or one who writes alone, by its place."""
        return self._all if alone is None else self._alone_panel(alone)

    def close(self) -> None:
        """End the threads, if there are any."""
        self._takers.shutdown()
        if self._pool is not None:
            self._pool.shutdown()

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        slot: int = 0,
        *,
        traced: bool = False,
        n_top: int = 0,
        chooser: ChooserMaker | None = None,
        judge: Fuser | None = None,
        alone: int | None = None,
        judged: int = 0,
    ) -> TextSequence:
        """Begin an answer after each member's own prompt tokens, in sequence `slot`.

        With `alone` one member writes it, by itself and in its own tokens, beside the answers
        of all; `prompts` are its prompt alone. What the members' caches hold of these prompts, in
        this slot or in another, is not decoded again. Every step of a `traced` answer says why
        its symbol was chosen, and names the `n_top` likeliest symbols. What `chooser` makes
        chooses, instead of what `sampling` says (except for its end); without it that is prepared
        here, which may take long. A `judge` fuses in place of the ensemble's rule. It is told how
        well each member predicts the last `judged` bytes of its prompt; to know that costs a row
        of logits for each of their tokens.

        Raises ContextError, with the numbers, where a prompt leaves no room for an answer, and
        InputError where a bias, grammar or schema of `sampling` cannot be used.
        """
        panel = self.panel(alone)
        self._refuse_too_long(panel, prompts)
        prompts = [as_row(prompt) for prompt in prompts]
        sampler = (chooser or panel.samplers.prepare(sampling))()
        held = self._states_of(slot)
        states = [held[member] for member in panel.members]
        try:
            for member, state, prompt in zip(panel.members, states, prompts, strict=True):
                self._share(member, state, prompt)
            if alone is not None:
                states = panel.space.over(states)
            for state, prompt in zip(states, prompts, strict=True):
                state.start(prompt, judged, sampler.grammar)
        except BaseException:
            # Cut off in the middle, they do not know what their caches hold.
            for state in states:
                state.clear()
            raise
        judge = judge or Fuser(panel.fusion, len(states))
        lengths = [len(prompt) for prompt in prompts]
        return TextSequence(
            *(panel, states, sampling, sampler, judge, lengths),
            judged=judged > 0,
            traced=traced,
            n_top=n_top,
        )

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

    def step(self, sequences: Sequence[TextSequence]) -> list[Step | None]:
        """Take every draft one symbol further, all of them in one batch per member.

        Long prompts are decoded in parts, a batch at a time; a draft that is still at its
        prompt gets None. What goes wrong with a draft is its own `error` and nobody else's;
        what its members' caches held of it is given up.
        """
        try:
            self._decode(sequences)
        except Exception as error:
            # Nobody knows whose fault it was, so nobody's text is sure to be whole.
            log.exception("a step failed")
            for sequence in sequences:
                sequence.fail(error)
        steps = [_advanced(sequence) for sequence in sequences]
        for sequence in sequences:
            if sequence.error is not None:
                _give_up(sequence)
        return steps

    def _alone_panel(self, member: int) -> Panel:
        if member not in self._alone:
            space = self._all.space.alone(member)
            names = (self.names[member],)
            # What one model says is not weighed, and nobody else need be asked.
            fusion = replace(self._all.fusion, weights="equal", filter="off", gate=1.0)
            missing = self._models[member].tokenizer.missing_bytes
            samplers = Samplers(space, missing, by_piece=space.slates is not None)
            panel = Panel((member,), names, space, fusion, samplers)
            # Of several threads that ask for it, all get the same.
            self._alone.setdefault(member, panel)
        return self._alone[member]

    def _states_of(self, slot: int) -> Sequence[MemberState]:
        if slot not in self._states:
            self._states[slot] = self._all.space.states(slot)
        return self._states[slot]

    def _share(self, member: int, state: MemberState, prompt: Sequence[int]) -> None:
        """Copy the beginning of a prompt from the slot that holds most of it, if that pays."""
        others = (states[member] for states in self._states.values())
        best = max(others, key=lambda other: other.holds(prompt))
        if best.holds(prompt) - state.holds(prompt) >= self.worth_copying(member):
            state.adopt(best)

    def _decode(self, sequences: Sequence[TextSequence]) -> None:
        members = list(range(len(self._models)))
        if self._all.fusion.gate < 1 and len(members) > 1:
            members.remove(self._all.space.lead)
            self._decode_members([self._all.space.lead], sequences)
            sequences = [sequence for sequence in sequences if not _is_sure(sequence)]
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
        model = self._models[member]
        work: list[tuple[TextSequence, int, Run]] = []
        room = model.n_batch
        prompt_room = (
            (self.chunk or room) if any(sequence.steps for sequence in sequences) else room
        )
        for sequence in sequences:
            place = sequence.place_of(member)
            limit = room if sequence.steps else min(room, prompt_room)
            if place is None or sequence.finished or limit <= 0:
                continue
            with _its_own_end(sequence):
                for run in self._pending(model, sequence, place, limit):
                    prompt_room -= 0 if sequence.steps else len(run.tokens)
                    if not run.every:
                        work.append((sequence, place, run))
                        room -= len(run.tokens)
        if not work:
            return
        began = time.perf_counter()
        found = decode_all(model, [run for _, _, run in work])
        each_token = (time.perf_counter() - began) / sum(len(run.tokens) for _, _, run in work)
        for (sequence, place, run), row in zip(work, found, strict=True):
            sequence.count(place, run, each_token * len(run.tokens))
            if isinstance(row, ModelError):
                sequence.fail(row)
            else:
                decoded.append((sequence, place, run, row))

    def _pending(
        self, model: Model, sequence: TextSequence, place: int, limit: int
    ) -> Iterator[Run]:
        """Yield what must be decoded; what judges a prompt is decoded here."""
        state = sequence.states[place]
        if state.ready:
            return
        for run in state.pending(limit):
            if run.every:
                began = time.perf_counter()
                state.read(run, model.decode_every(run))
                sequence.count(place, run, time.perf_counter() - began)
            yield run

    def _take(self, decoded: Iterable[Decoded]) -> None:
        """Let voices take their logits, each in one of some threads.

        numpy goes through a whole vocabulary there, without the GIL. It does so when nobody
        decodes, for llama.cpp is slowed down by more than that takes where it has all cores.
        """
        by_voice: dict[MemberState, list[Decoded]] = {}
        for each in decoded:
            by_voice.setdefault(each[0].states[each[1]], []).append(each)
        rows = list(by_voice.values())
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


@contextlib.contextmanager
def _its_own_end(sequence: TextSequence) -> Iterator[None]:
    """Let what goes wrong with a draft be its own end, and nobody else's."""
    try:
        yield
    except EvaError as error:
        sequence.fail(error)
    except Exception as error:
        log.exception("an answer failed")
        sequence.fail(error)


def _is_sure(sequence: TextSequence) -> bool:
    """Return whether the lead alone decides the next step of a draft."""
    with _its_own_end(sequence):
        if not sequence.finished:
            sequence.ask_lead()
    return sequence.sure


def _advanced(sequence: TextSequence) -> Step | None:
    step = None
    with _its_own_end(sequence):
        if not sequence.finished and sequence.ready:
            step = sequence.advance()
    return step


def _give_up(sequence: TextSequence) -> None:
    """Let nobody go on with what the caches hold of a draft that failed: it is unknown."""
    with _its_own_end(sequence):
        for state in sequence.states:
            state.clear()


def _hand_over(rows: Iterable[Iterable[Decoded]]) -> None:
    for sequence, place, run, logits in chain.from_iterable(rows):
        with _its_own_end(sequence):
            if not sequence.finished:
                sequence.states[place].take(run, logits)


def _await(asked: Sequence[Future[None]]) -> None:
    """Wait for all of them; raise what one of them raised."""
    try:
        for each in asked:
            each.result()
    finally:
        # Where one fails, the others must be done before anybody is asked again.
        wait(asked)
