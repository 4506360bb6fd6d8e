"""A small model with all the awkward tokens that real vocabularies have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eva_local.llama.memory import Snapshot, retained
from eva_local.llama.model import ALL, Logits, Run
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Kind, Vocabulary

# Duplicates ("the" twice, "\xc3" also a byte token), split characters, pieces inside pieces.
WORDS_A = [
    *(bytes([c]) for c in b" abcdefghijklmnopqrstuvwxyz.,!"),
    *(b"the", b" the", b"the", b"th", b"he", b"ing", b" un", b" unb", b"elie", b"vable"),
    *(b"\xc3", b"\xc3\xa9", b"\xf0\x9f", b"\x98\x80", b"\xf0\x9f\x98\x80", "中".encode()),
    *(b"\n", b"  ", b"    ", b" Paris", b"Par", b"is"),
]
WORDS_B = [
    *(bytes([c]) for c in b" abcdefghijklmnopqrstuvwxyz?;"),
    *(b" the", b"t", b"ther", b"there", b" a", b"an", b" believ", b"able", b"un"),
    *(b"\xa9", b"\xf0\x9f\x98", b"\xe4\xb8", "中文".encode(), b"\xcc\x81", "ا".encode()),
    *(b"\n\n", b"   ", b"Paris", b" Pa"),
]

# Nested, overlapping and duplicate pieces, halves of characters, and a byte that is a word too.
NESTED = [b"a", b"ab", b"abc", b"b", b"bc", b"c", b"ab", b"\xc3", b"\xc3\xa9", b" a", b" "]


def vocabulary(words: Sequence[bytes], *, missing: Sequence[int] = ()) -> Vocabulary:
    """Build a vocabulary: four control tokens, the byte tokens, the words, a pad, a user token."""
    spare = [byte for byte in range(256) if byte not in missing]
    words = [word for word in words if not set(missing) & set(word)]
    pieces = [b"", b"", b"", b"", *(bytes([b]) for b in spare), *words, b"[PAD]", b"<tool>"]
    kinds = [
        *(Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, Kind.CONTROL),
        *([Kind.BYTE] * len(spare)),
        *([Kind.NORMAL] * len(words)),
        *(Kind.UNUSED, Kind.USER),
    ]
    markers = {"<s>": 1, "</s>": 2, "<|im_end|>": 3, "<tool>": len(pieces) - 1}
    return Vocabulary(pieces, kinds, [2, 3], bos_id=1, eos_id=3, add_bos=True, markers=markers)


def longest_match(vocab: Vocabulary) -> Callable[[bytes], list[int]]:
    """Return a tokeniser that always takes the longest piece."""
    ids = vocab.ids
    longest = max(map(len, ids))

    def raw(text: bytes) -> list[int]:
        text.decode()  # like real tokenisers, no half characters
        found, at = [], 0
        while at < len(text):
            for size in range(min(longest, len(text) - at), 0, -1):
                if text[at : at + size] in ids:
                    break
            else:
                at += 1  # like real tokenisers, what cannot be spelled is dropped
                continue
            found.append(ids[text[at : at + size]])
            at += size
        return found

    return raw


class FakeModel:
    """A model whose logits are a hash of the tokens in its cache, so that any slip shows.

    One that is `endless` never wants END.
    """

    chat_template = (
        "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '<|im_end|>' }}"
        "{% endfor %}{{ '<s>assistant\n' }}"
    )

    def __init__(
        self,
        words: Sequence[bytes] = WORDS_A,
        *,
        missing: Sequence[int] = (),
        n_ctx: int = 4096,
        n_batch: int = 64,
        can_roll_back: bool = True,
        snapshots: int = 0,
        endless: bool = False,
        logits: Callable[[Sequence[int]], Logits] | None = None,
    ) -> None:
        self.path = Path("fake.gguf")
        self.vocabulary = vocabulary(words, missing=missing)
        self.tokenizer = Tokenizer(self.vocabulary, longest_match(self.vocabulary))
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.can_roll_back = can_roll_back
        self.n_snapshots = 0 if can_roll_back else snapshots
        self.n_branches = 8 + self.n_snapshots
        self._snapshots: dict[int, list[Snapshot[None]]] = {}
        self.cache: dict[int, list[int]] = {}
        self.decoded = 0
        self._endless = endless
        self._logits = logits or self._hashed

    def _hashed(self, tokens: Sequence[int]) -> Logits:
        seed = hashlib.sha256(repr(list(tokens)).encode()).digest()[:8]
        generator = np.random.default_rng(int.from_bytes(seed))
        row = generator.normal(0, 4, len(self.vocabulary)).astype(np.float32)
        if self._endless:
            row[list(self.vocabulary.end_ids)] = -30
        return row

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        rows: list[Logits | None] = []
        for run in runs:
            cache = self.cache.setdefault(run.seq_id, [])
            assert run.start == len(cache), "positions must follow each other"
            assert run.logits <= len(run.tokens), "only tokens of a run have logits"
            assert len(cache) + len(run.tokens) <= self.n_ctx, "no room left in the context"
            cache += run.tokens
            self.decoded += len(run.tokens)
            last = [self._logits(cache[: len(cache) - n]) for n in reversed(range(run.logits))]
            rows.append(np.stack(last) if run.logits > 1 else last[0] if last else None)
        return rows

    def holds(self, seq_id: int, start: int) -> int:
        length = len(self.cache.get(seq_id, ()))
        if start <= length if self.can_roll_back else start == length:
            return start
        lengths = [each.length for each in self._snapshots.get(seq_id, ())]
        return max((each for each in lengths if each <= start), default=0)

    def remove(self, seq_id: int, start: int) -> int:
        if seq_id == ALL:
            assert start == 0
            self.cache.clear()
            self._snapshots.clear()
            return 0
        kept = self.holds(seq_id, start)
        del self.cache.setdefault(seq_id, [])[kept:]
        held = self._snapshots.get(seq_id, ())
        self._snapshots[seq_id] = [each for each in held if each.length <= kept]
        return kept

    def copy(self, source: int, target: int, length: int = -1) -> int:
        row = self.cache.get(source, [])
        self.cache[target] = list(row)
        self._snapshots[target] = list(self._snapshots.get(source, ()))
        return self.remove(target, self.holds(source, len(row) if length < 0 else length))

    def snapshot(self, seq_id: int, *, lasting: bool) -> None:
        held, length = self._snapshots.get(seq_id, []), len(self.cache.get(seq_id, ()))
        if self.n_snapshots and length and all(each.length != length for each in held):
            new: Snapshot[None] = Snapshot(length, lasting, None)
            self._snapshots[seq_id] = retained([*held, new], self.n_snapshots)

    def close(self) -> None:
        self.cache.clear()
