"""Words for what a value must be, from the type that msgspec reads it by."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from msgspec import inspect

_MOST = sys.float_info.max
SCALARS = (inspect.IntType, inspect.FloatType, inspect.StrType)
Record = inspect.StructType | inspect.DataclassType
LISTS = (inspect.ListType, inspect.VarTupleType)
_NAMES: Mapping[type, str] = {
    inspect.BoolType: "true or false",
    inspect.DataclassType: "an object",
    inspect.DictType: "an object",
    inspect.FloatType: "a number",
    inspect.IntType: "a whole number",
    inspect.StrType: "a text",
    inspect.StructType: "an object",
}


def bare(node: inspect.Type) -> inspect.Type:
    """Return a type without its `Meta`."""
    return node.type if isinstance(node, inspect.Metadata) else node


def options(node: inspect.Type) -> list[inspect.Type]:
    """Return the types that a type may be, one or more."""
    found = bare(node)
    return list(map(bare, found.types)) if isinstance(found, inspect.UnionType) else [found]


def wanted(node: inspect.Type, value: object) -> str:
    """Word what a value must be: of the right type, or where it is, in the range."""
    if isinstance(node, inspect.Metadata):
        described = (node.extra_json_schema or {}).get("description")
        if described and _fits(node.type, value) == isinstance(node.type, SCALARS):
            return str(described)
        return wanted(node.type, value)
    if isinstance(node, inspect.UnionType):
        types = [each for each in node.types if not isinstance(each, inspect.NoneType)]
        fitting = [each for each in types if _fits(each, value)]
        return " or ".join(wanted(each, value) for each in fitting or types)
    if isinstance(node, inspect.LiteralType):
        return " or ".join(f'"{word}"' for word in node.values)
    if isinstance(node, inspect.IntType | inspect.FloatType) and _fits(node, value):
        return _range(node)
    if isinstance(node, inspect.StrType) and node.min_length:
        return "a text that is not empty"
    if isinstance(node, LISTS):
        name = _NAMES.get(type(bare(node.item_type)), "")
        return f"a list of {name.partition(' ')[2]}s" if name else "a list"
    return _NAMES[type(node)]


def _fits(node: inspect.Type, value: object) -> bool:
    """Return whether a value is a number or text as the type is, though perhaps out of range."""
    for each in options(node):
        if isinstance(each, inspect.FloatType) and type(value) in (int, float):
            return -_MOST <= value <= _MOST  # type: ignore[operator]  # a number
        if type(value) is {inspect.IntType: int, inspect.StrType: str}.get(type(each)):
            return True
    return False


def _range(node: inspect.IntType | inspect.FloatType) -> str:
    least = node.gt if node.ge is None else node.ge
    most = node.lt if node.le is None else node.le
    if least is None or most is None or most == _MOST:
        return f"at least {least}" if node.gt is None else f"above {least}"
    if isinstance(node, inspect.IntType):
        return f"from {least} to {most}"
    return f"in {'[' if node.gt is None else '('}{least}, {most}{']' if node.lt is None else ')'}"
