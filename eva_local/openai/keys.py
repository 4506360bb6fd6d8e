"""Objects of JSON from outside: what they say, each thing once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from eva_local.errors import InputError
from eva_local.reading import shown


def given(body: Mapping[str, object]) -> dict[str, object]:
    """Return what a body says: null says nothing."""
    return {key: value for key, value in body.items() if value is not None}


def parsed(
    text: str, parse_constant: Callable[[str], object] | None = None
) -> tuple[object, list[str]]:
    """Return a value of JSON, and the keys that come twice in an object of it.

    Raises ValueError and RecursionError for what is no JSON.
    """
    twice: list[str] = []

    def noted(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            twice.append(key)
        return values

    return json.loads(text, object_pairs_hook=noted, parse_constant=parse_constant), twice


def refuse_twice(keys: Sequence[str]) -> None:
    """Raise InputError where there are keys that come twice."""
    if keys:
        raise InputError(f"has the key {shown(keys[0])} twice: give it once")
