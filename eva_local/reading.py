"""Data from outside -> values of a type, and what is said of data that do not fit it.

Types, ranges and their words live in the annotations, as msgspec reads them. A `Meta` with a
`description` words what a value must be; of a number or text, where its type alone is right.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, ValidationError, inspect

from eva_local.errors import InputError

T = TypeVar("T")

# A whole number of JSON has no end, and NaN is less than nothing.
_MOST = sys.float_info.max
Number = Annotated[float, Meta(ge=-_MOST, le=_MOST)]
#: A number from 0 up.
Amount = Annotated[float, Meta(ge=0, le=_MOST)]
#: A number above 0.
Scale = Annotated[float, Meta(gt=0, le=_MOST)]
Whole = Annotated[int, Meta(ge=0)]
Words = Annotated[str, Meta(min_length=1)]

_LONGEST = 60
_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
    "random": None,
}
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


class ReadError(InputError):
    """A value that is not of its type: `path` is where it stands, `problem` what is wrong."""

    def __init__(self, path: str, problem: str) -> None:
        """Say so."""
        super().__init__(f"{path} {problem}".lstrip())
        self.path = path
        self.problem = problem


class UnknownKeyError(ReadError):
    """A key that nobody here knows."""

    def __init__(self, key: str, known: Iterable[str], where: str = "") -> None:
        """Name the key of what stands `where`, and the known ones that may be meant."""
        key = key[:_LONGEST]
        super().__init__(
            "", f"unknown option {shown(_joined(where, key))}; {did_you_mean(key, known)}"
        )
        self.path = _joined(where, key)


def read(value: object, kind: type[T], where: str = "") -> T:
    """Return plain data that stand `where` as a `kind`; raise ReadError where they do not fit."""
    try:
        return msgspec.convert(value, kind)
    except ValidationError as error:
        raise _explained(str(error), value, kind, where) from error
    except UnicodeEncodeError as error:
        raise ReadError(where, "holds half a surrogate pair, which is no text") from error


def settle(record: Any) -> None:
    """Put the fields of a frozen dataclass into the form of their types, for its `__post_init__`.

    Raises ReadError for a value that is not of its type or out of its range.
    """
    kind = fields_of(record.__class__)
    values = {name: getattr(record, name) for name in kind.__struct_fields__}
    try:
        settled = msgspec.convert(values, kind)
    except (ValidationError, UnicodeEncodeError):
        # Python and NumPy have more kinds of numbers and sequences than JSON.
        with contextlib.suppress(TypeError):
            values = msgspec.to_builtins(values, builtin_types=(bytes,), enc_hook=_plain)
        settled = read(values, kind)
    for name in values:
        object.__setattr__(record, name, getattr(settled, name))


@lru_cache(maxsize=32)
def fields_of(kind: type) -> type[msgspec.Struct]:
    """Return the fields of a dataclass as a type to read, without what the dataclass does."""
    hints = get_type_hints(kind, include_extras=True)
    names = [(field.name, hints[field.name]) for field in fields(kind)]
    return msgspec.defstruct(kind.__name__, names, kw_only=True)


def meant(text: str, hint: Any) -> object:
    """Return what a text from outside stands for, as a value of the type `hint`, without ranges.

    That is the text itself where it stands for none.
    """
    for value in _senses(text):
        with contextlib.suppress(ValidationError, UnicodeEncodeError):
            return msgspec.convert(value, hint)
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Word a hint at the nearest known names, or at all of them where none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are: {', '.join(names)}" if names else "there is none"


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _senses(text: str) -> Iterator[object]:
    yield text
    for number in (int, float):
        with contextlib.suppress(ValueError):
            yield number(text)
    if text.lower() in _WORDS:
        yield _WORDS[text.lower()]
    with contextlib.suppress(ValueError):
        yield [float(each) for each in text.split(",")]


def _plain(value: object) -> object:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError


def _explained(message: str, value: Any, kind: Any, where: str) -> ReadError:
    """Return the error for a value of which msgspec says that it is no `kind`."""
    problem, _, steps = message.rpartition(" - at `$") if "`$" in message else (message, "", "")
    node = _meant(inspect.type_info(kind), value)
    for key, place in _STEP.findall(steps):
        inner = _within(node, value, key or int(place))
        if inner is None:
            break
        value = value[key or int(place)]
        node = _meant(inner, value)
        where = _joined(where, key) if key else f"{where}[{place}]"
    bare = _bare(node)
    if isinstance(bare, _RECORDS) and isinstance(value, Mapping):
        known = [field.encode_name for field in bare.fields]
        for key in value if problem.startswith("Object contains unknown") else ():
            if key not in known and key != getattr(bare, "tag_field", None):
                return UnknownKeyError(key, known, where)
        for field in bare.fields:
            if field.required and field.encode_name not in value:
                return ReadError(_joined(where, field.encode_name), "is missing")
    if isinstance(bare, (*_RECORDS, inspect.DictType)) and not isinstance(value, Mapping):
        return ReadError(where, "is no JSON object")
    return ReadError(where, f"must be {_wanted(node, value)}, not {shown(value)}")


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _bare(node: inspect.Type) -> inspect.Type:
    return node.type if isinstance(node, inspect.Metadata) else node


def _meant(node: inspect.Type, value: object) -> inspect.Type:
    """Return which type of a union a value is meant as, where that is clear.

    A union that is worded as a whole stays whole, unless its objects tell by a tag what they are.
    """
    union = _bare(node)
    for each in union.types if isinstance(union, inspect.UnionType) else ():
        if isinstance(each, inspect.DataclassType) and isinstance(value, Mapping):
            return each
        if isinstance(each, inspect.StructType) and isinstance(value, Mapping):
            if each.tag_field is None or value.get(each.tag_field) == each.tag:
                return each
        elif isinstance(each, _LISTS) and isinstance(value, list | tuple) and node is union:
            return each
    return node


def _within(node: inspect.Type, value: object, step: str | int) -> inspect.Type | None:
    """Return the type of what stands at a key or place of a value; None where nothing does."""
    bare = _bare(node)
    if isinstance(bare, _RECORDS) and isinstance(value, Mapping) and step in value:
        return next((field.type for field in bare.fields if field.encode_name == step), None)
    if isinstance(bare, _LISTS) and isinstance(value, Sequence) and isinstance(step, int):
        return bare.item_type
    return None


def _wanted(node: inspect.Type, value: object) -> str:
    """Word what a value must be: of the right type, or where it is, in the range."""
    if isinstance(node, inspect.Metadata):
        described = (node.extra_json_schema or {}).get("description")
        if described and _fits(node.type, value) == isinstance(node.type, _SCALARS):
            return str(described)
        return _wanted(node.type, value)
    if isinstance(node, inspect.UnionType):
        types = [each for each in node.types if not isinstance(each, inspect.NoneType)]
        fitting = [each for each in types if _fits(each, value)]
        return " or ".join(_wanted(each, value) for each in fitting or types)
    if isinstance(node, inspect.LiteralType):
        return " or ".join(f'"{word}"' for word in node.values)
    if isinstance(node, inspect.IntType | inspect.FloatType) and _fits(node, value):
        return _range(node)
    if isinstance(node, inspect.StrType) and node.min_length:
        return "a text that is not empty"
    if isinstance(node, _LISTS):
        return _LISTED.get(type(_bare(node.item_type)), "a list")
    return _NAMES[type(node)]


def _fits(node: inspect.Type, value: object) -> bool:
    """Return whether a value is a number or text as the type is, though perhaps out of range."""
    if isinstance(node, inspect.Metadata):
        return _fits(node.type, value)
    if isinstance(node, inspect.UnionType):
        return any(_fits(each, value) for each in node.types)
    if isinstance(node, inspect.FloatType):
        return type(value) in (int, float) and -_MOST <= value <= _MOST  # type: ignore[operator]  # a number
    kinds = {inspect.IntType: int, inspect.StrType: str}
    return type(value) is kinds.get(type(node))


def _range(node: inspect.IntType | inspect.FloatType) -> str:
    least = node.gt if node.ge is None else node.ge
    most = node.lt if node.le is None else node.le
    if least is None or most is None or most == _MOST:
        return f"at least {least}" if node.gt is None else f"above {least}"
    if isinstance(node, inspect.IntType):
        return f"from {least} to {most}"
    return f"in {'[' if node.gt is None else '('}{least}, {most}{']' if node.lt is None else ')'}"


_SCALARS = (inspect.IntType, inspect.FloatType, inspect.StrType)
_RECORDS = (inspect.StructType, inspect.DataclassType)
_LISTS = (inspect.ListType, inspect.VarTupleType)
_NAMES: Mapping[type, str] = {
    inspect.BoolType: "true or false",
    inspect.DataclassType: "an object",
    inspect.DictType: "an object",
    inspect.FloatType: "a number",
    inspect.IntType: "a whole number",
    inspect.StrType: "a text",
    inspect.StructType: "an object",
}
_LISTED: Mapping[type, str] = {
    inspect.FloatType: "a list of numbers",
    inspect.IntType: "a list of whole numbers",
    inspect.StrType: "a list of texts",
    inspect.DataclassType: "a list of objects",
    inspect.StructType: "a list of objects",
}
