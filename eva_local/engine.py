"""The step loop: decode, vote, filter, fuse, choose, commit; for many texts side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from eva_local.errors import ContextError
from eva_local.fusion import Vote, combine, faithful
from eva_local.model import Model, Run
from eva_local.records import FinishReason, Sampling, Step, Usage
from eva_local.sampling import choose
from eva_local.space import Space, Voice
from eva_local.specs import FusionSettings
from eva_local.text import TextStream


class Draft:
    """One answer in progress, in one sequence of every member."""

    def __init__(self, voices: Sequence[Voice], sampling: Sampling, prompts: Sequence[int]) -> None:
        """Begin an answer by `voices` that have started; `prompts` are their prompt lengths."""
        self.voices = voices
        self.sampling = sampling
        self.text = TextStream(sampling.stop)
        self.generator = np.random.default_rng(sampling.seed)
        # Members whose logits for the next vote are still missing.
        self.waiting = [True] * len(voices)
        self.finished = False
        self.steps = 0
        self.prompt_tokens = tuple(prompts)
        self.cached_tokens = [-1] * len(voices)
        self.filtered = np.zeros(len(voices), dtype=np.int64)
        self.decode_seconds = np.zeros(len(voices))
        self.started = time.perf_counter()
        self.first_seconds = 0.0


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
    ) -> None:
        """Fuse `models` in `space`; `side_by_side` decodes each in a thread of its own.

        Threads pay where members run on devices of their own. On one CPU each member uses
        all cores, one after the other.
        """
        self.names = tuple(names)
        self._models = tuple(models)
        self._space = space
        self._fusion = fusion
        equal = fusion.weights == "equal"
        self._weights = np.ones(len(models)) if equal else np.asarray(fusion.weights, dtype=float)
        self._pool = ThreadPoolExecutor(len(models)) if side_by_side else None
        self._voices: dict[int, Sequence[Voice]] = {}

    def close(self) -> None:
        """End the threads, if there are any."""
        if self._pool is not None:
            self._pool.shutdown()

    def begin(self, prompts: Sequence[Sequence[int]], sampling: Sampling, slot: int = 0) -> Draft:
        """Begin an answer after each member's own prompt tokens, in sequence `slot`.

        What the members' caches hold of these prompts is not decoded again. Raises
        ContextError, with the numbers, where a prompt leaves no room for an answer.
        """
        self._refuse_too_long(prompts)
        if slot not in self._voices:
            self._voices[slot] = self._space.voices(slot)
        voices = self._voices[slot]
        for voice, prompt in zip(voices, prompts, strict=True):
            voice.start(prompt)
        return Draft(voices, sampling, [len(prompt) for prompt in prompts])

    def step(self, drafts: Sequence[Draft]) -> list[Step | None]:
        """Take every draft one symbol further, all of them in one batch per member.

        Long prompts are decoded in parts, a batch at a time; a draft that is still at its
        prompt gets None.
        """
        self._decode(drafts)
        return [None if any(draft.waiting) else self._advance(draft) for draft in drafts]

    def _decode(self, drafts: Sequence[Draft]) -> None:
        members = range(len(self._models))
        if self._pool is None:
            for member in members:
                self._decode_member(member, drafts)
        else:
            list(self._pool.map(lambda member: self._decode_member(member, drafts), members))

    def _decode_member(self, member: int, drafts: Sequence[Draft]) -> None:
        model = self._models[member]
        work: list[tuple[Draft, Run]] = []
        room = model.n_batch
        for draft in drafts:
            if draft.waiting[member] and room > 0:
                for run in draft.voices[member].pending(room):
                    work.append((draft, run))
                    room -= len(run.tokens)
        if not work:
            return
        began = time.perf_counter()
        logits = model.decode([run for _, run in work])
        seconds = time.perf_counter() - began
        for (draft, run), row in zip(work, logits, strict=True):
            if draft.cached_tokens[member] < 0:
                draft.cached_tokens[member] = run.start
            draft.voices[member].take(run, row)
            draft.decode_seconds[member] += seconds / len(work)
            draft.waiting[member] = row is None

    def _advance(self, draft: Draft) -> Step:
        """Vote, filter, fuse, choose, and commit the choice to every member."""
        votes = self._space.votes(draft.voices)
        stayed = self._filter(votes)
        fused = combine(votes, (self._weights * stayed).tolist(), self._fusion.combine)
        if draft.steps == 0:
            draft.first_seconds = time.perf_counter() - draft.started
        draft.filtered += ~np.asarray(stayed)
        # Where every vote fell on tokens that stand for nothing, there is no way on but END.
        chosen = choose(fused, draft.sampling, draft.generator) if len(fused) else self._space.end
        piece = self._space.piece(chosen)
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
            stayed=tuple(stayed),
            finish_reason=reason,
            usage=None if reason is None else self._usage(draft),
        )

    def _filter(self, votes: Sequence[Vote]) -> list[bool]:
        if self._fusion.filter == "off":
            return [len(vote) > 0 for vote in votes]
        return faithful(votes, self._fusion.filter_n)

    def _commit(self, draft: Draft, chosen: int) -> FinishReason | None:
        if chosen == self._space.end:
            return "stop"
        for voice in draft.voices:
            voice.commit(chosen)
        draft.waiting = [True] * len(draft.voices)
        draft.steps += 1
        full = any(voice.room < 0 for voice in draft.voices)
        return "length" if full or draft.steps >= draft.sampling.max_tokens else None

    def _usage(self, draft: Draft) -> Usage:
        return Usage(
            members=self.names,
            prompt_tokens=draft.prompt_tokens,
            cached_tokens=tuple(max(count, 0) for count in draft.cached_tokens),
            filtered=tuple(draft.filtered.tolist()),
            decode_seconds=tuple(draft.decode_seconds.tolist()),
            steps=draft.steps,
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
