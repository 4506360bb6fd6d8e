"""One member's part in one text in the space of bytes: its rows of tokens, and its votes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from eva_local.cache.branches import Branch, Branches
from eva_local.cache.context import TAIL, marks
from eva_local.fusion.votes import Floats, Ids, Vote
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.base import Beginning, Constraint, ControlTokens
from eva_local.spaces.bytes.beam import ByteBeam
from eva_local.spaces.bytes.row import END, Border, Offer
from eva_local.spaces.bytes.trie import Trie

# A vote holds every byte: what a member's rows leave out is no proof that it cannot come.
_FLOOR = 1e-5
_SPACE = 0x20


class ByteState:
    """A member that says how likely each next byte is, whatever its tokens are.

    It follows rows in some sequences of `model`; `trie` is that of its vocabulary.
    """

    def __init__(
        self,
        model: Model,
        seq_ids: Sequence[int],
        trie: Trie,
        threshold: float,
        before: Mapping[str, Floats] | None = None,
        control: ControlTokens | None = None,
    ) -> None:
        self._model = model
        self._control = control or ControlTokens(model)
        self._seq_ids = seq_ids
        self.cache = Branches(model, seq_ids)
        #: All that it thinks of as the tokens of the text.
        self.beam = ByteBeam(model.tokenizer, trie, threshold, before)
        self._mends = threshold > 0
        self._prompt: Sequence[int] = ()
        self._marks: Sequence[int] = ()
        self._thought_end: int | None = None
        self._read = Branch(seq_ids[0], 0)
        self._running: dict[int, tuple[Border, Branch]] = {}
        # What may come next, and how many tokens of it to decode along with what is pending.
        self._draft = b"", 0
        # Logits after rows that may come next.
        self._foreseen: dict[Branch, Logits] = {}
        self._guess = -1
        # The text before this byte is in the tokeniser's own tokens.
        self._mended = 0

    @property
    def room(self) -> int:
        return self._model.n_ctx - self.beam.longest() - 1

    @property
    def unread(self) -> int:
        return self.beam.unread()

    @property
    def ready(self) -> bool:
        return self._read.length == len(self._prompt) and not self.beam.wanted()

    def rows(self) -> list[Sequence[int]]:
        """Return the rows of tokens that are followed, prompt included."""
        return [self.cache.row(branch) for branch in self.beam.branches()]

    def clear(self) -> None:
        self.cache.clear()

    def start(self, begun: Beginning) -> None:
        prompt, scored = begun.prompt, begun.scored
        self._prompt, self._thought_end = list(prompt), begun.thought_end
        self._marks = marks(self._model, prompt, begun.shared, self.rows(), scored)
        self._read = self.cache.begin(prompt)
        kept = self.cache.likelihood.begin(prompt, self._read.length, scored)
        if kept < self._read.length:
            self._read = self.cache.begin(prompt[: kept + 1])
        self.beam.clear()
        self._running, self._foreseen, self._draft = {}, {}, (b"", 0)
        self._mended = 0

    def tokens(self, text: bytes) -> Sequence[int]:
        return [*self._prompt, *self._model.tokenizer.encode(text)]

    def pending(self, limit: int | None = None) -> list[Run]:
        draft, self._draft = self._draft, (b"", 0)
        if self._read.length < len(self._prompt):
            return [self._rest_of_prompt(limit)]
        self._running, left = {}, limit
        runs: list[Run] = []
        for border in (wanted := self.beam.wanted()):
            self._enter(border, self._where(border))
            if not self.beam.holds(border):
                continue
            tokens: Sequence[int] = []
            if border is wanted[0]:
                self._foreseen, tokens = {}, self._drafted(wanted, *draft, left)
            # The first goes whatever its length: nothing else can be done before it.
            fits = not runs or left is None or len(border.tokens) <= left
            run = self._grow(border, tokens) if fits else None
            if run is None:
                break
            runs.append(run)
            left = None if left is None else left - len(run.tokens)
        return runs

    def take(self, run: Run, logits: Logits | None) -> None:
        decoded = self.cache.decoded(run)
        if self._read.length < len(self._prompt):
            self._read = decoded
            if decoded.length in self._marks:
                self.cache.save(decoded, lasting=True)
            if logits is None:
                return
            border, branch = Border(0.0, self._read, [], 0), self._read
            self.beam.begin(border)
        elif run.seq_id not in self._running:
            assert logits is not None
            self._foreseen[decoded] = logits.copy()
            return
        else:
            border, branch = self._running.pop(run.seq_id)
            if run.logits > 1:
                assert logits is not None
                for length, row in enumerate(logits[1:], branch.length + 1):
                    self._foreseen[Branch(run.seq_id, length)] = row
                logits = logits[0]
        assert logits is not None
        self._enter(border, branch, logits)

    def _enter(self, border: Border, branch: Branch | None, logits: Logits | None = None) -> None:
        if branch is None or not self.beam.holds(border):
            return
        logits = self._foreseen[branch] if logits is None else logits
        logits = self._control.ended(logits, self._thought_end)
        self.beam.decoded(border, branch, logits)
        # What follows an unlikely row, or came before the newest byte, is not what it wants.
        row = self.beam.likeliest()
        if row is not None and (row.branch, row.covers) == (branch, len(self.beam.text)):
            self._control.hear(logits)
        self._save()
        self._recover()

    def propose(self, data: bytes, most: int) -> None:
        self._draft = data, most

    @property
    def ahead(self) -> bytes:
        here, tip = self._line()
        return self._model.vocabulary.join(self.cache.row(tip)[here.length :])

    def guess(self) -> tuple[bytes, float]:
        here, tip = self._line()
        logits = self._foreseen.get(tip)
        token_id, share = -1, 0.0
        if logits is not None:
            token_id = int(logits.argmax())
            share = 1 / float(np.exp(logits - logits[token_id]).sum())
        elif here.length and (row := self.beam.likeliest()) is not None:
            token_id, share = row.likeliest()
        self._guess = token_id
        vocabulary = self._model.vocabulary
        is_text = token_id >= 0 and vocabulary.speakable[token_id]
        return vocabulary.pieces[token_id] if is_text else b"", share

    def foresee(self) -> Run | None:
        _, tip = self._line()
        longer = any(b.seq_id == tip.seq_id and b.length > tip.length for b in self._needed())
        if longer or not self._model.can_roll_back or self._model.n_ctx <= tip.length + 1:
            return None
        return self.cache.grow(tip, [self._guess], ())

    def _line(self) -> tuple[Branch, Branch]:
        """Return the row that the text ends with, and how far it goes on by what is foreseen."""
        row = self.beam.likeliest()
        if row is None or row.covers < len(self.beam.text):
            return (nowhere := Branch(self._seq_ids[0], 0)), nowhere
        tip = here = row.branch
        while (longer := replace(tip, length=tip.length + 1)) in self._foreseen:
            tip = longer
        return here, tip

    def _drafted(self, wanted: list[Border], data: bytes, most: int, n: int | None) -> list[int]:
        """Return what to draft behind the first border; `n` tokens hold what is wanted, too."""
        border, tokenizer = wanted[0], self._model.tokenizer
        can = self._model.can_roll_back and tokenizer.missing_bytes.isdisjoint(data)
        if not can or border.covers < len(self.beam.text):
            return []
        size, whole = len(border.tokens), sum(len(each.tokens) for each in wanted)
        most = min(most + 1 - size, self.room - 1, most if n is None else n - whole)
        return list(tokenizer.encode(data)[: max(most, 0)])

    def _where(self, border: Border) -> Branch | None:
        """Return where a border's row is if it was foreseen."""
        branch = self.cache.ahead(border.branch, border.tokens)
        return branch if branch in self._foreseen else None

    def look(self) -> None:
        """Take what was foreseen of the text, where nothing else must be decoded."""
        while self._foreseen and (wanted := self.beam.wanted()) and all(map(self._where, wanted)):
            for border in wanted:
                self._enter(border, self._where(border))

    def commit(self, symbol: int) -> None:
        self.beam.append(symbol)
        self._recover()
        if symbol == _SPACE and self._mends:
            self._mend()

    def settle(self) -> None:
        """Take it that a piece ends where the text ends, and is not the beginning of another."""
        self.beam.settle()
        # The tokens that the member itself chose stand, odd or not.
        self._mended = len(self.beam.text)

    def vote(self, symbols: Ids) -> Vote:
        """Return the member's vote on `symbols`: the bytes that all members can spell, and END."""
        masses = self.beam.next()[symbols] * (1 - _FLOOR) + _FLOOR / (END + 1)
        return Vote(symbols, masses / masses.sum())

    def pieces_within(self, count: int, grammar: Constraint) -> Offer:
        """Return what `ByteBeam.pieces` does, of what a grammar allows; never nothing."""
        found = self.beam.pieces_within(count, grammar)
        if found[0]:
            return found
        # No token that goes on like this is allowed: then single bytes are.
        allowed = np.flatnonzero(grammar.allowed)
        pieces = [b"" if symbol == END else bytes([symbol]) for symbol in allowed.tolist()]
        return pieces, self.beam.next()[allowed], np.ones(len(allowed))

    def vote_on(self, pieces: Sequence[bytes], shares: Floats, ends: Floats) -> Vote:
        """Return the member's vote on pieces that another (or this one) has put forward."""
        masses = np.maximum(self.beam.support(pieces, shares, ends), 0)
        total = masses.sum()
        spread = masses / total if total > 0 else np.full(len(pieces), 1 / len(pieces))
        return Vote(np.arange(len(pieces)), spread * (1 - _FLOOR) + _FLOOR / len(pieces))

    def _rest_of_prompt(self, limit: int | None) -> Run:
        start = self._read.length
        end, every = self.cache.likelihood.stretch(start)
        end = min([end, *(mark for mark in self._marks if mark > start)])
        tokens = self._prompt[start : end if limit is None else min(end, start + limit)]
        run = self.cache.grow(self._read, tokens, ())
        assert run is not None
        whole = start + len(tokens) == len(self._prompt)
        return replace(run, logits=int(whole), every=every)

    def _grow(self, border: Border, draft: Sequence[int]) -> Run | None:
        """Put a border's tokens behind its row; None where that must wait for another round."""
        tokens = [*border.tokens, *draft]
        while (run := self.cache.grow(border.branch, tokens, self._needed(border))) is None:
            if not self._make_room(border):
                return None
        length = run.start + len(run.tokens) - len(draft)
        self._running[run.seq_id] = (border, Branch(run.seq_id, length))
        self._foreseen = {b: row for b, row in self._foreseen.items() if b.seq_id != run.seq_id}
        return replace(run, logits=1 + len(draft))

    def _needed(self, border: Border | None = None) -> set[Branch]:
        return self.beam.branches(border) | {branch for _, branch in self._running.values()}

    def _make_room(self, border: Border) -> bool:
        """Give up the least likely sequence that is not about to be decoded."""
        kept = {border.branch.seq_id, *self._running, *self.cache.saved}
        kept |= {running.branch.seq_id for running, _ in self._running.values()}
        weakest = self.beam.weakest([s for s in self._seq_ids if s not in kept])
        if weakest is not None:
            self.beam.forget(weakest)
        return weakest is not None

    def _recover(self) -> None:
        """Where all rows were given up too early, go on with the tokeniser's own row."""
        if self.beam.lost:
            text = bytes(self.beam.text)
            row = [*self._prompt, *self._model.tokenizer.encode(text)]
            branch = self.cache.begin(row)
            self.beam.begin(Border(0.0, branch, row[branch.length :], len(text)))
            self._mended = len(text)

    def _save(self) -> None:
        """Keep the likeliest row where what was mended ends: from there the next word may be."""
        row = self.beam.likeliest() if self._model.n_snapshots else None
        if row is not None and row.covers == self._mended:
            self.cache.save(row.branch, lasting=False)

    def _mend(self) -> None:
        """Write the likeliest row as the tokeniser would, as far as later text cannot change it.

        Which tokens make up a word is known only at its end, and a row that spells a word in
        odd tokens is a bad past for all that follows: members copy from what they read.
        """
        text = self.beam.text
        end = len(text) - 1
        likeliest = self.beam.likeliest()
        if likeliest is None or likeliest.covers != end or text[end - 1 : end].isspace():
            return
        branch = likeliest.branch
        row = self.cache.row(branch)
        tokens = self._model.tokenizer.word(bytes(text[self._mended : end]))
        count, left = 0, end - self._mended
        while left > 0:
            count += 1
            left -= len(self._model.vocabulary.pieces[row[-count]])
        if left < 0:
            return
        self._mended = end
        kept = len(row) - count
        # To go far back would cost more than the usual tokens are worth.
        odd = tuple(row[kept:]) != tokens
        if odd and self.cache.behind(replace(branch, length=kept)) <= TAIL:
            self.beam.rewrite(branch, kept, tokens)
        self._save()
