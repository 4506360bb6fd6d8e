"""The step loop: decode, vote, filter, fuse, choose, commit; for many texts side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from eva_local.decision import Decision, Judge
from eva_local.errors import ContextError, EvaError
from eva_local.fusion import Vote
from eva_local.grammar import Grammars
from eva_local.model import Model, Run
from eva_local.records import Ballot, Candidate, FinishReason, Sampling, Step, Trace, Usage
from eva_local.sampling import Chooser, Sampler
from eva_local.space import Space, Voice
from eva_local.specs import FusionSettings
from eva_local.text import TextStream

# Candidates of each vote that a trace shows.
_TRACED = 8
# Tokens of prompts that are read beside answers: as fast as more of them, and short steps.
CHUNK = 128
# A shorter beginning of a prompt is decoded again rather than copied: llama.cpp copies whole
# sequences, which costs about as much as decoding this share of a context.
_WORTH_COPYING = 1 / 256
_LEAST_COPIED = 16


class Draft:
    """One answer in progress, in one sequence of every member."""

    def __init__(
        self,
        voices: Sequence[Voice],
        sampling: Sampling,
        sampler: Chooser,
        judge: Judge,
        prompts: Sequence[int],
        *,
        traced: bool = False,
        n_top: int = 0,
    ) -> None:
        """Begin an answer by `voices` that have started; `prompts` are their prompt lengths."""
        self.voices = voices
        self.sampling = sampling
        self.sampler = sampler
        self.judge = judge
        self.traced = traced
        self.n_top = n_top
        self.text = TextStream(sampling.stop)
        # Members whose logits for the next vote are still missing.
        self.waiting = [True] * len(voices)
        # The lead alone decides the next step.
        self.sure = False
        self.finished = False
        # What ended the answer before its time.
        self.error: EvaError | None = None
        self.steps = 0
        self.steps_alone = 0
        self.prompt_tokens = tuple(prompts)
        self.cached_tokens: list[int | None] = [None] * len(voices)
        self.read_tokens = 0
        self.filtered = np.zeros(len(voices), dtype=np.int64)
        self.decode_seconds = np.zeros(len(voices))
        self.prompt_seconds = np.zeros(len(voices))
        self.last_seconds = np.zeros(len(voices))
        self.started = time.perf_counter()
        self.first_seconds = 0.0

    @property
    def ready(self) -> bool:
        """Whether all who are asked can vote."""
        return self.sure or not any(self.waiting)

    @property
    def share_read(self) -> float:
        """The share of the prompts that all members together have read, from 0 to 1."""
        known = sum(count or 0 for count in self.cached_tokens) + self.read_tokens
        return min(known / sum(self.prompt_tokens), 1.0)

    def count(self, member: int, run: Run, seconds: float) -> None:
        """Record that a run of a member was decoded in `seconds`."""
        if self.cached_tokens[member] is None:
            self.cached_tokens[member] = run.start
        self.read_tokens += len(run.tokens)
        self.decode_seconds[member] += seconds
        self.last_seconds[member] += seconds

    def next_step(self) -> None:
        """Record that a symbol was committed to every member."""
        self.steps += 1
        self.sure = False
        self.waiting = [True] * len(self.voices)
        self.last_seconds = np.zeros(len(self.voices))


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
        chunk: int = CHUNK,
    ) -> None:
        """Fuse `models` in `space`; `side_by_side` decodes each in a thread of its own.

        Beside answers that are being written, at most `chunk` tokens of prompts are read in a
        step, so that no answer stalls.
        Threads pay where members run on devices of their own. On one CPU each member uses
        all cores, one after the other.
        """
        self.names = tuple(names)
        self._models = tuple(models)
        self._space = space
        self._fusion = fusion
        self._chunk = chunk
        #: Bytes that some member has no token for.
        self.missing_bytes = frozenset[int]().union(*(m.tokenizer.missing_bytes for m in models))
        self._grammars = Grammars(space, self.missing_bytes)
        self._pool = ThreadPoolExecutor(len(models)) if side_by_side else None
        self._voices: dict[int, Sequence[Voice]] = {}

    @property
    def n_symbols(self) -> int:
        """How many symbols the shared space has, END included."""
        return self._space.end + 1

    def spell(self, text: bytes) -> list[int]:
        """Return symbols of the shared space whose pieces join to `text`."""
        return self._space.spell(text)

    def close(self) -> None:
        """End the threads, if there are any."""
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
        chooser: Chooser | None = None,
        judge: Judge | None = None,
    ) -> Draft:
        """Begin an answer after each member's own prompt tokens, in sequence `slot`.

        What the members' caches hold of these prompts, in this slot or in another, is not
        decoded again. Every step of a `traced` answer says why its symbol was chosen, and names
        the `n_top` likeliest symbols. A `chooser` chooses instead of what
        `sampling` says (except for its end), a `judge` fuses in place of the ensemble's rule.
        Raises ContextError, with the numbers, where a prompt leaves no room for an answer, and
        InputError where a bias, grammar or schema of `sampling` cannot be used.
        """
        self._refuse_too_long(prompts)
        if chooser is None:
            chooser = Sampler(sampling, self._space, self._grammars.open(sampling))
        voices = self._voices_of(slot)
        for member, (voice, prompt) in enumerate(zip(voices, prompts, strict=True)):
            self._share(member, voice, prompt)
            voice.start(prompt)
        judge = judge or Judge(self._fusion, len(voices))
        lengths = [len(prompt) for prompt in prompts]
        return Draft(voices, sampling, chooser, judge, lengths, traced=traced, n_top=n_top)

    def held(self, prompts: Sequence[Sequence[int]], slots: Iterable[int]) -> list[int]:
        """Return for each member how much of its prompt the best of `slots` holds, in tokens."""
        voices = [self._voices_of(slot) for slot in slots]
        return [
            max((each[member].holds(prompt) for each in voices), default=0)
            for member, prompt in enumerate(prompts)
        ]

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

    def _voices_of(self, slot: int) -> Sequence[Voice]:
        if slot not in self._voices:
            self._voices[slot] = self._space.voices(slot)
        return self._voices[slot]

    def _share(self, member: int, voice: Voice, prompt: Sequence[int]) -> None:
        """Copy the beginning of a prompt from the slot that holds most of it, if that pays."""
        others = (voices[member] for voices in self._voices.values())
        best = max(others, key=lambda other: other.holds(prompt))
        if best.holds(prompt) - voice.holds(prompt) >= self.worth_copying(member):
            voice.adopt(best)

    def _decode(self, drafts: Sequence[Draft]) -> None:
        members = list(range(len(self._models)))
        if self._fusion.gate < 1 and len(members) > 1:
            members.remove(self._space.lead)
            self._decode_member(self._space.lead, drafts)
            drafts = [draft for draft in drafts if not self._is_sure(draft)]
        if self._pool is None:
            for member in members:
                self._decode_member(member, drafts)
        else:
            list(self._pool.map(lambda member: self._decode_member(member, drafts), members))

    def _is_sure(self, draft: Draft) -> bool:
        """Return whether the lead alone decides this step; the others catch up when asked."""
        lead = self._space.lead
        # Each member must have read its prompt first, so that all have something to go on from.
        if draft.waiting[lead] or draft.steps == 0:
            return False
        vote = self._space.lead_vote(draft.voices)
        draft.sure = bool(len(vote)) and vote.top(1)[0][1] >= self._fusion.gate
        return draft.sure

    def _decode_member(self, member: int, drafts: Sequence[Draft]) -> None:
        model = self._models[member]
        work: list[tuple[Draft, Run]] = []
        room = model.n_batch
        prompt_room = self._chunk if any(draft.steps for draft in drafts) else room
        for draft in drafts:
            if not draft.waiting[member]:
                continue
            limit = room if draft.steps else min(room, prompt_room)
            if draft.steps == 0 and self._fusion.weights == "prompt-perplexity":
                self._read_prompt(member, draft)
            elif limit > 0:
                for run in draft.voices[member].pending(limit):
                    work.append((draft, run))
                    room -= len(run.tokens)
                    prompt_room -= 0 if draft.steps else len(run.tokens)
        if not work:
            return
        began = time.perf_counter()
        logits = model.decode([run for _, run in work])
        seconds = time.perf_counter() - began
        for (draft, run), row in zip(work, logits, strict=True):
            draft.voices[member].take(run, row)
            draft.count(member, run, seconds / len(work))
            draft.waiting[member] = row is None

    def _read_prompt(self, member: int, draft: Draft) -> None:
        """Decode a whole prompt with the logits after each token: what the weights rest on."""
        voice = draft.voices[member]
        for run in voice.pending(None):
            began = time.perf_counter()
            voice.read(run, self._models[member].decode_every(run))
            draft.count(member, run, time.perf_counter() - began)
        draft.judge.evidence[member] = voice.evidence()
        draft.waiting[member] = False

    def _try_advance(self, draft: Draft) -> Step | None:
        """Advance a draft; what goes wrong with it is its own end, and nobody else's."""
        try:
            return self._advance(draft)
        except EvaError as error:
            draft.error, draft.finished = error, True
            return None

    def _advance(self, draft: Draft) -> Step:
        """Vote, filter, fuse, choose, and commit the choice to every member."""
        decision = draft.judge.decide(self._votes(draft))
        fused = decision.fused
        if draft.steps == 0:
            draft.first_seconds = time.perf_counter() - draft.started
            draft.prompt_seconds = draft.decode_seconds.copy()
        draft.filtered += [
            vote is not None and not stays
            for vote, stays in zip(decision.votes, decision.stayed, strict=True)
        ]
        chosen = draft.sampler.choose(fused)
        piece = self._space.piece(chosen)
        trace = self._trace(draft, decision, chosen) if draft.traced else None
        top = self._candidates(fused, draft.n_top) if draft.n_top else ()
        draft.judge.learn(decision, chosen, len(piece))
        reason = self._commit(draft, chosen)
        text = draft.text.push(piece)
        if draft.text.stopped:
            reason = "stop"
        if reason is not None:
            text += draft.text.finish()
            draft.finished = True
        return Step(
            piece=piece,
            text=text,
            probability=fused.probability(chosen),
            stayed=decision.stayed,
            finish_reason=reason,
            usage=None if reason is None else self._usage(draft),
            trace=trace,
            top=top,
        )

    def _votes(self, draft: Draft) -> list[Vote | None]:
        lead = self._space.lead_vote(draft.voices)
        if not draft.sure:
            return [*self._space.votes(draft.voices, lead)]
        draft.steps_alone += 1
        members = range(len(self._models))
        return [lead if member == self._space.lead else None for member in members]

    def _trace(self, draft: Draft, decision: Decision, chosen: int) -> Trace:
        ballots = (
            Ballot(
                member=name,
                top=() if vote is None else self._candidates(vote, _TRACED),
                chosen=0.0 if vote is None else vote.probability(chosen),
                stayed=decision.stayed[member],
                reason=decision.reasons[member],
                weight=decision.weights[member],
                seconds=float(draft.last_seconds[member]),
            )
            for member, (name, vote) in enumerate(zip(self.names, decision.votes, strict=True))
        )
        return Trace(self._candidates(decision.fused, _TRACED), tuple(ballots))

    def _candidates(self, vote: Vote, count: int) -> tuple[Candidate, ...]:
        top = vote.top(count)
        return tuple(Candidate(self._space.piece(symbol), share) for symbol, share in top)

    def _commit(self, draft: Draft, chosen: int) -> FinishReason | None:
        if chosen == self._space.end:
            return "stop"
        for voice in draft.voices:
            voice.commit(chosen)
        draft.next_step()
        if draft.sampler.complete:
            return "stop"
        full = any(voice.room < 0 for voice in draft.voices)
        return "length" if full or draft.steps >= draft.sampling.max_tokens else None

    def _usage(self, draft: Draft) -> Usage:
        return Usage(
            members=self.names,
            prompt_tokens=draft.prompt_tokens,
            cached_tokens=tuple(count or 0 for count in draft.cached_tokens),
            filtered=tuple(draft.filtered.tolist()),
            decode_seconds=tuple(draft.decode_seconds.tolist()),
            prompt_seconds=tuple(draft.prompt_seconds.tolist()),
            steps=draft.steps,
            steps_alone=draft.steps_alone,
            seconds=time.perf_counter() - draft.started,
            first_seconds=draft.first_seconds,
        )

    def _refuse_too_long(self, prompts: Sequence[Sequence[int]]) -> None:
        sizes = list(zip(self.names, prompts, self._models, strict=True))
        if all(len(prompt) < model.n_ctx for _, prompt, model in sizes):
            return
        needs = ", ".join(
            f"{name} needs {len(prompt) + 1} tokens of {model.n_ctx}"
            for name, prompt, model in sizes
        )
        raise ContextError(f"the prompt does not fit: {needs}; shorten it or raise n_ctx")
