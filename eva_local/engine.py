"""The step loop: decode, vote, filter, fuse, choose, commit; for many texts side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eva_local.decision import Decision, Judge
from eva_local.errors import ContextError, EvaError, InputError
from eva_local.fusion import Vote
from eva_local.grammar import Grammars
from eva_local.model import Model, Run
from eva_local.records import Ballot, Candidate, FinishReason, Sampling, Step, Trace, Usage
from eva_local.sampling import Chooser, PieceSampler, Sampler
from eva_local.space import Space, Voice
from eva_local.specs import FusionSettings
from eva_local.text import TextStream

# Candidates of each vote that a trace shows.
_TRACED = 8
# A step of several symbols ends after this many bytes at the latest.
_LONGEST_STEP = 64
# Pieces to choose among where the symbols are bytes.
_PUT_FORWARD = 64
# Tokens of prompts that are read beside answers: as fast as more of them, and short steps.
CHUNK = 128
# A shorter beginning of a prompt is decoded again rather than copied: llama.cpp copies whole
# sequences, which costs about as much as decoding this share of a context.
_WORTH_COPYING = 1 / 256
_LEAST_COPIED = 16


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Members who write a text, the space they vote in, and the rule that fuses their votes.

    `members` are their places among the engine's models.
    """

    members: tuple[int, ...]
    names: tuple[str, ...]
    space: Space[Any]
    fusion: FusionSettings
    grammars: Grammars


class Draft:
    """One answer in progress, in one sequence of every member of its panel."""

    def __init__(
        self,
        panel: Panel,
        voices: Sequence[Voice],
        sampling: Sampling,
        sampler: Chooser | PieceSampler,
        judge: Judge,
        prompts: Sequence[int],
        *,
        traced: bool = False,
        n_top: int = 0,
    ) -> None:
        """Begin an answer by `voices` that have started; `prompts` are their prompt lengths."""
        self.panel = panel
        self.voices = voices
        self._places = {member: place for place, member in enumerate(panel.members)}
        self.sampling = sampling
        self.sampler = sampler
        self.judge = judge
        self.traced = traced
        self.n_top = n_top
        self.text = TextStream(sampling.stop)
        self.span = _Span(len(voices))
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
        return self.sure or all(voice.ready for voice in self.voices)

    @property
    def share_read(self) -> float:
        """The share of the prompts that all members together have read, from 0 to 1."""
        known = sum(count or 0 for count in self.cached_tokens) + self.read_tokens
        return min(known / sum(self.prompt_tokens), 1.0)

    def place_of(self, member: int) -> int | None:
        """Return the place in the panel of one of the engine's models, if it is there."""
        return self._places.get(member)

    def count(self, member: int, run: Run, seconds: float) -> None:
        """Record that a run of a member, by its place, was decoded in `seconds`."""
        if self.cached_tokens[member] is None:
            self.cached_tokens[member] = run.start
        self.read_tokens += len(run.tokens)
        self.decode_seconds[member] += seconds
        self.last_seconds[member] += seconds

    def next_span(self) -> None:
        """Begin the next step."""
        self.span = _Span(len(self.voices))
        self.last_seconds = np.zeros(len(self.voices))


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
        grammars = Grammars(space, self.missing_bytes)
        members = tuple(range(len(models)))
        self._all = Panel(members, self.names, space, fusion, grammars)
        self._alone: dict[int, Panel] = {}
        self._pool = ThreadPoolExecutor(len(models)) if side_by_side else None
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
        alone: int | None = None,
    ) -> Draft:
        """Begin an answer after each member's own prompt tokens, in sequence `slot`.

        With `alone` one member writes it, by itself and in its own tokens, beside the answers
        of all; `prompts` are its prompt alone. What the members' caches hold of these prompts, in
        this slot or in another, is not decoded again. Every step of a `traced` answer says why
        its symbol was chosen, and names the `n_top` likeliest symbols. A `chooser` chooses
        instead of what `sampling` says (except for its end), a `judge` fuses in place of the
        ensemble's rule.

        Raises ContextError, with the numbers, where a prompt leaves no room for an answer, and
        InputError where a bias, grammar or schema of `sampling` cannot be used.
        """
        panel = self.panel(alone)
        self._refuse_too_long(panel, prompts)
        sampler = _chooser(sampling, panel) if chooser is None else chooser
        held = self._voices_of(slot)
        voices = [held[member] for member in panel.members]
        for member, voice, prompt in zip(panel.members, voices, prompts, strict=True):
            self._share(member, voice, prompt)
        if alone is not None:
            voices = panel.space.over(voices)
        for voice, prompt in zip(voices, prompts, strict=True):
            voice.start(prompt)
        judge = judge or Judge(panel.fusion, len(voices))
        lengths = [len(prompt) for prompt in prompts]
        return Draft(panel, voices, sampling, sampler, judge, lengths, traced=traced, n_top=n_top)

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
            grammars = Grammars(space, self._models[member].tokenizer.missing_bytes)
            self._alone[member] = Panel((member,), names, space, fusion, grammars)
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
            self._decode_member(self._all.space.lead, drafts)
            drafts = [draft for draft in drafts if not self._is_sure(draft)]
        if self._pool is None:
            for member in members:
                self._decode_member(member, drafts)
        else:
            list(self._pool.map(lambda member: self._decode_member(member, drafts), members))

    def _is_sure(self, draft: Draft) -> bool:
        """Return whether the lead alone decides this step; the others catch up when asked."""
        space, gate = draft.panel.space, draft.panel.fusion.gate
        # Each member must have read its prompt first, so that all have something to go on from.
        if gate == 1 or not draft.voices[space.lead].ready or draft.steps == 0:
            return False
        vote = space.lead_vote(draft.voices)
        draft.sure = bool(len(vote)) and vote.top(1)[0][1] >= gate
        return draft.sure

    def _decode_member(self, member: int, drafts: Sequence[Draft]) -> None:
        model = self._models[member]
        work: list[tuple[Draft, int, Run]] = []
        room = model.n_batch
        prompt_room = (self.chunk or room) if any(draft.steps for draft in drafts) else room
        for draft in drafts:
            place = draft.place_of(member)
            if place is None or draft.voices[place].ready:
                continue
            limit = room if draft.steps else min(room, prompt_room)
            if draft.steps == 0 and draft.panel.fusion.weights == "prompt-perplexity":
                self._read_prompt(model, draft, place)
            elif limit > 0:
                for run in draft.voices[place].pending(limit):
                    work.append((draft, place, run))
                    room -= len(run.tokens)
                    prompt_room -= 0 if draft.steps else len(run.tokens)
        if not work:
            return
        began = time.perf_counter()
        logits = model.decode([run for _, _, run in work])
        seconds = time.perf_counter() - began
        for (draft, place, run), row in zip(work, logits, strict=True):
            draft.voices[place].take(run, row)
            draft.count(place, run, seconds / len(work))

    def _read_prompt(self, model: Model, draft: Draft, place: int) -> None:
        """Decode a whole prompt with the logits after each token: what the weights rest on."""
        voice = draft.voices[place]
        for run in voice.pending(None):
            began = time.perf_counter()
            voice.read(run, model.decode_every(run))
            draft.count(place, run, time.perf_counter() - began)
        draft.judge.evidence[place] = voice.evidence()

    def _try_advance(self, draft: Draft) -> Step | None:
        """Advance a draft; what goes wrong with it is its own end, and nobody else's."""
        try:
            return self._advance(draft)
        except EvaError as error:
            draft.error, draft.finished = error, True
            return None

    def _advance(self, draft: Draft) -> Step | None:
        """Choose and commit symbols until a step is whole, or a member must decode first."""
        space, sampler = draft.panel.space, draft.sampler
        if isinstance(sampler, PieceSampler):
            return self._advance_piece(draft, sampler)
        while draft.ready:
            decision = draft.judge.decide(self._votes(draft))
            self._note(draft, decision)
            chosen = sampler.choose(decision.fused)
            self._extend(draft, decision, chosen)
            step = self._completed(draft, ended=chosen == space.end)
            if step is not None:
                return step
        return None

    def _advance_piece(self, draft: Draft, sampler: PieceSampler) -> Step | None:
        """Choose among pieces that the member puts forward that counts most."""
        space = draft.panel.space
        assert space.slates is not None
        members = np.arange(len(draft.voices))
        asked = members == space.lead if draft.sure else members >= 0
        slate = space.slates.slate(draft.voices, draft.judge.weights * asked, _PUT_FORWARD)
        draft.steps_alone += draft.sure
        votes = [vote if ask else None for vote, ask in zip(slate.votes, asked, strict=True)]
        decision = draft.judge.decide(votes)
        self._note(draft, decision)
        chosen = sampler.choose_piece(decision.fused, slate.pieces)

        def shown(vote: Vote | None, count: int) -> tuple[Candidate, ...]:
            top = [] if vote is None else vote.top(count)
            return tuple(Candidate(slate.pieces[place], share) for place, share in top)

        span = draft.span
        span.first, span.piece = decision, slate.pieces[chosen]
        span.probability = decision.fused.probability(chosen)
        span.chosen *= [0.0 if v is None else v.probability(chosen) for v in votes]
        if draft.traced or draft.n_top:
            span.fused_top = shown(decision.fused, max(_TRACED, draft.n_top))
            span.tops = [shown(vote, _TRACED) for vote in votes]
        draft.judge.learn(decision, chosen, len(span.piece))
        draft.sure = False
        space.slates.write(draft.voices, slate, chosen)
        return self._completed(draft, ended=not span.piece)

    def _note(self, draft: Draft, decision: Decision) -> None:
        """Count who was filtered; the first decision ends the time of the prompt."""
        if draft.steps == 0 and draft.span.first is None:
            draft.first_seconds = time.perf_counter() - draft.started
            draft.prompt_seconds = draft.decode_seconds.copy()
        draft.filtered += [
            vote is not None and not stays
            for vote, stays in zip(decision.votes, decision.stayed, strict=True)
        ]

    def _extend(self, draft: Draft, decision: Decision, chosen: int) -> None:
        """Add a chosen symbol to the step, and commit it to every member."""
        space, span = draft.panel.space, draft.span
        piece = space.piece(chosen)
        if span.first is None:
            span.first = decision
            self._note_tops(draft, decision)
        span.piece += piece
        span.probability *= decision.fused.probability(chosen)
        span.chosen *= [0.0 if v is None else v.probability(chosen) for v in decision.votes]
        draft.judge.learn(decision, chosen, len(piece))
        draft.sure = False
        if chosen != space.end:
            for voice in draft.voices:
                voice.commit(chosen)

    def _note_tops(self, draft: Draft, decision: Decision) -> None:
        span = draft.span
        count = max(draft.n_top, _TRACED if draft.traced else 0)
        if count:
            span.fused_top = tuple(
                Candidate(draft.panel.space.piece(symbol), share)
                for symbol, share in decision.fused.top(count)
            )
        if draft.traced:
            span.tops = [
                ()
                if vote is None
                else tuple(
                    Candidate(piece, share) for piece, share in voice.candidates(vote, _TRACED)
                )
                for voice, vote in zip(draft.voices, decision.votes, strict=True)
            ]

    def _completed(self, draft: Draft, *, ended: bool) -> Step | None:
        """Return the step, if what was chosen last completes it; `ended` says it was END."""
        span = draft.span
        assert span.first is not None
        stops = ended or draft.sampler.complete
        full = not ended and any(voice.room < 0 for voice in draft.voices)
        weights = span.first.weights
        heaviest = draft.voices[max(range(len(weights)), key=weights.__getitem__)]
        whole = (
            isinstance(draft.sampler, PieceSampler)
            or heaviest.at_border
            or len(span.piece) >= _LONGEST_STEP
        )
        if not (stops or full or whole or draft.text.would_stop(span.piece)):
            return None
        if not ended or span.piece:
            draft.steps += 1
        text = draft.text.push(span.piece)
        reason: FinishReason | None = None
        if stops or draft.text.stopped:
            reason = "stop"
        elif full or draft.steps >= draft.sampling.max_tokens:
            reason = "length"
        if reason is not None:
            text += draft.text.finish()
            draft.finished = True
        step = Step(
            piece=span.piece,
            text=text,
            probability=span.probability,
            stayed=span.first.stayed,
            finish_reason=reason,
            usage=None if reason is None else self._usage(draft),
            trace=self._trace(draft, span.first) if draft.traced else None,
            top=span.fused_top[: draft.n_top],
        )
        draft.next_span()
        return step

    def _votes(self, draft: Draft) -> list[Vote | None]:
        space = draft.panel.space
        lead = space.lead_vote(draft.voices)
        if not draft.sure:
            return [*space.votes(draft.voices, lead)]
        draft.steps_alone += 1
        return [lead if place == space.lead else None for place in range(len(draft.voices))]

    def _trace(self, draft: Draft, decision: Decision) -> Trace:
        span = draft.span
        ballots = (
            Ballot(
                member=name,
                top=span.tops[member],
                chosen=float(span.chosen[member]),
                stayed=decision.stayed[member],
                reason=decision.reasons[member],
                weight=decision.weights[member],
                seconds=float(draft.last_seconds[member]),
            )
            for member, name in enumerate(draft.panel.names)
        )
        return Trace(span.fused_top[:_TRACED], tuple(ballots))

    def _usage(self, draft: Draft) -> Usage:
        return Usage(
            members=draft.panel.names,
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


def _chooser(sampling: Sampling, panel: Panel) -> Chooser | PieceSampler:
    """Return what draws an answer; raise InputError for what cannot be done."""
    grammar = panel.grammars.open(sampling)
    if panel.space.slates is None:
        return Sampler(sampling, panel.space, grammar)
    if grammar is None:
        return PieceSampler(sampling)
    if sampling.logit_bias or sampling.penalises:
        raise InputError(
            "under a grammar or schema, the space of bytes chooses single bytes, and logit_bias "
            'and penalties speak of whole tokens: leave them out, or use space = "pivot"'
        )
    return Sampler(sampling, panel.space, grammar)
