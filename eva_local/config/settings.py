"""Values from outside: checked, converted to the type of their dataclass field, and traced."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from eva_local.errors import ConfigError, InputError

T = TypeVar("T")

RANDOM = "random"
# What has options of its own form, and in models.toml a place with an ensemble only.
REQUEST_KEYS = ("stop", "logit_bias", "grammar", "json_schema")
_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class Setting:
    """One effective value and the place it came from."""

    key: str
    value: object
    origin: str


def keys_of(kind: type) -> tuple[str, ...]:
    """Name the fields of a settings dataclass that can be set everywhere, in one form."""
    return tuple(field.name for field in fields(kind) if field.name not in REQUEST_KEYS)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Word a hint at the nearest known names, or at all of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are: {', '.join(names)}" if names else "there is none"


def refuse_unknown(table: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for the first key of `table` that is not in `known`."""
    known = tuple(known)
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(f"{where}{key}: unknown key; {hint}")


def convert(value: object, hint: Any, where: str, *, text: bool = False) -> Any:
    """Convert `value` to the type `hint`; with `text`, a string is parsed.

    Raises ConfigError that names `where` and says what would be right.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        try:
            return _convert_to(value, option, text)
        except (ValueError, OverflowError):
            continue
    wanted = " or ".join(_describe(option) for option in options)
    shown = repr(value) if isinstance(value, str) else _toml(value)
    raise ConfigError(f"{where}: must be {wanted}, not {shown}")


def read_text(path: Path, where: str) -> str:
    """Return the text of a file that a setting names, without a byte order mark.

    Raises ConfigError where there is none.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: {path}: cannot be read: not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{where}: {path}: cannot be read: {error.strerror}") from error


def read_settings(
    kind: type, table: Mapping[str, object], where: Callable[[str], str], *, text: bool = False
) -> dict[str, Setting]:
    """Read every field of the dataclass `kind` that `table` holds.

    `where` turns a key into the place that errors and `Setting.origin` name. Each value is
    converted and checked by the dataclass itself.
    """
    hints = get_type_hints(kind)
    found: dict[str, Setting] = {}
    for key in keys_of(kind):
        if key in table:
            value = convert(table[key], hints[key], where(key), text=text)
            try:
                kind(**{key: value})
            except InputError as error:
                problem = str(error).removeprefix(f"{key} ")
                raise ConfigError(f"{where(key)}: {problem}") from error
            found[key] = Setting(key, value, where(key))
    return found


def build(kind: type[T], settings: Mapping[str, Setting]) -> T:
    """Make the dataclass `kind` of its settings and of its own defaults."""
    return kind(**{key: settings[key].value for key in keys_of(kind) if key in settings})


def _convert_to(value: object, hint: Any, text: bool) -> object:
    if hint in (int, float):
        return _number(value, hint, text)
    if get_origin(hint) is tuple:
        return _numbers(value, text)
    if hint is bool:
        return _boolean(value, text)
    if hint is types.NoneType and value in (None, RANDOM):
        return None
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if hint is str and isinstance(value, str) and value:
        return value
    raise ValueError


def _number(value: object, hint: type[int | float], text: bool) -> int | float:
    if text and isinstance(value, str):
        value = hint(value)
    if isinstance(value, hint | int) and not isinstance(value, bool):
        number = hint(value)
        if math.isfinite(number):
            return number
    raise ValueError


def _numbers(value: object, text: bool) -> tuple[float, ...]:
    if text and isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        return tuple(_number(item, float, text) for item in value)
    raise ValueError


def _boolean(value: object, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of numbers"
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text that is not empty",
        types.NoneType: f'"{RANDOM}"',
    }[hint]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return str(value)
