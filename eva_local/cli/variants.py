"""Other settings of an ensemble that are measured beside it: `eval --compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count

from eva_local.cli.session import Session
from eva_local.config.settings import keys_of
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.errors import InputError
from eva_local.reading import did_you_mean


def variant(
    session: Session, overrides: Mapping[str, object], spec: EnsembleSpec, text: str
) -> EnsembleSpec:
    """Return the ensemble under other settings: `KEY=VALUE,…`, or those of another ensemble.

    A part without `=` goes on with the value before it, so that weights can be listed. The
    other ensemble may have no members of its own.
    """
    if "=" not in text:
        other = session.load().ensemble(text)
        if not {member.name for member in other.members} <= {one.name for one in spec.members}:
            raise InputError(f"--compare {text}: has members that {spec.name} has not")
        if len(other.members) < 2:
            raise InputError(f"--compare {text}: is one model; members are measured alone anyway")
        return replace(other, name=text)
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals:
            given[key.strip().replace("-", "_")] = value.strip()
        elif given:
            given[next(reversed(given))] += f",{part.strip()}"
    known = ("pivot", *keys_of(FusionSettings))
    for key in given:
        if key not in known:
            raise InputError(f"--compare {text}: {key}: {did_you_mean(key, known)}")
    pivot = given.pop("pivot", spec.pivot)
    names = [member.name for member in spec.members]
    if pivot not in names:
        raise InputError(f"--compare {text}: {pivot} is no member; {did_you_mean(pivot, names)}")
    changed = session.load({**overrides, **given}).ensemble()
    return replace(changed, name=text, pivot=pivot)


def names_of(specs: Sequence[EnsembleSpec]) -> list[str]:
    """Return the ensembles' names, with a number where one was there before."""
    names: list[str] = []
    for spec in specs:
        others = (f"{spec.name} ({number})" for number in count(2))
        names.append(next(name for name in chain([spec.name], others) if name not in names))
    return names
