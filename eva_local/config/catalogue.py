"""The tables [models.NAME] and [ensembles.NAME] of models.toml -> specs."""

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct

from eva_local.config import settings, specs
from eva_local.config.settings import Setting
from eva_local.errors import ConfigError, InputError
from eva_local.reading import Number, ReadError, Words, did_you_mean, read
from eva_local.types import Sampling

T = TypeVar("T", bound=Struct)
Settings = dict[str, Setting]

# A model's name becomes part of a file name in the cache.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Pinned, and never something that pip could take for an option or an address.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_SHA256 = r"^[0-9A-Fa-f]{64}\Z"
_REPOSITORY = rf"^{specs.REPOSITORY}\Z"
_On = Annotated[
    str, Meta(pattern=rf"^({specs.ON})?\Z", description="ray or ray://HOST:PORT, perhaps #LABEL")
]


class _Model(Struct, kw_only=True):
    """What [models.NAME] says beside LoadSettings; what is not said is empty."""

    path: Words = ""
    hub: Annotated[str, Meta(pattern=_REPOSITORY, description="OWNER/REPOSITORY")] = ""
    revision: Words = "main"
    wheel: Words = ""
    file: Words = ""
    parts: Annotated[int, Meta(ge=1, le=999)] = 1
    sha256: Annotated[str, Meta(pattern=_SHA256, description="64 hexadecimal digits")] = ""
    size: specs.Count = 0
    licence: Words = ""
    description: Words = ""
    chat_template: Words = ""
    chat_template_kwargs: dict[str, Any] = {}
    on: _On = ""


class _Member(Struct, kw_only=True):
    """What [[ensembles.NAME.members]] says: a model, its role, and how many there are of it."""

    model: Words
    name: Words = ""
    system: Words = ""
    prefix: Words = ""
    chat_template: Words = ""
    chat_template_kwargs: dict[str, Any] = {}
    on: _On = ""
    weight: Number | None = None
    n: Annotated[int, Meta(ge=1, le=256)] = 1  # llama.cpp has no more sequences.


class _Ensemble(Struct, kw_only=True):
    """What [ensembles.NAME] says beside FusionSettings and Sampling."""

    members: Annotated[
        list[str | dict[str, Any]],
        Meta(min_length=1, description="a list of at least one model name, or table of a member"),
    ]
    pivot: Words = ""
    description: Words = ""
    grammar: Words = ""
    json_schema: Words = ""
    chat_template: Words = ""
    chat_template_kwargs: dict[str, Any] = {}


# What goes with each kind of source.
_SOURCE_KEYS = {"path": (), "hub": ("file", "revision"), "wheel": ("file", "parts")}
_ENSEMBLE_KEYS = (*settings.keys_of(specs.FusionSettings, Sampling), *settings.REQUEST_KEYS)


def read_models(
    path: Path, tables: object, among: Callable[[Settings], Settings]
) -> tuple[dict[str, specs.ModelSpec], dict[str, Settings]]:
    """Read every [models.NAME], and what it says itself; `among` adds what other places say."""
    models, owns = {}, {}
    for name, place, values in _named(path, "models", tables):
        table = _read(place, values, _Model, settings.keys_of(specs.LoadSettings))
        own = settings.read_settings([specs.LoadSettings], values, f"{place}.".__add__)
        source = _source(path, place, values, table)
        if isinstance(source, specs.WheelSource) and not table.sha256:
            raise ConfigError(f"{place}.sha256: is missing; a wheel's file is checked against it")
        models[name] = specs.ModelSpec(
            name=name,
            source=source,
            sha256=table.sha256.lower() or None,
            size=table.size or None,
            licence=table.licence,
            description=table.description,
            load=settings.build(specs.LoadSettings, among(own)),
            chat_template=_template(path, table.chat_template, f"{place}.chat_template"),
            chat_template_kwargs=table.chat_template_kwargs,
            on=table.on,
        )
        owns[name] = own
    return models, owns


def read_ensembles(
    path: Path,
    tables: object,
    models: Mapping[str, specs.ModelSpec],
    taken: Container[str],
    among: Callable[[Settings], Settings],
) -> tuple[dict[str, specs.EnsembleSpec], dict[str, Settings]]:
    """Read every [ensembles.NAME], of members among `models`, as `read_models` does."""
    ensembles, owns = {}, {}
    for name, place, values in _named(path, "ensembles", tables):
        table = _read(place, values, _Ensemble, _ENSEMBLE_KEYS)
        if name in taken:
            raise ConfigError(f"{place}: a model has this name already; choose another")
        members, weights = _members(path, f"{place}.members", table.members, models)
        if weights is not None and "weights" in values:
            raise ConfigError(f"{place}.weights: the members have weights of their own; remove it")
        given = values if weights is None else {**values, "weights": weights}
        own = settings.read_settings((specs.FusionSettings, Sampling), given, f"{place}.".__add__)
        told = among(own)
        try:
            ensembles[name] = specs.EnsembleSpec(
                name=name,
                members=tuple(members),
                pivot=table.pivot or members[0].name,
                fusion=settings.build(specs.FusionSettings, told),
                sampling=_sampling(path, place, values, settings.build(Sampling, told)),
                description=table.description,
            )
        except ReadError as error:
            raise settings.placed(error, f"{place}.") from error
        except InputError as error:
            raise ConfigError(f"{place}: {error}") from error
        owns[name] = own
    return ensembles, owns


def _members(
    path: Path,
    place: str,
    written: Sequence[str | dict[str, Any]],
    models: Mapping[str, specs.ModelSpec],
) -> tuple[list[specs.MemberSpec], list[float] | None]:
    members: list[specs.MemberSpec] = []
    weights: list[float | None] = []
    for number, each in enumerate(written):
        where = f"{place}[{number}]"
        if isinstance(each, dict):
            table = _read(where, each, _Member, ())
        else:
            where, table = place, _Member(model=each)
        if table.model not in models:
            hint = did_you_mean(table.model, models)
            raise ConfigError(f"{where}: there is no model {table.model!r}; {hint}")
        if table.name and not NAME.fullmatch(table.name):
            raise ConfigError(f"{where}.name: a name is letters, digits, '.', '_' and '-'")
        model = models[table.model]
        template = _template(path, table.chat_template, f"{where}.chat_template")
        for _ in range(table.n):
            member = specs.MemberSpec.of(
                model,
                name=free_name(table.name or table.model, [one.name for one in members]),
                system=table.system,
                prefix=table.prefix,
                chat_template=template or model.chat_template,
                chat_template_kwargs={**model.chat_template_kwargs, **table.chat_template_kwargs},
                on=table.on or model.on,
            )
            members.append(member)
            weights.append(table.weight)
    if all(weight is None for weight in weights):
        return members, None
    return members, [1.0 if weight is None else weight for weight in weights]


def free_name(name: str, taken: Sequence[str], form: str = "{}-{}") -> str:
    """Return a name, with a number where it is taken."""
    numbered = (form.format(name, number) for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


def written_table(section: str, name: str, values: Mapping[str, object]) -> str:
    """Return the lines of a table of models.toml, as they are read here."""

    def quoted(value: object) -> str:
        # JSON writes what is beyond 16 bits as two escapes, which TOML has not.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    lines = (f"\n{key} = {quoted(value)}" for key, value in values.items())
    return f"[{section}.{quoted(name)}]{''.join(lines)}"


def _named(path: Path, section: str, tables: object) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: {section}: must be tables [{section}.NAME]")
    for name, values in tables.items():
        place = f"{path}: {section}.{name}"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{place}: a name is letters, digits, '.', '_' and '-'")
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: must be a table")
        yield name, place, values


def _read(place: str, values: Mapping[str, object], kind: type[T], others: tuple[str, ...]) -> T:
    keys = kind.__struct_fields__
    settings.refuse_unknown(values, (*keys, *others), f"{place}.")
    try:
        return read({key: values[key] for key in keys if key in values}, kind)
    except ReadError as error:
        raise settings.placed(error, f"{place}.") from error


def _source(path: Path, place: str, values: Mapping[str, object], table: _Model) -> specs.Source:
    given = [key for key in _SOURCE_KEYS if key in values]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no source"
        raise ConfigError(f"{place}: {found}; give exactly one of path, hub or wheel")
    (kind,) = given
    for key in ("file", "revision", "parts"):
        if key in values and key not in _SOURCE_KEYS[kind]:
            raise ConfigError(f"{place}.{key}: does not go with {kind}")
    if kind == "path":
        return specs.PathSource(_beside(path, table.path, f"{place}.path"))
    if not table.file:
        raise ConfigError(f"{place}.file: is missing; it names the GGUF file inside the {kind}")
    if kind == "hub":
        _refuse_outside(place, table.file)
        return specs.HubSource(table.hub, table.file, table.revision)
    return _wheel_source(place, specs.WheelSource(table.wheel, table.file, table.parts))


def _wheel_source(place: str, source: specs.WheelSource) -> specs.WheelSource:
    try:
        parts = [source.part(i) for i in range(source.parts)]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        problem = f"or file has a field that is not n or i: {error}"
        raise ConfigError(f"{place}.wheel: {problem}") from error
    for requirement, file in parts:
        if not _REQUIREMENT.fullmatch(requirement):
            raise ConfigError(f"{place}.wheel: must be NAME==VERSION, not {requirement!r}")
        _refuse_outside(place, file)
    if len(set(parts)) != source.parts:
        raise ConfigError(f"{place}.parts: needs {{n}} or {{i}} in wheel or file to differ")
    return source


def _refuse_outside(place: str, file: str) -> None:
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or parts[0] == "/" or "\\" in file:
        raise ConfigError(f"{place}.file: must be a relative path, not {file!r}")


def _sampling(path: Path, place: str, values: Mapping[str, Any], drawn: Sampling) -> Sampling:
    request = {key: values[key] for key in settings.REQUEST_KEYS if key in values}
    for key in filter(request.__contains__, ("grammar", "json_schema")):
        where = f"{place}.{key}"
        request[key] = settings.read_text(_beside(path, request[key], where), where)
    if "chat_template" in request:
        where = f"{place}.chat_template"
        request["chat_template"] = _template(path, request["chat_template"], where)
    return replace(drawn, **request)


def _template(path: Path, written: str, where: str) -> str | None:
    if not written or "{" in written:
        return written or None
    return settings.read_text(_beside(path, written, where), where)


def _beside(path: Path, written: str, where: str) -> Path:
    return path.resolve().parent / settings.user_path(written, where)
