"""The tables [models.NAME] and [ensembles.NAME] of models.toml -> specs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from eva_local.config.paths import user_path
from eva_local.config.settings import (
    REQUEST_KEYS,
    Setting,
    build,
    convert,
    did_you_mean,
    keys_of,
    read_settings,
    read_text,
    refuse_unknown,
)
from eva_local.config.specs import (
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
from eva_local.types import Sampling

_SOURCE_KEYS = {
    "path": ("path",),
    "hub": ("hub", "file", "revision"),
    "wheel": ("wheel", "file", "parts"),
}
_MODEL_KEYS = (
    *dict.fromkeys(key for keys in _SOURCE_KEYS.values() for key in keys),
    *("sha256", "size", "licence", "description"),
    *keys_of(LoadSettings),
)
_ENSEMBLE_KEYS = (
    *("members", "pivot", "description"),
    *(*keys_of(FusionSettings), *keys_of(Sampling), *REQUEST_KEYS),
)

# A model's name becomes part of a file name in the cache.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Pinned, and never something that pip could take for an option or an address.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


class Table:
    """One table of the file, read key by key; errors name the file and the dotted key."""

    def __init__(self, path: Path, dotted: str, values: object, known: tuple[str, ...]) -> None:
        """Raise ConfigError where `values` is no table or has a key that is not `known`."""
        self.place = f"{path}: {dotted}"
        if not isinstance(values, dict):
            raise ConfigError(f"{self.place}: must be a table")
        self.values: dict[str, object] = values
        refuse_unknown(self.values, known, f"{self.place}.")

    def where(self, key: str) -> str:
        """Name a key of this table in full."""
        return f"{self.place}.{key}"

    def error(self, key: str, problem: str) -> ConfigError:
        """Make the error for one key."""
        return ConfigError(f"{self.where(key)}: {problem}")

    def text(self, key: str, default: str = "") -> str:
        """Read a text."""
        if key not in self.values:
            return default
        return str(convert(self.values[key], str, self.where(key)))

    def count(self, key: str) -> int | None:
        """Read a whole number of at least 1."""
        if key not in self.values:
            return None
        number = int(convert(self.values[key], int, self.where(key)))
        if number < 1:
            raise self.error(key, f"must be at least 1, not {number}")
        return number


def read_models(
    path: Path,
    tables: object,
    defaults: Mapping[str, Setting],
    outside: Mapping[str, Setting],
) -> dict[str, ModelSpec]:
    """Read every [models.NAME]; `outside` beats the model's own settings, they `defaults`."""
    models = {}
    for name, values in _named(path, "models", tables).items():
        table = Table(path, f"models.{name}", values, _MODEL_KEYS)
        own = read_settings(LoadSettings, table.values, table.where)
        source = _source(path, table)
        models[name] = ModelSpec(
            name=name,
            source=source,
            sha256=_sha256(table, required=isinstance(source, WheelSource)),
            size=table.count("size"),
            licence=table.text("licence"),
            description=table.text("description"),
            load=build(LoadSettings, {**defaults, **own, **outside}),
        )
    return models


def read_ensembles(
    path: Path,
    tables: object,
    models: Mapping[str, ModelSpec],
    defaults: Mapping[str, Setting],
    outside: Mapping[str, Setting],
) -> dict[str, EnsembleSpec]:
    """Read every [ensembles.NAME] whose members are among `models`."""
    ensembles = {}
    for name, values in _named(path, "ensembles", tables).items():
        table = Table(path, f"ensembles.{name}", values, _ENSEMBLE_KEYS)
        if name in models:
            raise ConfigError(f"{table.place}: a model has this name already; choose another")
        members = _members(table, models)
        names = [member.name for member in members]
        pivot = table.text("pivot", names[0])
        if pivot not in names:
            raise table.error("pivot", f"{pivot!r} is no member; {did_you_mean(pivot, names)}")
        own = _fusion(table, names)
        ensembles[name] = EnsembleSpec(
            name=name,
            members=members,
            pivot=pivot,
            fusion=build(FusionSettings, {**defaults, **own, **outside}),
            sampling=_sampling(path, table, defaults, outside),
            description=table.text("description"),
        )
    return ensembles


def check_weights(setting: Setting, members: int) -> None:
    """Raise ConfigError where a list of weights does not fit the number of members."""
    weights = setting.value
    if isinstance(weights, tuple) and len(weights) != members:
        raise ConfigError(
            f"{setting.origin}: needs {members} weights, one for each member, not {len(weights)}"
        )


def _named(path: Path, section: str, tables: object) -> dict[str, object]:
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: {section}: must be tables [{section}.NAME]")
    for name in tables:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: {section}.{name}: a name is letters, digits, '.', '_' and '-'"
            )
    return tables


def _source(path: Path, table: Table) -> Source:
    given = [key for key in _SOURCE_KEYS if key in table.values]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no source"
        raise ConfigError(f"{table.place}: {found}; give exactly one of path, hub or wheel")
    kind = given[0]
    for key in ("file", "revision", "parts"):
        if key in table.values and key not in _SOURCE_KEYS[kind]:
            raise table.error(key, f"does not go with {kind}")
    if kind == "path":
        return PathSource(_beside(path, table, "path"))
    if "file" not in table.values:
        raise table.error("file", f"is missing; it names the GGUF file inside the {kind}")
    return _hub_source(table) if kind == "hub" else _wheel_source(table)


def _hub_source(table: Table) -> HubSource:
    repository, file = table.text("hub"), table.text("file")
    if not _REPOSITORY.fullmatch(repository):
        raise table.error("hub", f"must be OWNER/REPOSITORY, not {repository!r}")
    if not _is_inside(file):
        raise table.error("file", f"must be a relative path, not {file!r}")
    if "revision" in table.values:
        return HubSource(repository, file, table.text("revision"))
    return HubSource(repository, file)


def _wheel_source(table: Table) -> WheelSource:
    source = WheelSource(table.text("wheel"), table.text("file"), table.count("parts") or 1)
    seen = set()
    for i in range(source.parts):
        try:
            requirement, file = source.part(i)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise table.error(
                "wheel", f"or file has a field that is not n or i: {error}"
            ) from error
        if not _REQUIREMENT.fullmatch(requirement):
            raise table.error("wheel", f"must be NAME==VERSION, not {requirement!r}")
        if not _is_inside(file):
            raise table.error("file", f"must be a relative path, not {file!r}")
        seen.add((requirement, file))
    if len(seen) != source.parts:
        raise table.error("parts", "needs {n} or {i} in wheel or file, or all parts are the same")
    return source


def _is_inside(file: str) -> bool:
    parts = PurePosixPath(file).parts
    return bool(parts) and ".." not in parts and parts[0] != "/" and "\\" not in file


def _sha256(table: Table, *, required: bool) -> str | None:
    if "sha256" not in table.values:
        if required:
            raise table.error("sha256", "is missing; a wheel's file must be checked against it")
        return None
    digest = table.text("sha256").lower()
    if not _SHA256.fullmatch(digest):
        raise table.error("sha256", "must be 64 hexadecimal digits")
    return digest


def _members(table: Table, models: Mapping[str, ModelSpec]) -> tuple[ModelSpec, ...]:
    names = table.values.get("members")
    if not isinstance(names, list) or not names:
        raise table.error("members", "must be a list of at least one model name")
    for name in names:
        if not isinstance(name, str) or name not in models:
            hint = did_you_mean(str(name), models)
            raise table.error("members", f"there is no model {name!r}; {hint}")
    return tuple(models[name] for name in names)


def _fusion(table: Table, names: list[str]) -> dict[str, Setting]:
    values = dict(table.values)
    weights = values.get("weights")
    if isinstance(weights, dict):
        refuse_unknown(weights, names, table.where("weights."))
        missing = [name for name in names if name not in weights]
        if missing:
            raise table.error("weights", f"has no weight for {', '.join(missing)}")
        values["weights"] = [weights[name] for name in names]
    own = read_settings(FusionSettings, values, table.where)
    if "weights" in own:
        check_weights(own["weights"], len(names))
    return own


def _sampling(
    path: Path, table: Table, defaults: Mapping[str, Setting], outside: Mapping[str, Setting]
) -> Sampling:
    own = read_settings(Sampling, table.values, table.where)
    request = {key: _of_request(path, table, key) for key in REQUEST_KEYS if key in table.values}
    try:
        return replace(build(Sampling, {**defaults, **own, **outside}), **request)
    except InputError as error:
        raise ConfigError(f"{table.place}: {error}") from error


def _of_request(path: Path, table: Table, key: str) -> Any:
    """Read a setting that has a form of its own."""
    value = table.values[key]
    if key == "stop":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise table.error(key, "must be a list of texts")
        return tuple(value)
    if key == "logit_bias":
        if not isinstance(value, dict) or not all(map(_is_bias, value.values())):
            raise table.error(key, "must be a table of texts with a number each, or false")
        return value
    return read_text(_beside(path, table, key), table.where(key))


def _beside(path: Path, table: Table, key: str) -> Path:
    """Read a path; one that is not absolute begins at the folder of the file."""
    return path.resolve().parent / user_path(table.text(key), table.where(key))


def _is_bias(value: object) -> bool:
    return value is False or (isinstance(value, int | float) and value is not True)
