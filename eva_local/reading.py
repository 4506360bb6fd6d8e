"""Data from outside -> values of a type, and what is said of data that do not fit it.

Types, ranges and their words live in the annotations, as msgspec reads them. A `Meta` with a
`description` words what a value must be; of a number or text, where its type alone is right.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, ValidationError, inspect

from eva_local.errors import InputError

T = TypeVar("T")

# A whole number of JSON has no end, and NaN is less than nothing.
MOST = sys.float_info.max
Number = Annotated[float, Meta(ge=-MOST, le=MOST)]
#: A number from 0 up.
Amount = Annotated[float, Meta(ge=0, le=MOST)]
#: A number above 0.
Scale = Annotated[float, Meta(gt=0, le=MOST)]
Whole = Annotated[int, Meta(ge=0)]
Words = Annotated[str, Meta(min_length=1)]

_SCALARS = (inspect.IntType, inspect.FloatType, inspect.StrType)
_Fields = inspect.StructType | inspect.DataclassType
_LISTS = (inspect.ListType, inspect.VarTupleType)
_NAMES: Mapping[type, str] = {
    **dict.fromkeys((inspect.DataclassType, inspect.DictType, inspect.StructType), "an object"),
    inspect.BoolType: "true or false",
    inspect.FloatType: "a number",
    inspect.IntType: "a whole number",
    inspect.StrType: "a text",
}
# What JSON has for the other kinds of values of Python and NumPy.
_FORMS: dict[type, Any] = {Integral: int, Real: float, Mapping: dict, Sequence: list}
_LONGEST = 60
# Values that ask for nothing, whatever their key.
_NOTHING: Sequence[object] = (None, "", [], {})
_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
    "random": None,
}
_type_of = lru_cache(maxsize=64)(inspect.type_info)
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


class ReadError(InputError):
    """A value that is not of its type: `path` is where it stands, `problem` what is wrong."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path} {problem}".lstrip())
        self.path = path
        self.problem = problem


class UnknownKeyError(ReadError):
    """A key that nobody here knows."""

    def __init__(self, key: str, known: Iterable[str], where: str = "") -> None:
        hint = did_you_mean(key[:_LONGEST], known)
        path = _joined(where, key[:_LONGEST])
        super().__init__("", f"unknown option {shown(path)}; {hint}")
        self.path = path


def read(value: object, kind: type[T], where: str = "") -> T:
    """Return plain data that stand `where` as a `kind`; raise ReadError where they do not fit."""
    try:
        return msgspec.convert(value, kind)
    except ValidationError as error:
        raise _explained(str(error), value, kind, where) from error
    except UnicodeEncodeError as error:
        raise ReadError(where, "holds half a surrogate pair, which is no text") from error


def lean(value: Any, kind: Any) -> Any:
    """Return plain data without what asks for nothing and is no field where it stands.

    Clients give messages back as they got them, with empty lists of what was not in them.
    """
    node = kind if isinstance(kind, inspect.Type) else _type_of(kind)
    record = _record(node, value)
    if record is not None:
        types = {field.encode_name: field.type for field in record.fields}
        return {
            key: lean(each, types[key]) if key in types else each
            for key, each in value.items()
            if each is not None
            and (key in types or key == _tag_field(record) or each not in _NOTHING)
        }
    items = _items(node) or node
    if isinstance(value, list) and any(isinstance(each, _Fields) for each in _options(items)):
        return [lean(each, items) for each in value]
    return value


def settle(record: Any) -> None:
    """Put the fields of a frozen dataclass into the form of their types; raise ReadError."""
    kind = fields_of(record.__class__)
    values = {name: getattr(record, name) for name in kind.__struct_fields__}
    try:
        settled = msgspec.convert(values, kind)
    except (ValidationError, UnicodeEncodeError):
        # Python and NumPy have more kinds of numbers and sequences than JSON.
        with contextlib.suppress(TypeError, RecursionError):
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
    """Return what a text stands for as a `hint`, ranges aside; itself where it stands for none."""
    senses: tuple[Callable[[str], object], ...] = (
        *(str, int, float, lambda text: _WORDS[text.lower()]),
        lambda text: [float(each) for each in text.split(",")],
    )
    for sense in senses:
        with contextlib.suppress(ValidationError, ValueError, KeyError):
            return msgspec.convert(sense(text), hint)
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Word a hint at the nearest known names, or at all of them where none is near."""
    import difflib

    names = sorted(set(known))
    # A slip of the finger hides no other word.
    for n, cutoff in ((1, 0.9), (3, 0.6)):
        if near := difflib.get_close_matches(name, names, n, cutoff):
            return f"did you mean {' or '.join(near)}?"
    return f"known are: {', '.join(names)}" if names else "there is none"


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    except RecursionError:
        text = "what is nested too deeply"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _plain(value: object) -> object:
    for kind, form in _FORMS.items():
        if isinstance(value, kind):
            return form(value)
    raise TypeError


def _explained(message: str, value: Any, kind: Any, where: str) -> ReadError:
    """Return the error for a value of which msgspec says that it is no `kind`."""
    problem, _, steps = message.rpartition(" - at `$") if "`$" in message else (message, "", "")
    node = _type_of(kind)
    for key, place in _STEP.findall(steps):
        inner = _within(node, value, key or int(place))
        if inner is None:
            break
        node, value = inner, value[key or int(place)]
        where = _joined(where, key) if key else f"{where}[{place}]"
    record = _record(node, value)
    if record is not None:
        known = [field.encode_name for field in record.fields]
        for key in value if problem.startswith("Object contains unknown") else ():
            if key not in known and key != _tag_field(record):
                return UnknownKeyError(key, known, where)
        for field in record.fields:
            if field.required and field.encode_name not in value:
                return ReadError(_joined(where, field.encode_name), "is missing")
    elif isinstance(_bare(node), _Fields | inspect.DictType) and not isinstance(value, Mapping):
        return ReadError(where, "is no JSON object")
    return ReadError(where, f"must be {_wanted(node, value)}, not {shown(value)}")


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _record(node: inspect.Type, value: Any) -> _Fields | None:
    """Return the type with fields that a value is of; of several, the one that its tag names."""
    for each in _options(node) if isinstance(value, Mapping) else ():
        # Without a tag, both are None.
        if isinstance(each, _Fields) and value.get(_tag_field(each)) == getattr(each, "tag", None):
            return each
    return None


def _tag_field(record: _Fields) -> str | None:
    return getattr(record, "tag_field", None)


def _items(node: inspect.Type) -> inspect.Type | None:
    return next((each.item_type for each in _options(node) if isinstance(each, _LISTS)), None)


def _within(node: inspect.Type, value: object, step: str | int) -> inspect.Type | None:
    """Return the type of what stands at a key or place of a value; None where nothing does."""
    record = _record(node, value)
    if record is not None and isinstance(value, Mapping) and step in value:
        return next((field.type for field in record.fields if field.encode_name == step), None)
    # What a union must be, and says so, is worded as a whole.
    is_whole = isinstance(node, inspect.Metadata) and isinstance(node.type, inspect.UnionType)
    return _items(node) if isinstance(value, Sequence) and not is_whole else None


def _bare(node: inspect.Type) -> inspect.Type:
    return node.type if isinstance(node, inspect.Metadata) else node


def _options(node: inspect.Type) -> list[inspect.Type]:
    found = _bare(node)
    return list(map(_bare, found.types)) if isinstance(found, inspect.UnionType) else [found]


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
        name = _NAMES.get(type(_bare(node.item_type)), "")
        return f"a list of {name.partition(' ')[2]}s" if name else "a list"
    return _NAMES[type(node)]


def _fits(node: inspect.Type, value: object) -> bool:
    """Return whether a value is a number or text as the type is, though perhaps out of range."""
    for each in _options(node):
        if isinstance(each, inspect.FloatType) and type(value) in (int, float):
            return -MOST <= value <= MOST  # type: ignore[operator]  # a number
        if type(value) is {inspect.IntType: int, inspect.StrType: str}.get(type(each)):
            return True
    return False


def _range(node: inspect.IntType | inspect.FloatType) -> str:
    least = node.gt if node.ge is None else node.ge
    most = node.lt if node.le is None else node.le
    if least is None or most is None or most == MOST:
        return f"at least {least}" if node.gt is None else f"above {least}"
    if isinstance(node, inspect.IntType):
        return f"from {least} to {most}"
    return f"in {'[' if node.gt is None else '('}{least}, {most}{']' if node.lt is None else ')'}"
