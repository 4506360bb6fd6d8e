"""One member's part in one text in the space of bytes: its rows of tokens, and its votes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from eva_local.cache.branches import Branch, Branches
from eva_local.cache.likelihood import PromptLikelihood
from eva_local.fusion.votes import Floats, Ids, Vote
from eva_local.llama.control import ControlTokens
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.base import Constraint
from eva_local.spaces.bytes.beam import ByteBeam
from eva_local.spaces.bytes.boundary import END, BoundaryPrior
from eva_local.spaces.bytes.row import Border, Offer
from eva_local.spaces.bytes.trie import Trie

# A vote holds every byte: what a member's rows leave out is no proof that it cannot come.
_FLOOR = 1e-5
_SPACE = 0x20


class ByteState:
    """A member that says how likely each next byte is, whatever its tokens are."""

    def __init__(
        self,
        model: Model,
        seq_ids: Sequence[int],
        trie: Trie,
        threshold: float,
        before: Mapping[str, Floats] | None = None,
        control: ControlTokens | None = None,
    ) -> None:
        """Use some sequences of `model`; `trie` is that of its vocabulary."""
        self._model = model
        self._control = control or ControlTokens(model)
        self._seq_ids = seq_ids
        self._branches = Branches(model, seq_ids)
        self._beam = ByteBeam(model.tokenizer, trie, threshold, before)
        self._likelihood = PromptLikelihood(model.vocabulary.pieces)
        self._mends = threshold > 0
        self._prompt: Sequence[int] = ()
        self._read = Branch(seq_ids[0], 0)
        self._running: dict[int, tuple[Border, Branch]] = {}
        # The text before this byte is in the tokeniser's own tokens.
        self._mended = 0
        self.forwarded = 0

    @property
    def room(self) -> int:
        """How many more tokens fit into the member's context; negative when it is full."""
        return self._model.n_ctx - self._beam.longest() - 1

    @property
    def unread(self) -> int:
        """How many bytes of the text the member has not read; each may be a token."""
        return self._beam.unread()

    @property
    def ready(self) -> bool:
        """Whether the member can vote."""
        return self._read.length == len(self._prompt) and not self._beam.wanted()

    @property
    def text(self) -> bytes:
        """The bytes after the prompt."""
        return bytes(self._beam.text)

    @property
    def boundary_prior(self) -> BoundaryPrior:
        """What usually follows a border of this text."""
        return self._beam.boundary_prior

    def rows(self) -> list[Sequence[int]]:
        """Return the rows of tokens that are followed, prompt included."""
        return [self._branches.row(branch) for branch in self._beam.branches]

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt the cache holds."""
        return self._branches.holds(prompt)

    @property
    def n_cached(self) -> int:
        """How many tokens of a text the cache holds."""
        return self._branches.n_cached

    def clear(self) -> None:
        """Hold nothing: what the cache holds after a failure is unknown."""
        self._branches.clear()
        self._likelihood.begin((), 0, 0)

    def adopt(self, other: ByteState) -> None:
        """Hold what another state of the same member holds; the text that was here ends."""
        self._branches.adopt(other._branches)
        self._likelihood.adopt(other._likelihood)

    def trade(self, other: ByteState) -> None:
        """Stay: all texts share one cache, in which no place is better than another."""

    def start(
        self, prompt: Sequence[int], scored: int = 0, _grammar: Constraint | None = None
    ) -> None:
        """Begin a new text after the tokens of a prompt; see `MemberState.start`."""
        self._prompt = list(prompt)
        self._read = self._branches.begin(prompt)
        kept = self._likelihood.begin(prompt, self._read.length, scored)
        if kept < self._read.length:
            self._read = self._branches.begin(prompt[: kept + 1])
        self._beam.clear()
        self._running = {}
        self._mended = 0

    def pending(self, limit: int | None = None) -> list[Run]:
        """Return what must be decoded before the next vote, at most `limit` tokens of it."""
        if self._read.length < len(self._prompt):
            return [self._rest_of_prompt(limit)]
        self._running = {}
        runs: list[Run] = []
        left = limit
        for border in self._beam.wanted():
            if not self._beam.holds(border):
                continue
            # The first goes whatever its length: nothing else can be done before it.
            fits = not runs or left is None or len(border.tokens) <= left
            run = self._grow(border) if fits else None
            if run is None:
                break
            runs.append(run)
            left = None if left is None else left - len(run.tokens)
        return runs

    def take(self, run: Run, logits: Logits | None) -> None:
        """Take the result of a run from `pending`."""
        self.forwarded += len(run.tokens)
        decoded = self._branches.decoded(run)
        if self._read.length < len(self._prompt):
            self._read = decoded
            if logits is None:
                return
            border, branch = Border(0.0, self._read, [], 0), self._read
            self._beam.begin(border)
        else:
            border, branch = self._running.pop(run.seq_id)
        assert logits is not None
        self._beam.decoded(border, branch, logits)
        # What follows an unlikely row, or came before the newest byte, is not what it wants.
        if self._beam.likeliest() == (branch, len(self._beam.text)):
            self._control.hear(logits)
        self._recover()

    def read(self, run: Run, blocks: Iterable[Logits]) -> None:
        """Take the logits after every token of a run, and remember how likely each was."""
        self.take(run, self._likelihood.read(self._prompt, run, blocks))

    def prompt_log_likelihood(self) -> float:
        """Return the mean log-likelihood of what was scored of the prompt, in nats per byte."""
        return self._likelihood.per_byte()

    def commit(self, symbol: int) -> None:
        """Append a byte."""
        self._beam.append(symbol)
        self._recover()
        if symbol == _SPACE and self._mends:
            self._mend()

    def next_bytes(self) -> Floats:
        """Return (257,): the probability of each next byte, and of END, by this member alone."""
        return self._beam.next()

    def settle(self) -> None:
        """Take it that a piece ends where the text ends, and is not the beginning of another."""
        self._beam.settle()
        # The tokens that the member itself chose stand, odd or not.
        self._mended = len(self._beam.text)

    def vote(self, symbols: Ids) -> Vote:
        """Return the member's vote on `symbols`: the bytes that all members can spell, and END."""
        masses = self.next_bytes()[symbols] * (1 - _FLOOR) + _FLOOR / (END + 1)
        return Vote(symbols, masses / masses.sum())

    def pieces(self, count: int) -> Offer:
        """Return the likeliest pieces, how likely they are, and how surely each ends."""
        return self._beam.pieces(count)

    def pieces_within(self, count: int, grammar: Constraint) -> Offer:
        """Return what `pieces` does, of what a grammar allows; never nothing."""
        found = self._beam.pieces_within(count, grammar)
        if found[0]:
            return found
        # No token that goes on like this is allowed: then single bytes are.
        allowed = np.flatnonzero(grammar.allowed)
        pieces = [b"" if symbol == END else bytes([symbol]) for symbol in allowed.tolist()]
        return pieces, self.next_bytes()[allowed], np.ones(len(allowed))

    def vote_on(self, pieces: Sequence[bytes], shares: Floats, ends: Floats) -> Vote:
        """Return the member's vote on pieces that another (or this one) has put forward."""
        masses = np.maximum(self._beam.support(pieces, shares, ends), 0)
        total = masses.sum()
        spread = masses / total if total > 0 else np.full(len(pieces), 1 / len(pieces))
        return Vote(np.arange(len(pieces)), spread * (1 - _FLOOR) + _FLOOR / len(pieces))

    def _rest_of_prompt(self, limit: int | None) -> Run:
        if not self._branches.reached(self._read):
            # Cut off in the middle, a model that cannot go back has lost what it had read.
            self._read = self._branches.begin(self._prompt[: self._read.length + 1])
        start = self._read.length
        end, every = self._likelihood.stretch(start)
        tokens = self._prompt[start : end if limit is None else min(end, start + limit)]
        run = self._branches.grow(self._read, tokens, ())
        assert run is not None
        whole = start + len(tokens) == len(self._prompt)
        return Run(run.seq_id, run.start, tokens, whole, every)

    def _grow(self, border: Border) -> Run | None:
        """Put a border's tokens behind its row; None where that must wait for another round."""
        if not self._model.can_roll_back:
            # One row alone, since nothing that was decoded can be taken back.
            self._beam.begin(border)
        if not self._branches.reached(border.branch):
            if self._running:
                return None
            row = [*self._branches.row(border.branch), *border.tokens]
            border = self._restart(row, border.covers)
        run = self._branches.grow(border.branch, border.tokens, self._needed())
        if run is None:
            if not self._make_room(border):
                return None
            run = self._branches.grow(border.branch, border.tokens, self._needed())
        assert run is not None
        self._running[run.seq_id] = (border, Branch(run.seq_id, run.start + len(run.tokens)))
        return run

    def _needed(self) -> set[Branch]:
        return self._beam.branches | {branch for _, branch in self._running.values()}

    def _make_room(self, border: Border) -> bool:
        """Give up the least likely sequence that is not about to be decoded."""
        kept = {border.branch.seq_id, *self._running}
        kept |= {running.branch.seq_id for running, _ in self._running.values()}
        weakest = self._beam.weakest([s for s in self._seq_ids if s not in kept])
        if weakest is not None:
            self._beam.forget(weakest)
        return weakest is not None

    def _recover(self) -> None:
        """Where all rows were given up too early, go on with the tokeniser's own row."""
        if self._beam.lost:
            text = bytes(self._beam.text)
            self._restart([*self._prompt, *self._model.tokenizer.encode(text)], len(text))

    def _mend(self) -> None:
        """Write the likeliest row as the tokeniser would, as far as later text cannot change it.

        Which tokens make up a word is known only at its end, and a row that spells a word in
        odd tokens is a bad past for all that follows: members copy from what they read.
        """
        text = self._beam.text
        end = len(text) - 1
        likeliest = self._beam.likeliest()
        if likeliest is None or likeliest[1] != end or text[end - 1 : end].isspace():
            return
        branch = likeliest[0]
        row = self._branches.row(branch)
        tokens = self._model.tokenizer.word(bytes(text[self._mended : end]))
        count, left = 0, end - self._mended
        while left > 0:
            count += 1
            left -= len(self._model.vocabulary.pieces[row[-count]])
        if left < 0:
            return
        self._mended = end
        if tuple(row[len(row) - count :]) != tokens:
            self._beam.rewrite(branch, len(row) - count, tokens)

    def _restart(self, row: Sequence[int], covers: int) -> Border:
        """Begin again with one row of tokens, prompt included, for all of the text."""
        branch = self._branches.begin(row)
        border = Border(0.0, branch, row[branch.length :], covers)
        self._beam.begin(border)
        self._mended = covers
        return border
