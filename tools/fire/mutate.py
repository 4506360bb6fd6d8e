"""Ways to damage data: bytes, JSON and TOML. Each draws all that it does from one generator."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_WIDTHS = (1, 2, 4, 8)
_ODD_INTEGERS = (
    0,
    1,
    2,
    7,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
)
_ODD_BYTES = (
    *(b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\x80", b"\xef\xbb\xbf"),
    *(b"\r", b"\n", b"\r\n", b"\x1b[31m", b"\xe2\x80\xa8", b"\xfe\xff", b'"', b"\\", b"{", b"]"),
)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**400, -(10**30)),
    *("", " ", "\0", "é", "\ud800", "x" * 5000, "\u202e", "NaN", [], {}, [[]], [None], {"": {}}),
    *(float("nan"), float("inf"), -float("inf")),
)


def damaged(chance: random.Random, ways: Sequence[Mutation], samples: Sequence[bytes]) -> bytes:
    """Return one of the samples, damaged in one to four ways."""
    data = chance.choice(samples)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        data = chance.choice(ways)(chance, data, samples)
    return data


def _place(chance: random.Random, data: bytes) -> int:
    return chance.randrange(len(data) + 1)


def flip(chance: random.Random, data: bytes, __: Sequence[bytes]) -> bytes:
    """Flip some bits."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8)) if found else 0):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def cut(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Leave the end out."""
    return data[: _place(chance, data)]


def leave_out(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Leave some bytes out."""
    start = _place(chance, data)
    return data[:start] + data[start + chance.choice((1, 3, 40, 400)) :]


def repeat(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Have a section twice, or many times."""
    start = _place(chance, data)
    part = data[start : start + chance.choice((1, 8, 100, 1000))]
    return data[:start] + part * chance.choice((2, 2, 3, 50)) + data[start + len(part) :]


def splice(chance: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Go on, or go on for a while, as another sample does."""
    other = chance.choice(samples)
    start, of = _place(chance, data), _place(chance, other)
    if chance.random() < 0.5:
        return data[:start] + other[of:]
    part = other[of : of + chance.choice((4, 30, 300))]
    return data[:start] + part + data[start:]


def insert(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Put in bytes that are no UTF-8, ends of lines, marks."""
    start = _place(chance, data)
    return data[:start] + chance.choice(_ODD_BYTES) * chance.choice((1, 1, 4)) + data[start:]


def overwrite(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Write an odd whole number over some bytes, as lengths and counts are written."""
    width = chance.choice(_WIDTHS)
    number = chance.choice(_ODD_INTEGERS) % (1 << 8 * width)
    start = _place(chance, data)
    return data[:start] + number.to_bytes(width, "little") + data[start + width :]


BYTES: tuple[Mutation, ...] = (flip, cut, leave_out, repeat, splice, insert, overwrite)


def _lines(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Have lines twice, in another order, or not at all."""
    lines = data.split(b"\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    way = chance.randrange(4)
    if way == 0:
        lines.insert(other, lines[at])
    elif way == 1:
        lines[at], lines[other] = lines[other], lines[at]
    elif way == 2:
        del lines[at]
    else:
        lines[at] = lines[at][: _place(chance, lines[at])]
    return b"\n".join(lines)


_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STRING = re.compile(rb'"(?:[^"\\\n]|\\.)*"')
_NUMBERS = (
    *(b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf", b"-1", b"0", b"1e999", b"-0", b"1e-400"),
    *(b"9" * 400, b"9" * 5000, b"2147483648", b"18446744073709551616", b"0x10", b"01", b"1_000"),
)
_STRINGS = (b'""', b'"\\ud800"', b'"\\u0000"', b'"\\x"', b"true", b"null", b"[]", b"{}", b"'a'")


def _exchange(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Write something else in place of a number or a text."""
    pattern, others = chance.choice(((_NUMBER, _NUMBERS), (_STRING, _STRINGS)))
    found = [*pattern.finditer(data)]
    if not found:
        return data
    one = chance.choice(found)
    return data[: one.start()] + chance.choice(others) + data[one.end() :]


def nest(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Nest something very deeply."""
    depth = chance.choice((3, 50, 500, 1500, 20_000, 100_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"{a=", b"}"), (b"(", b")")))
    found = [*_STRING.finditer(data)] or [*_NUMBER.finditer(data)]
    start, end = chance.choice(found).span() if found else (len(data), len(data))
    inner = data[start:end] or b"1"
    whole = opening * depth + inner + closing * (depth - (chance.random() < 0.2))
    return data[:start] + whole + data[end:]


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a JSON value: what holds it, and its key or index."""
    found = []
    todo = [value]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                todo.append(one[key])
    return found


def _reshape(chance: random.Random, value: Any) -> None:
    """Change a JSON object in place: types, keys, what stands where."""
    nodes = _nodes(value)
    if not nodes:
        return
    holder, key = chance.choice(nodes)
    way = chance.randrange(6)
    if way == 0:
        holder[key] = chance.choice(_ODD_VALUES)
    elif way == 1:
        other, its = chance.choice(nodes)
        holder[key], other[its] = other[its], holder[key]
    elif way == 2:
        holder[key] = chance.choice((str, lambda each: [each], lambda each: {"a": each}))(
            holder[key]
        )
    elif way == 3:
        del holder[key]
    elif isinstance(holder, dict):
        name = chance.choice(("", "id", key.upper(), key[:-1], f"{key} ", "kind", "x" * 300))
        holder[name] = holder[key] if way == 4 else holder.pop(key)
    else:
        holder.extend([holder[key]] * chance.choice((1, 1, 20)))


def json_values(chance: random.Random, data: bytes, __: Sequence[bytes]) -> bytes:
    """Change the structure of one of the lines of JSON."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return data
    if isinstance(value, dict | list):
        for _ in range(chance.choice((1, 1, 2, 3))):
            try:
                _reshape(chance, value)
                lines[at] = json.dumps(value).encode()
            except (ValueError, RecursionError, KeyError, IndexError):
                # What was exchanged may now hold itself.
                break
    return b"\n".join(lines)


TEXT: tuple[Mutation, ...] = (*BYTES, _lines, _exchange, _exchange, nest)
JSON: tuple[Mutation, ...] = (*TEXT, *(json_values,) * 6)

_TOML_VALUES = (
    *(b"1", b"-1", b"0", b"1.5", b"nan", b"inf", b"-inf", b"true", b'""', b'"x"', b"[]", b"{}"),
    *(b'["one"]', b'["one", "one"]', b'["one", "two", "none"]', b"[1, -1]", b'{a = {b = "c"}}'),
    *(b"1979-05-27", b"07:32:00", b"0x7fffffffffffffff", b"99999999999999999999", b"[[]]"),
    *(b'"bytes"', b'"pivot"', b'"running"', b'"../one.gguf"', b'"~"', b'"\\u0000"', b"'''\n'''"),
)


def toml_values(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Write another value or key into a line of TOML, or another table above it."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    key, equals, value = lines[at].partition(b"=")
    keys = [each.partition(b"=")[0] for each in lines if b"=" in each]
    tables = [each for each in lines if each.startswith(b"[")]
    way = chance.randrange(4)
    if way == 0 and tables:
        one = chance.choice(tables)
        others = (one, b"[" + one + b"]", one.replace(b"models", b"ensembles"), one[:-1] + b".x]")
        lines.insert(at, chance.choice(others))
    elif not equals:
        lines[at] = lines[at].upper()
    elif way == 1 and keys:
        lines[at] = chance.choice(keys) + b"=" + value
    elif way == 2:
        lines.insert(at, key + b"." + key + b"= " + chance.choice(_TOML_VALUES))
    else:
        lines[at] = key + b"= " + chance.choice(_TOML_VALUES)
    return b"\n".join(lines)


TOML: tuple[Mutation, ...] = (*TEXT, *(toml_values,) * 6)
