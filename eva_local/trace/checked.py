"""JSON objects of a file, read key by key; what is not as it should be names its line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TypeVar

from eva_local.errors import InputError
from eva_local.jsonl import is_torn

_Value = TypeVar("_Value")
_Word = TypeVar("_Word", bound=str)


class Checked:
    """A JSON object that came from outside."""

    def __init__(self, where: str, value: object) -> None:
        """Take the object that stands at `where`; raise InputError for another JSON value."""
        self._where = where
        if not isinstance(value, dict):
            raise self.problem("is no JSON object")
        self._values: dict[str, object] = value

    def problem(self, what: str) -> InputError:
        """Return an error about this object."""
        return InputError(f"{self._where} {what}")

    def __contains__(self, key: str) -> bool:
        """Return whether there is a value of `key`."""
        return key in self._values

    def has(self, key: str, kind: type) -> bool:
        """Return whether the value of `key` is of `kind`."""
        return isinstance(self._get(key, object), kind)

    def text(self, key: str) -> str:
        """Return a string."""
        return self._get(key, str)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        return self._get(key, bool)

    def word(self, key: str, known: tuple[_Word, ...]) -> _Word:
        """Return the one of `known` that stands at `key`."""
        value = self._get(key, str)
        for word in known:
            if word == value:
                return word
        raise self.problem(f"has {key} {value!r}, and it can be {', '.join(known)}")

    def number(self, key: str) -> float:
        """Return a finite number."""
        return self._number(key, self._get(key, object))

    def share(self, key: str) -> float:
        """Return a number from 0 to 1, give or take rounding."""
        value = self.number(key)
        if not -1e-6 <= value <= 1 + 1e-6:
            raise self.problem(f"has {key} {value}, which is not from 0 to 1")
        return value

    def whole(self, key: str) -> int:
        """Return a whole number of 0 or more."""
        return self._whole(key, self._get(key, object))

    def hexadecimal(self, key: str) -> bytes:
        """Return the bytes that are written in hexadecimal."""
        try:
            return bytes.fromhex(self.text(key))
        except ValueError as error:
            raise self.problem(f"has {key} that is not hexadecimal") from error

    def texts(self, key: str) -> tuple[str, ...]:
        """Return an array of strings."""
        return tuple(self._is(key, value, str) for value in self._get(key, list))

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return an array of finite numbers."""
        return tuple(self._number(key, value) for value in self._get(key, list))

    def wholes(self, key: str) -> tuple[int, ...]:
        """Return an array of whole numbers of 0 or more."""
        return tuple(self._whole(key, value) for value in self._get(key, list))

    def table(self, key: str) -> dict[str, object]:
        """Return an object as it is."""
        return self._get(key, dict)

    def part(self, key: str) -> Checked:
        """Return an object to read on."""
        return Checked(f"{self._where}, {key}", self._get(key, object))

    def parts(self, key: str) -> list[Checked]:
        """Return an array of objects to read on."""
        values = self._get(key, list)
        return [Checked(f"{self._where}, {key}[{i}]", value) for i, value in enumerate(values)]

    def _get(self, key: str, kind: type[_Value]) -> _Value:
        if key not in self._values:
            raise self.problem(f"has no {key}")
        return self._is(key, self._values[key], kind)

    def _is(self, key: str, value: object, kind: type[_Value]) -> _Value:
        if not isinstance(value, kind):
            raise self.problem(f"has a wrong {key}: {str(value)[:60]}")
        return value

    def _number(self, key: str, value: object) -> float:
        # Python takes true for 1, and reads NaN, which JSON does not know.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.problem(f"has a wrong {key}: {str(value)[:60]}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.problem(f"has {key} {number}")
        return number

    def _whole(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.problem(f"has a wrong {key}: {str(value)[:60]}")
        return value


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
