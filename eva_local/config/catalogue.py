"""The tables [models.NAME] and [ensembles.NAME] of models.toml -> specs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct

from eva_local.config.settings import (
    REQUEST_KEYS,
    Setting,
    build,
    keys_of,
    placed,
    read_settings,
    read_text,
    refuse_unknown,
    user_path,
)
from eva_local.config.specs import (
    Count,
    EnsembleSpec,
    FusionSettings,
    HubSource,
    LoadSettings,
    ModelSpec,
    PathSource,
    Source,
    WheelSource,
)
from eva_local.errors import ConfigError, InputError
from eva_local.reading import ReadError, Words, did_you_mean, read
from eva_local.types import Sampling

T = TypeVar("T", bound=Struct)
Settings = dict[str, Setting]

# A model's name becomes part of a file name in the cache.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Pinned, and never something that pip could take for an option or an address.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_SHA256 = r"^[0-9A-Fa-f]{64}\Z"
_REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*\Z"


class _Model(Struct, kw_only=True):
    """What [models.NAME] says beside LoadSettings; what is not said is empty."""

    path: Words = ""
    hub: Annotated[str, Meta(pattern=_REPOSITORY, description="OWNER/REPOSITORY")] = ""
    revision: Words = "main"
    wheel: Words = ""
    file: Words = ""
    parts: Count = 1
    sha256: Annotated[str, Meta(pattern=_SHA256, description="64 hexadecimal digits")] = ""
    size: Count = 0
    licence: Words = ""
    description: Words = ""


class _Ensemble(Struct, kw_only=True):
    """What [ensembles.NAME] says beside FusionSettings and Sampling."""

    members: Annotated[
        list[Any], Meta(min_length=1, description="a list of at least one model name")
    ]
    pivot: Words = ""
    description: Words = ""
    grammar: Words = ""
    json_schema: Words = ""


# What goes with each kind of source.
_SOURCE_KEYS = {
    "path": ("path",),
    "hub": ("hub", "file", "revision"),
    "wheel": ("wheel", "file", "parts"),
}
_ENSEMBLE_KEYS = (*keys_of(FusionSettings), *keys_of(Sampling), *REQUEST_KEYS)


def read_models(
    path: Path, tables: object, among: Callable[[Settings], Settings]
) -> tuple[dict[str, ModelSpec], dict[str, Settings]]:
    """Read every [models.NAME], and what it says itself, by the name.

    `among` adds the settings of other places: those that its own ones beat, or that beat them.
    """
    models, owns = {}, {}
    for name, place, values in _named(path, "models", tables):
        table = _read(place, values, _Model, keys_of(LoadSettings))
        own = read_settings([LoadSettings], values, _under(place))
        source = _source(path, place, values, table)
        if isinstance(source, WheelSource) and not table.sha256:
            raise ConfigError(
                f"{place}.sha256: is missing; a wheel's file must be checked against it"
            )
        models[name] = ModelSpec(
            name=name,
            source=source,
            sha256=table.sha256.lower() or None,
            size=table.size or None,
            licence=table.licence,
            description=table.description,
            load=build(LoadSettings, among(own)),
        )
        owns[name] = own
    return models, owns


def read_ensembles(
    path: Path,
    tables: object,
    models: Mapping[str, ModelSpec],
    among: Callable[[Settings], Settings],
) -> tuple[dict[str, EnsembleSpec], dict[str, Settings]]:
    """Read every [ensembles.NAME] whose members are among `models`, as `read_models` does."""
    ensembles, owns = {}, {}
    for name, place, values in _named(path, "ensembles", tables):
        table = _read(place, values, _Ensemble, _ENSEMBLE_KEYS)
        if name in models:
            raise ConfigError(f"{place}: a model has this name already; choose another")
        for member in table.members:
            if not isinstance(member, str) or member not in models:
                hint = did_you_mean(str(member), models)
                raise ConfigError(f"{place}.members: there is no model {member!r}; {hint}")
        pivot = table.pivot or table.members[0]
        if pivot not in table.members:
            hint = did_you_mean(pivot, table.members)
            raise ConfigError(f"{place}.pivot: {pivot!r} is no member; {hint}")
        ordered = _in_order(place, values, table.members)
        own = read_settings((FusionSettings, Sampling), ordered, _under(place))
        if "weights" in own:
            check_weights(own["weights"], len(table.members))
        settings = among(own)
        ensembles[name] = EnsembleSpec(
            name=name,
            members=tuple(models[member] for member in table.members),
            pivot=pivot,
            fusion=build(FusionSettings, settings),
            sampling=_sampling(path, place, values, build(Sampling, settings)),
            description=table.description,
        )
        owns[name] = own
    return ensembles, owns


def check_weights(setting: Setting, members: int) -> None:
    """Raise ConfigError where a list of weights does not fit the number of members."""
    weights = setting.value
    if isinstance(weights, tuple) and len(weights) != members:
        raise ConfigError(
            f"{setting.origin}: needs {members} weights, one for each member, not {len(weights)}"
        )


def _named(path: Path, section: str, tables: object) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name, place and values of each table of a section."""
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: {section}: must be tables [{section}.NAME]")
    for name, values in tables.items():
        place = f"{path}: {section}.{name}"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{place}: a name is letters, digits, '.', '_' and '-'")
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: must be a table")
        yield name, place, values


def _under(place: str) -> Callable[[str], str]:
    return lambda key: f"{place}.{key}"


def _read(place: str, values: Mapping[str, object], kind: type[T], settings: tuple[str, ...]) -> T:
    """Read what a table says beside `settings`."""
    keys = kind.__struct_fields__
    refuse_unknown(values, (*keys, *settings), f"{place}.")
    try:
        return read({key: values[key] for key in keys if key in values}, kind)
    except ReadError as error:
        raise placed(error, f"{place}.") from error


def _source(path: Path, place: str, values: Mapping[str, object], table: _Model) -> Source:
    given = [key for key in _SOURCE_KEYS if key in values]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no source"
        raise ConfigError(f"{place}: {found}; give exactly one of path, hub or wheel")
    (kind,) = given
    for key in ("file", "revision", "parts"):
        if key in values and key not in _SOURCE_KEYS[kind]:
            raise ConfigError(f"{place}.{key}: does not go with {kind}")
    if kind == "path":
        return PathSource(_beside(path, table.path, f"{place}.path"))
    if not table.file:
        raise ConfigError(f"{place}.file: is missing; it names the GGUF file inside the {kind}")
    if kind == "hub":
        _refuse_outside(place, table.file)
        return HubSource(table.hub, table.file, table.revision)
    return _wheel_source(place, WheelSource(table.wheel, table.file, table.parts))


def _wheel_source(place: str, source: WheelSource) -> WheelSource:
    try:
        parts = [source.part(i) for i in range(source.parts)]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{place}.wheel: or file has a field that is not n or i: {error}"
        ) from error
    for requirement, file in parts:
        if not _REQUIREMENT.fullmatch(requirement):
            raise ConfigError(f"{place}.wheel: must be NAME==VERSION, not {requirement!r}")
        _refuse_outside(place, file)
    if len(set(parts)) != source.parts:
        raise ConfigError(
            f"{place}.parts: needs {{n}} or {{i}} in wheel or file, or all parts are the same"
        )
    return source


def _refuse_outside(place: str, file: str) -> None:
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or parts[0] == "/" or "\\" in file:
        raise ConfigError(f"{place}.file: must be a relative path, not {file!r}")


def _in_order(place: str, values: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """Return a table in which weights that stand by name are in the order of the members."""
    weights = values.get("weights")
    if not isinstance(weights, dict):
        return values
    refuse_unknown(weights, names, f"{place}.weights.")
    if missing := [name for name in names if name not in weights]:
        raise ConfigError(f"{place}.weights: has no weight for {', '.join(missing)}")
    return {**values, "weights": [weights[name] for name in names]}


def _sampling(path: Path, place: str, values: Mapping[str, Any], settings: Sampling) -> Sampling:
    """Return how an ensemble's answers are drawn: by `settings`, and what its table has beside."""
    request = {key: values[key] for key in REQUEST_KEYS if key in values}
    for key in filter(request.__contains__, ("grammar", "json_schema")):
        where = f"{place}.{key}"
        request[key] = read_text(_beside(path, request[key], where), where)
    try:
        return replace(settings, **request)
    except ReadError as error:
        raise placed(error, f"{place}.") from error
    except InputError as error:
        raise ConfigError(f"{place}: {error}") from error


def _beside(path: Path, written: str, where: str) -> Path:
    """Return a path; one that is not absolute begins at the folder of the file."""
    return path.resolve().parent / user_path(written, where)
