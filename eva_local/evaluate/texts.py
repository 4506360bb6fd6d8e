"""Texts cut into parts, and without what cannot be spelled."""

from __future__ import annotations

# Short enough for a context of 4,096 tokens, whatever the vocabulary.
_LONGEST = 3000
# A cut is between words where one ends so near; Chinese has a space once in a while.
_LONGEST_WORD = 100


def cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Cut UTF-8 text in two, the first at most `size` bytes: between words, else characters."""
    if len(data) <= size:
        return data, b""
    place = data.rfind(b" ", max(1, size - _LONGEST_WORD), size + 1)
    if place < 0:
        place = size
        while data[place] & 0xC0 == 0x80:
            place -= 1
    return data[:place], data[place:]


def pieces(data: bytes) -> list[bytes]:
    """Cut UTF-8 text into parts that are short enough for a context."""
    found = []
    while data:
        part, data = cut(data, _LONGEST)
        found.append(part)
    return found


def without(text: bytes, missing: frozenset[int]) -> bytes:
    """Leave out the characters that have a byte of `missing`."""
    if missing.isdisjoint(text):
        return text
    characters = (character.encode() for character in text.decode())
    return b"".join(data for data in characters if missing.isdisjoint(data))
