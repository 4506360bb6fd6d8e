"""Bytes to tokens of one member, exact to the byte whatever the bytes are."""

import functools
import re
from collections.abc import Callable, Iterator

from eva_local.errors import PromptError
from eva_local.llama.vocab import Vocabulary

# A run that the model's own tokeniser cannot reproduce is halved down to this many bytes.
_SHORT = 16
# Pairs of tokens, and words, that are remembered: a text has a few new ones in each word.
_PAIRS = 1 << 16
_WORDS = 1 << 14
_SPACE_MARK = "\u2581".encode()
# Python's surrogateescape turns each byte that is no UTF-8 into one of these.
_STRETCHES = re.compile("([\udc80-\udcff]+)|[^\udc80-\udcff]+")


class Tokenizer:
    """Encode bytes so that the pieces of the tokens join to exactly those bytes.

    `raw` is the model's own tokeniser: valid UTF-8 in, ids out, no BOS, no control tokens
    parsed. It is not trusted: some put a space in front, some normalise, some find control
    tokens in plain text, and none of them takes half a character. Where its answer does not
    join to the input, the input is cut smaller, and at last spelled piece by piece.
    """

    def __init__(self, vocabulary: Vocabulary, raw: Callable[[bytes], list[int]]) -> None:
        self.vocabulary = vocabulary
        self._raw = raw
        self._longest = max(map(len, vocabulary.ids), default=0)
        #: Bytes that no token of the vocabulary can spell (some vocabularies lack a few).
        self.missing_bytes = frozenset(
            byte for byte in range(256) if bytes([byte]) not in vocabulary.ids
        )
        self._adds_space = vocabulary.join(raw(b"a")) == b" a"
        self.may_follow = functools.lru_cache(_PAIRS)(self._may_follow)
        self.word = functools.lru_cache(_WORDS)(lambda data: tuple(self.encode(data)))

    def encode(self, data: bytes) -> list[int]:
        """Return tokens whose pieces join to `data`.

        Raises PromptError where the vocabulary has no token for one of the bytes.
        """
        ids: list[int] = []
        for run, is_text in _runs(data):
            ids += self._encode_text(run) if is_text else self._spell(run)
        return ids

    def read(self, data: bytes) -> list[int]:
        """Return the tokens of a text that begins a prompt, as the model's own tokeniser has it.

        SentencePiece takes U+2581 for a space, and may put a space in front; both stay, for so
        the model was taught. All else is as in `encode`.
        """
        spaced = (b" " if self._adds_space else b"") + data.replace(_SPACE_MARK, b" ")
        ids = self._raw(data)
        return ids if self._is_exact(ids, spaced) else self.encode(data)

    def least(self, n_bytes: int) -> int:
        """Return how many tokens so many bytes have at least: none is longer than the longest."""
        return -(-n_bytes // max(self._longest, 1))

    def _may_follow(self, left: int, right: int) -> bool:
        """Return whether the model's own tokens of some text have these two beside each other.

        A row of byte-pair tokens is the tokeniser's own if all of its pairs are (Vieira et al.
        2025, "Language Models over Canonical Byte-Pair Encodings"); a model was trained on no
        others. True where it rests on what comes after them: white space, parts of characters.
        """
        pieces = self.vocabulary.pieces
        pair = [pieces[left], pieces[right]]
        text = b"".join(pair)
        if pair[1][-1:].isspace() or not all(is_text for _, is_text in _runs(text)):
            return True
        return [pieces[token_id] for token_id in self.encode(text)] == pair

    def _encode_text(self, text: bytes) -> list[int]:
        ids = self._raw_without_space(text)
        if self._is_exact(ids, text):
            return ids
        if len(text) <= _SHORT:
            return self._spell(text)
        middle = border(text, len(text) // 2)
        return self._encode_text(text[:middle]) + self._encode_text(text[middle:])

    def _raw_without_space(self, text: bytes) -> list[int]:
        if not self._adds_space:
            return self._raw(text)
        # The space is put before the first character only, so a newline takes it.
        ids = self._raw(b"\n" + text)
        joined, count = b"", 0
        while count < len(ids) and len(joined) < 2:
            joined += self.vocabulary.pieces[ids[count]]
            count += 1
        return ids[count:] if joined == b" \n" else self._spell(text)

    def _is_exact(self, ids: list[int], text: bytes) -> bool:
        speakable = self.vocabulary.speakable
        return self.vocabulary.join(ids) == text and all(speakable[i] for i in ids)

    def _spell(self, data: bytes) -> list[int]:
        """Cover `data` from the left with the longest pieces there are."""
        ids, at = [], 0
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                token_id = self.vocabulary.ids.get(data[at : at + length])
                if token_id is not None:
                    break
            else:
                raise PromptError(
                    f"the vocabulary has no token for the byte 0x{data[at]:02x}; "
                    "leave that character out, or use a member with byte tokens"
                )
            ids.append(token_id)
            at += length
        return ids


def _runs(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Split into stretches of valid UTF-8 (True) and of bytes that are none (False)."""
    for stretch in _STRETCHES.finditer(data.decode("utf-8", "surrogateescape")):
        yield stretch[0].encode("utf-8", "surrogateescape"), stretch[1] is None


def without(data: bytes, missing: frozenset[int], mark: bytes = b"") -> bytes:
    """Leave out the characters that have a byte of `missing`, or put a `mark` for them."""
    if not missing or missing.isdisjoint(data):
        return data
    characters = data.decode("utf-8", "surrogateescape")
    pieces = (each.encode("utf-8", "surrogateescape") for each in characters)
    return b"".join(piece if missing.isdisjoint(piece) else mark for piece in pieces)


def border(text: bytes, at: int, least: int = 1) -> int:
    """Return an offset in UTF-8, at most `at`: before a space from `least` on, else a character."""
    space = text.rfind(b" ", max(least, 1), at + 1)
    if space > 0:
        return space
    while text[at] & 0xC0 == 0x80:
        at -= 1
    return at
