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

from eva_local.decision import Judge
from eva_local.draft import Draft, Panel
from eva_local.errors import ContextError, EvaError, passed_on
from eva_local.model import Logits, Model, Run, cores
from eva_local.records import Sampling, Step
from eva_local.sampling import ChooserMaker, Samplers
from eva_local.space import Space, Voice
from eva_local.specs import FusionSettings

log = logging.getLogger("eva_local")

# Tokens of prompts that are read beside answers: as fast as more of them, and short steps.
CHUNK = 128
# A shorter beginning of a prompt is decoded again rather than copied: llama.cpp copies whole
# sequences, which costs about as much as decoding this share of a context.
_WORTH_COPYING = 1 / 256
_LEAST_COPIED = 16
# Threads that take in logits: what needs the GIL lets no more of them be of use.
_MOST_TAKERS = 4

# A run of a voice, and the logits after it.
Decoded = tuple[Voice, Run, Logits | None]


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
        self._voices: dict[int, Sequence[Voice]] = {}

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
        judge: Judge | None = None,
        alone: int | None = None,
        judged: int = 0,
    ) -> Draft:
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
        sampler = (chooser or panel.samplers.prepare(sampling))()
        held = self._voices_of(slot)
        voices = [held[member] for member in panel.members]
        for member, voice, prompt in zip(panel.members, voices, prompts, strict=True):
            self._share(member, voice, prompt)
        if alone is not None:
            voices = panel.space.over(voices)
        for voice, prompt in zip(voices, prompts, strict=True):
            voice.start(prompt, judged, sampler.grammar)
        judge = judge or Judge(panel.fusion, len(voices))
        lengths = [len(prompt) for prompt in prompts]
        return Draft(
            *(panel, voices, sampling, sampler, judge, lengths),
            judged=judged > 0,
            traced=traced,
            n_top=n_top,
        )

    def held(self, prompts: Mapping[int, Sequence[int]], slots: Iterable[int]) -> dict[int, int]:
        """Return how much of each member's prompt the best of `slots` holds, in tokens."""
        voices = [self._voices_of(slot) for slot in slots]
        return {
            member: max((each[member].holds(prompt) for each in voices), default=0)
            for member, prompt in prompts.items()
        }

    def move(self, slot: int, free: int) -> None:
        """Let the text of a slot go on in another one, whose own text is over."""
        for voice, other in zip(self._voices_of(slot), self._voices_of(free), strict=True):
            voice.trade(other)
        self._voices[slot], self._voices[free] = self._voices[free], self._voices[slot]

    def worth_copying(self, member: int) -> float:
        """Return how long a beginning of a prompt must be to be copied rather than decoded."""
        if not self._models[member].can_roll_back:
            return math.inf
        return max(_LEAST_COPIED, int(self._models[member].n_ctx * _WORTH_COPYING))

    def step(self, drafts: Sequence[Draft]) -> list[Step | None]:
        """Take every draft one symbol further, all of them in one batch per member.

        Long prompts are decoded in parts, a batch at a time; a draft that is still at its
        prompt gets None.
        """
        self._decode(drafts)
        return [self._try_advance(draft) if draft.ready else None for draft in drafts]

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

    def _voices_of(self, slot: int) -> Sequence[Voice]:
        if slot not in self._voices:
            self._voices[slot] = self._all.space.voices(slot)
        return self._voices[slot]

    def _share(self, member: int, voice: Voice, prompt: Sequence[int]) -> None:
        """Copy the beginning of a prompt from the slot that holds most of it, if that pays."""
        others = (voices[member] for voices in self._voices.values())
        best = max(others, key=lambda other: other.holds(prompt))
        if best.holds(prompt) - voice.holds(prompt) >= self.worth_copying(member):
            voice.adopt(best)

    def _decode(self, drafts: Sequence[Draft]) -> None:
        members = list(range(len(self._models)))
        if self._all.fusion.gate < 1 and len(members) > 1:
            members.remove(self._all.space.lead)
            self._decode_members([self._all.space.lead], drafts)
            drafts = [draft for draft in drafts if not draft.ask_lead()]
        self._decode_members(members, drafts)

    def _decode_members(self, members: Iterable[int], drafts: Sequence[Draft]) -> None:
        decoded: list[Decoded] = []
        decode = functools.partial(self._decode_member, drafts=drafts, decoded=decoded)
        try:
            if self._pool is None:
                for member in members:
                    decode(member)
            else:
                _await([self._pool.submit(decode, member) for member in members])
        finally:
            # Where one fails, the others need not decode again.
            self._take(decoded)

    def _decode_member(self, member: int, drafts: Sequence[Draft], decoded: list[Decoded]) -> None:
        model = self._models[member]
        work: list[tuple[Draft, int, Run]] = []
        room = model.n_batch
        prompt_room = (self.chunk or room) if any(draft.steps for draft in drafts) else room
        for draft in drafts:
            place = draft.place_of(member)
            if place is None or draft.voices[place].ready:
                continue
            limit = room if draft.steps else min(room, prompt_room)
            if limit <= 0:
                continue
            for run in draft.voices[place].pending(limit):
                prompt_room -= 0 if draft.steps else len(run.tokens)
                if run.every:
                    self._judge(model, draft, place, run)
                    continue
                work.append((draft, place, run))
                room -= len(run.tokens)
        if not work:
            return
        began = time.perf_counter()
        logits = model.decode([run for _, _, run in work])
        seconds = time.perf_counter() - began
        for (draft, place, run), row in zip(work, logits, strict=True):
            decoded.append((draft.voices[place], run, row))
            draft.count(place, run, seconds / len(work))

    def _take(self, decoded: Iterable[Decoded]) -> None:
        """Let voices take their logits, each in one of some threads.

        numpy goes through a whole vocabulary there, without the GIL. It does so when nobody
        decodes, for llama.cpp is slowed down by more than that takes where it has all cores.
        """
        by_voice: dict[Voice, list[Decoded]] = {}
        for each in decoded:
            by_voice.setdefault(each[0], []).append(each)
        rows = list(by_voice.values())
        mine, *others = [rows[first :: self._n_takers] for first in range(self._n_takers)]
        asked = [self._takers.submit(_hand_over, part) for part in others if part]
        try:
            _hand_over(mine)
        finally:
            _await(asked)

    def _judge(self, model: Model, draft: Draft, place: int, run: Run) -> None:
        """Decode a part of a prompt with the logits after each of its tokens."""
        began = time.perf_counter()
        draft.voices[place].read(run, model.decode_every(run))
        draft.count(place, run, time.perf_counter() - began)

    def _try_advance(self, draft: Draft) -> Step | None:
        """Advance a draft; what goes wrong with it is its own end, and nobody else's."""
        try:
            return draft.advance()
        except EvaError as error:
            draft.error = error
        except Exception as error:
            log.exception("an answer failed")
            draft.error = passed_on(error)
        draft.finished = True
        return None

    def _refuse_too_long(self, panel: Panel, prompts: Sequence[Sequence[int]]) -> None:
        models = [self._models[member] for member in panel.members]
        sizes = list(zip(panel.names, prompts, models, strict=True))
        if all(len(prompt) < model.n_ctx for _, prompt, model in sizes):
            return
        needs = ", ".join(
            f"{name} needs {len(prompt) + 1} tokens of {model.n_ctx}"
            for name, prompt, model in sizes
        )
        raise ContextError(f"the prompt does not fit: {needs}; shorten it or raise n_ctx")


def _hand_over(rows: Iterable[Iterable[Decoded]]) -> None:
    for voice, run, logits in chain.from_iterable(rows):
        voice.take(run, logits)


def _await(asked: Sequence[Future[None]]) -> None:
    """Wait for all of them; raise what one of them raised."""
    try:
        for each in asked:
            each.result()
    finally:
        # Where one fails, the others must be done before anybody is asked again.
        wait(asked)
