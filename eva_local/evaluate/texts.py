"""Texts to measure on: from plain files and from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from eva_local.errors import InputError

# The field of a JSON line that holds its text, the first that is there.
_FIELDS = ("text", "question", "prompt")
# Short enough for a context of 4,096 tokens, whatever the vocabulary.
_LONGEST = 3000


def read_texts(path: Path, limit: int | None = None) -> list[bytes]:
    """Return the texts of a file, at most `limit` bytes of them in all.

    A `.jsonl` file has one text a line, in the field `text`, `question` or `prompt`; any other
    file is one text. Long texts are cut between words, each part short enough for a context.
    Raises InputError where there is no text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 text: {error}") from error
    whole = _json_texts(path, content) if path.suffix == ".jsonl" else [content]
    parts, left = [], limit
    for text in whole:
        data = text.encode()
        if left is not None:
            data = data[:left].decode(errors="ignore").encode()
            left -= len(data)
        parts += pieces(data)
    if not parts:
        raise InputError(f"{path}: holds no text")
    return parts


def _json_texts(path: Path, content: str) -> list[str]:
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number}: no JSON: {error}") from error
        found = [row[field] for field in _FIELDS if field in row] if isinstance(row, dict) else []
        if not found or not isinstance(found[0], str):
            raise InputError(f"{path}: line {number}: has no text field: {', '.join(_FIELDS)}")
        texts.append(found[0])
    return texts


def cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Cut UTF-8 text in two, the first at most `size` bytes: between words, else characters."""
    if len(data) <= size:
        return data, b""
    place = data.rfind(b" ", 1, size + 1)
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
