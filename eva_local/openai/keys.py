"""The keys of JSON from outside: each is known, or refused by its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from eva_local.errors import InputError
from eva_local.reading import UnknownKeyError, shown

# Values that ask for nothing, whatever their key.
_NOTHING: Sequence[object] = (None, "", [], {})


def given(body: Mapping[str, object]) -> dict[str, object]:
    """Return what a body says: null says nothing."""
    return {key: value for key, value in body.items() if value is not None}


def lean(value: object, known: Collection[str]) -> object:
    """Return an object without what asks for nothing and is not known; other values as they are.

    Clients give messages back as they got them, with empty lists of what was not in them.
    """
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in given(value).items() if key in known or each not in _NOTHING}


def refuse_other_keys(values: Mapping[str, object], known: Collection[str]) -> None:
    """Raise UnknownKeyError for the first key of a body that is not known."""
    for key in values:
        if key not in known:
            raise UnknownKeyError(key, known)


def once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON from its pairs; raise InputError where a key comes twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"has the key {shown(key)} twice: give it once")
    return values
