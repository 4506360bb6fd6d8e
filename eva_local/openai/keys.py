"""The keys of JSON from outside: each is known, or refused by its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from eva_local.errors import InputError
from eva_local.reading import did_you_mean

# Values that ask for nothing, whatever their key.
_NOTHING: Sequence[object] = (None, "", [], {})
# What is said of a value, and of a key.
_LONGEST = 60


class UnknownKeyError(InputError):
    """A key that nobody here knows; `param` says where it stands."""

    def __init__(self, key: str, known: Collection[str], where: str = "") -> None:
        """Name the key of what stands `where`, and the known ones that may be meant."""
        key = key[:_LONGEST]
        self.param = f"{where}.{key}" if where else key
        super().__init__(f"unknown option {shown(self.param)}; {did_you_mean(key, known)}")


def given(body: Mapping[str, object]) -> dict[str, object]:
    """Return what a body says: null says nothing."""
    return {key: value for key, value in body.items() if value is not None}


def refuse_other_keys(values: Mapping[str, object], known: Collection[str]) -> None:
    """Raise UnknownKeyError for the first key of a body that is not known."""
    for key in values:
        if key not in known:
            raise UnknownKeyError(key, known)


def refuse_keys_within(values: Mapping[str, object], known: Collection[str], where: str) -> None:
    """Raise UnknownKeyError for a key of what stands `where`, unless it asks for nothing.

    Clients give messages back as they got them, with empty lists of what was not in them.
    """
    for key, value in values.items():
        if key not in known and value not in _NOTHING:
            raise UnknownKeyError(key, known, where)


def once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON from its pairs; raise InputError where a key comes twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"has the key {shown(key)} twice: give it once")
    return values


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
