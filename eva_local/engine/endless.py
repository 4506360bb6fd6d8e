"""What no text completes: rules of a grammar, and parts of a schema, that lead to no end.

A head has ways, of which one will do, and each needs other heads. What is not understood here
counts as something that ends.
"""

import re
from collections.abc import Callable, Hashable
from itertools import chain
from typing import Any, TypeVar

Head = TypeVar("Head", bound=Hashable)
Ways = dict[Head, list[list[Head]]]
Path = tuple[str, ...]

# llguidance goes down by recursion, and at twice as many the process ends.
_DEEPEST = 1000
_PARTS = ("items", "additionalProperties", "anyOf", "oneOf")
_FURTHER = ("properties", "patternProperties", "prefixItems", "allOf")


def refuse_endless(
    first: Head, ways_of: Callable[[Head], list[list[Head]]], named: Callable[[Head], str]
) -> None:
    """Raise ValueError for a head behind `first` that cannot end, or too many in a row."""
    ways = {first: ways_of(first)}
    trail = [chain(*ways[first])]
    deepest = 1
    while trail:
        after = next((head for head in trail[-1] if head not in ways), None)
        if after is None:
            trail.pop()
            continue
        ways[after] = ways_of(after)
        trail.append(chain(*ways[after]))
        deepest = max(deepest, len(trail))
    ending: set[Head] = set()
    known = -1
    while known < len(ending):
        known = len(ending)
        ending.update(
            head for head in reversed(ways) if any(ending.issuperset(way) for way in ways[head])
        )
    for head in ways:
        if head not in ending:
            problem = f"no text completes the {named(head)}"
            raise ValueError(f"{problem}: what it needs always needs itself again")
    if deepest > _DEEPEST:
        problem = f"{deepest} parts lead from one to the next, over {_DEEPEST}"
        raise ValueError(f"{problem}: flatten it")


def ways_of_part(schema: object, path: Path) -> list[list[Path]]:
    """Return what the part of a schema at a path needs: with each way, all that it may have."""
    part = _at(schema, path)
    if isinstance(part, list):
        return [[(*path, step)] for step in _steps(part)]
    # References in a part with a name of its own are not from the root.
    if not isinstance(part, dict) or (path and "$id" in part):
        return [[]]
    parts: list[Path] = [(key,) for key in _PARTS if _steps(part.get(key))]
    parts += [(key, step) for key in _FURTHER for step in _steps(part.get(key))]
    needed = [each for each in parts if _is_needed(part, each)]
    needs = [*((*path, *each) for each in needed), *_targets(schema, part.get("$ref"))]
    return [needs, [*needs, *((*path, *each) for each in parts)]]


def _is_needed(part: dict[str, Any], inner: Path) -> bool:
    """Return whether every value that obeys a part has what stands at `inner` in it."""
    kind, required, least = part.get("type"), part.get("required"), part.get("minItems")
    names = required if kind in ("object", ["object"]) and isinstance(required, list) else []
    n_items = least if kind in ("array", ["array"]) and isinstance(least, int) else 0
    match inner:
        case ("properties", name):
            return name in names
        case ("additionalProperties",):
            named = _steps(part.get("properties"))
            return not part.get("patternProperties") and any(each not in named for each in names)
        case ("prefixItems", place):
            return int(place) < n_items
        case ("items",):
            return n_items > len(_steps(part.get("prefixItems")))
    return inner[0] in ("allOf", "anyOf", "oneOf")


def _targets(schema: object, reference: object) -> list[Path]:
    """Return the path that a reference within its document names; none for any other."""
    url, _, pointer = (reference if isinstance(reference, str) else " ").partition("#")
    base = str(_at(schema, ("$id",)) or "").partition("#")[0]
    plain = re.sub("%([0-9a-fA-F]{2})", lambda found: chr(int(found[1], 16)), pointer)
    first, *steps = plain.split("/")
    if first or not base.endswith(url):
        return []
    return [tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)]


def _steps(part: object) -> list[str]:
    if isinstance(part, dict):
        return list(part)
    return list(map(str, range(len(part)))) if isinstance(part, list) else []


def _at(schema: object, path: Path) -> object:
    for step in path:
        if isinstance(schema, dict):
            schema = schema.get(step)
        elif isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        else:
            return None
    return schema
