"""Lines of JSON of a file; what is not as it should be names its line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from eva_local.errors import InputError
from eva_local.jsonl import is_torn
from eva_local.reading import ReadError, read, shown

T = TypeVar("T")


class Checked:
    """A JSON object that came from outside."""

    def __init__(self, where: str, value: object) -> None:
        """Take the object that stands at `where`; raise InputError for another JSON value."""
        self._where = where
        if not isinstance(value, dict):
            raise self.problem("is no JSON object")
        self.values: Mapping[str, object] = value

    def problem(self, what: str) -> InputError:
        """Return an error about this object."""
        return InputError(f"{self._where} {what}")

    def read(self, kind: type[T]) -> T:
        """Return it as a `kind`; raise InputError for what does not fit."""
        try:
            return read(self.values, kind)
        except ReadError as error:
            raise InputError(f"{self._where}: {error}") from error

    def kind(self, *known: str) -> str:
        """Return the one of `known` that its key `kind` says; raise InputError for another."""
        kind = self.values.get("kind")
        if kind not in known:
            raise self.problem(f"has kind {shown(kind)}, and it can be {', '.join(known)}")
        return str(kind)

    def refuse_other_header(self, kind: str, schema: int) -> None:
        """Raise InputError where it begins a file of another kind, or is written in another way."""
        self.kind(kind)
        if self.values.get("schema") != schema:
            found = shown(self.values.get("schema"))
            raise self.problem(f"has schema {found}, and this eva-local reads schema {schema}")


def checked_lines(path: Path, data: bytes) -> tuple[list[Checked], bool]:
    """Return the objects of JSON Lines, and whether a torn last line was left out.

    Raises InputError for any other line that is no JSON object.
    """
    *lines, last = data.split(b"\n")
    torn = is_torn(last)
    if last and not torn:
        lines.append(last)
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)], torn


def _parsed(path: Path, number: int, line: bytes) -> Checked:
    where = f"{path}, line {number}"
    try:
        return Checked(where, json.loads(line))
    except (ValueError, RecursionError) as error:
        # A wrong UTF-8 byte is a ValueError too.
        raise InputError(f"{where} is no JSON: {error}") from error
