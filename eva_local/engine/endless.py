"""What no text completes: rules of a grammar and parts of a schema that lead to no end.

Both are read as clauses: a head can end if all that it needs can. What is not understood here
counts as something that ends.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
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


def endless_rule(gbnf: str) -> str | None:
    """Return the name of a rule that `root` leads to and no text completes."""
    found = _endless(_clauses_of_gbnf(gbnf), "root")
    return next((head for head in found if isinstance(head, str)), None)


def endless_part(schema: str) -> str | None:
    """Return a JSON pointer to a part of a schema that no document completes."""
    found = _endless(_clauses_of_schema(json.loads(schema)), ())
    return next(("/".join(("#", *head)) for head in found if isinstance(head, tuple)), None)


def depth_of_rules(gbnf: str) -> int:
    """Return how many rules and groups lead from one to the next at most, from `root` on."""
    return _depth(_clauses_of_gbnf(gbnf), "root")


def depth_of_parts(schema: str) -> int:
    """Return how many parts of a schema lead from one to the next at most, from the root on."""
    return _depth(_clauses_of_schema(json.loads(schema)), ())


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


def _clauses_of_schema(schema: object) -> Iterator[Clause]:
    """Yield the clauses of all parts of a schema that its root leads to."""
    fresh = count()
    seen: set[Hashable] = {()}
    waiting: list[Path] = [()]
    while waiting:
        path = waiting.pop()
        for head, body in _clauses_of_part(schema, path, fresh):
            yield head, body
            new = [each for each in body if isinstance(each, tuple) and each not in seen]
            seen.update(new)
            waiting += new


def _clauses_of_part(schema: object, path: Path, fresh: Iterator[int]) -> Iterator[Clause]:
    part = _at(schema, path)
    # References in a part with a name of its own are not from the root.
    if not isinstance(part, dict) or (path and "$id" in part):
        yield path, []
        return
    needed, optional = _parts_of_value(part, path)
    needed += _listed(part, path, "allOf")
    target = _target(part.get("$ref"))
    if target is not None and _at(schema, target) is not None:
        needed.append(target)
    body: list[Hashable] = [*needed]
    for key in ("anyOf", "oneOf"):
        if ways := _listed(part, path, key):
            body.append(next(fresh))
            for way in ways:
                yield body[-1], [way]
    for each in optional:
        body.append(next(fresh))
        yield body[-1], []
        yield body[-1], [each]
    yield path, body


def _parts_of_value(part: Mapping[str, Any], path: Path) -> tuple[list[Path], list[Path]]:
    """Return the parts of a value that every value has, and those that some have."""
    properties = part.get("properties")
    names = list(properties) if isinstance(properties, dict) else []
    must = part.get("required") if _is_only(part, "object") else ()
    required = {name for name in must if name in names} if isinstance(must, list) else set()
    kept = [(*path, "properties", name) for name in names if name in required]
    others = [(*path, "properties", name) for name in names if name not in required]
    first = _listed(part, path, "prefixItems")
    least = part.get("minItems") if _is_only(part, "array") else 0
    n_items = least if isinstance(least, int) else 0
    kept += first[:n_items]
    others += first[n_items:]
    for key, is_needed in (("items", n_items > len(first)), ("additionalProperties", False)):
        if isinstance(part.get(key), dict):
            (kept if is_needed else others).append((*path, key))
    return kept, others


def _is_only(part: Mapping[str, Any], kind: str) -> bool:
    return part.get("type") in (kind, [kind])


def _listed(part: Mapping[str, Any], path: Path, key: str) -> list[Path]:
    parts = part.get(key)
    return [(*path, key, str(i)) for i in range(len(parts))] if isinstance(parts, list) else []


def _target(reference: object) -> Path | None:
    """Return the path that a reference within its document names."""
    if not isinstance(reference, str) or not re.fullmatch("#(/[^%]*)?", reference):
        return None
    steps = reference.split("/")[1:]
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)


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
