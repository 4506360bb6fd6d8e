"""What no text completes: rules of a grammar and parts of a schema that lead to no end.

Both are read as clauses: a head can end if all that it needs can. What is not understood here
counts as something that ends.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

# Characters to match or a comment, a rule's name before its text, a name in a text, a mark.
_GBNF_TOKEN = re.compile(
    r'#[^\n]*|(?P<text>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\.)'
    r"|(?P<rule>[\w-]+)[ \t]*::=|(?P<name>[\w-]+)"
    r"|(?P<mark>[()|?*]|\{\s*0*\s*(?:,[^}]*)?\})|\{[^}]*\}"
)
_TEXT = 0

# A head and what it needs. Rules are heads by their name, parts of a schema by their path,
# and numbers stand for what has none.
Clause = tuple[Hashable, list[Hashable]]
Path = tuple[str, ...]
# Returns whether a pattern, as schemas have them, matches a name.
Matches = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rules of a grammar, or the parts of a schema, lead from one to the next.

    `endless` names one that no text completes, of those that the first leads to. `depth` is how
    many lead from one to the next at most, groups among them.
    """

    endless: str | None
    depth: int


def shape_of_rules(gbnf: str) -> Shape:
    """Return the shape of a grammar that is well-formed, from `root` on."""
    clauses = list(_clauses_of_gbnf(gbnf))
    found = _endless(clauses, "root")
    return Shape(next((h for h in found if isinstance(h, str)), None), _depth(clauses, "root"))


def shape_of_parts(schema: str, matches: Matches) -> Shape:
    """Return the shape of a schema, from its root on; what is endless is a JSON pointer."""
    clauses = list(_clauses_of_schema(json.loads(schema), matches))
    found = _endless(clauses, ())
    named = next(("/".join(("#", *h)) for h in found if isinstance(h, tuple)), None)
    return Shape(named, _depth(clauses, ()))


def _depth(clauses: Iterable[Clause], first: Hashable) -> int:
    """Return how deep a search goes that visits every head once, in order."""
    bodies: dict[Hashable, list[Hashable]] = defaultdict(list)
    for head, body in clauses:
        bodies[head] += body
    seen = {first}
    way = [iter(bodies[first])]
    deepest = 1
    while way:
        after = next((head for head in way[-1] if head not in seen), None)
        if after is None:
            way.pop()
            continue
        seen.add(after)
        way.append(iter(bodies.get(after, ())))
        deepest = max(deepest, len(way))
    return deepest


def _endless(clauses: Iterable[Clause], first: Hashable) -> list[Hashable]:
    """Return the heads that cannot end, of those that `first` leads to, in that order."""
    bodies: dict[Hashable, list[list[Hashable]]] = defaultdict(list)
    needed_by: dict[Hashable, list[int]] = defaultdict(list)
    heads: list[Hashable] = []
    missing: list[int] = []
    for number, (head, body) in enumerate(clauses):
        bodies[head].append(body)
        heads.append(head)
        missing.append(len(set(body)))
        for each in set(body):
            needed_by[each].append(number)
    ending: set[Hashable] = set()
    ended = [head for head, n in zip(heads, missing, strict=True) if not n]
    ended += needed_by.keys() - bodies.keys()
    while ended:
        head = ended.pop()
        if head in ending:
            continue
        ending.add(head)
        for number in needed_by[head]:
            missing[number] -= 1
            if not missing[number]:
                ended.append(heads[number])
    return [head for head in _reached(bodies, first) if head not in ending]


def _reached(bodies: Mapping[Hashable, list[list[Hashable]]], first: Hashable) -> list[Hashable]:
    seen = {first: None}
    waiting = deque([first])
    while waiting:
        for body in bodies.get(waiting.popleft(), ()):
            new = [head for head in body if head not in seen]
            seen |= dict.fromkeys(new)
            waiting.extend(new)
    return list(seen)


def _clauses_of_gbnf(gbnf: str) -> Iterator[Clause]:
    """Yield the clauses of a grammar that is well-formed."""
    fresh = count(_TEXT + 1)
    head: Hashable = _TEXT
    body: list[Hashable] = []
    outer: list[tuple[Hashable, list[Hashable]]] = []
    for match in _GBNF_TOKEN.finditer(gbnf):
        kind, token = match.lastgroup, match[0]
        if kind == "text":
            body.append(_TEXT)
        elif kind == "name":
            body.append(token)
        elif kind == "rule":
            yield head, body
            head, body = match["rule"], []
        elif token == "(":
            outer.append((head, body))
            head, body = next(fresh), []
        elif token in ("|", ")"):
            yield head, body
            inner, body = head, []
            if token == ")":
                head, body = outer.pop()
                body.append(inner)
        elif kind == "mark":
            # Not needed, but led to.
            optional = next(fresh)
            yield optional, []
            yield optional, [body.pop()]
            body.append(optional)
    yield head, body


def _clauses_of_schema(schema: object, matches: Matches) -> Iterator[Clause]:
    """Yield the clauses of all parts of a schema that its root leads to."""
    fresh = count()
    seen: set[Hashable] = {()}
    waiting: list[Path] = [()]
    while waiting:
        path = waiting.pop()
        for head, body in _clauses_of_part(schema, path, fresh, matches):
            yield head, body
            new = [each for each in body if isinstance(each, tuple) and each not in seen]
            seen.update(new)
            waiting += new


def _clauses_of_part(
    schema: object, path: Path, fresh: Iterator[int], matches: Matches
) -> Iterator[Clause]:
    part = _at(schema, path)
    # References in a part with a name of its own are not from the root.
    if not isinstance(part, dict) or (path and "$id" in part):
        yield path, []
        return
    needed, optional = _parts_of_object(part, path, matches)
    items, others = _parts_of_array(part, path)
    needed += items + _listed(part, path, "allOf")
    target = _target(part.get("$ref"), _at(schema, ("$id",)))
    if target is not None and _at(schema, target) is not None:
        needed.append(target)
    body: list[Hashable] = [*needed]
    for key in ("anyOf", "oneOf"):
        if ways := _listed(part, path, key):
            body.append(next(fresh))
            for way in ways:
                yield body[-1], [way]
    for each in optional + others:
        body.append(next(fresh))
        yield body[-1], []
        yield body[-1], [each]
    yield path, body


def _parts_of_object(
    part: Mapping[str, Any], path: Path, matches: Matches
) -> tuple[list[Path], list[Path]]:
    """Return the parts of an object that every value has, and those that some have."""
    named, patterns = _object(part, "properties"), _object(part, "patternProperties")
    must = part.get("required") if _is_only(part, "object") else ()
    kept: set[Path] = set()
    for name in must if isinstance(must, list) else ():
        if name in named:
            kept.add(("properties", name))
        elif isinstance(name, str):
            fitting = {("patternProperties", each) for each in patterns if matches(each, name)}
            kept |= fitting or {("additionalProperties",)}
    parts: list[Path] = [
        *(("properties", name) for name in named),
        *(("patternProperties", each) for each in patterns),
        *([("additionalProperties",)] if _object(part, "additionalProperties") else []),
    ]
    return (
        [(*path, *each) for each in parts if each in kept],
        [(*path, *each) for each in parts if each not in kept],
    )


def _parts_of_array(part: Mapping[str, Any], path: Path) -> tuple[list[Path], list[Path]]:
    """Return the parts of an array that every value has, and those that some have."""
    first = _listed(part, path, "prefixItems")
    least = part.get("minItems") if _is_only(part, "array") else 0
    n_items = least if isinstance(least, int) else 0
    items = [(*path, "items")] if isinstance(part.get("items"), dict) else []
    if n_items > len(first):
        return first + items, []
    return first[:n_items], first[n_items:] + items


def _object(part: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def _is_only(part: Mapping[str, Any], kind: str) -> bool:
    return part.get("type") in (kind, [kind])


def _listed(part: Mapping[str, Any], path: Path, key: str) -> list[Path]:
    parts = part.get(key)
    return [(*path, key, str(i)) for i in range(len(parts))] if isinstance(parts, list) else []


def _target(reference: object, base: object) -> Path | None:
    """Return the path that a reference within its document, whose `$id` is `base`, names."""
    if not isinstance(reference, str) or not re.fullmatch("[^#]*(#(/[^%]*)?)?", reference):
        return None
    url, _, pointer = reference.partition("#")
    if url and url not in _names(base):
        return None
    steps = pointer.split("/")[1:]
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)


def _names(base: object) -> tuple[str, ...]:
    """Return how a document whose `$id` is `base` can be named in it: whole, by path, by name."""
    whole = base.partition("#")[0] if isinstance(base, str) else ""
    return whole, re.sub("^[^/]*//[^/]*", "", whole), whole.rpartition("/")[2]


def _at(schema: object, path: Path) -> object:
    """Return the part of a schema at a path, or None."""
    for step in path:
        if isinstance(schema, dict):
            schema = schema.get(step)
        elif isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        else:
            return None
    return schema
