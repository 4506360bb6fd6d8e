"""models.toml, the environment and the command line -> frozen specs of models and ensembles."""

import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from eva_local.config import settings, specs
from eva_local.config.catalogue import free_name, read_ensembles, read_models
from eva_local.config.elsewhere import HUB_NAME, Held, held, named, tag
from eva_local.config.settings import Setting
from eva_local.errors import ConfigError, InputError, refusing
from eva_local.reading import Words, did_you_mean, settle
from eva_local.types import Sampling

log = logging.getLogger("eva_local")

SCHEMA = 1
FILE_NAME = "models.toml"
PREFIX = "EVA_LOCAL_"
# Variables that are not settings: where files are, and switches of the test suite.
OTHER_VARIABLES = ("EVA_LOCAL_CONFIG", "EVA_LOCAL_CACHE")
TEST_PREFIX = "EVA_LOCAL_TEST_"
_SECTIONS = ("schema", "defaults", "models", "ensembles")
# Names of members stand in a list like this; a comma of a file's own has a backslash before it.
_BETWEEN = re.compile(r"(?<!\\),")
# Of a name that is too long for a file, this says no.
_is_file = os.path.isfile


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was configured, from every place, with `settings` telling which.

    `paths` are the files that were read, the later the stronger. Weights and a drafter from
    `outside` of them are meant for the one ensemble that is run, whose members they must fit.
    """

    paths: tuple[Path, ...]
    models: Mapping[str, specs.ModelSpec]
    ensembles: Mapping[str, specs.EnsembleSpec]
    default_ensemble: str
    defaults: Sampling
    fusion: specs.FusionSettings
    load: specs.LoadSettings
    settings: Mapping[str, Setting]
    outside: Mapping[str, Setting]

    @property
    def sampling(self) -> Sampling:
        """How the ensemble that is run draws its answers."""
        return self._ensemble_of_file(None).sampling

    def of_hub(self, called: str) -> tuple[str, specs.ModelSpec | None]:
        """Return the name in full of OWNER/REPO:QUANT, or what is short for it, and its model."""
        known = {
            Held(f"{source.repository}:{tag(Path(source.file))}", Path(source.file), ""): spec
            for spec in [*self.models.values()][::-1]
            if isinstance(source := spec.source, specs.HubSource)
        }
        found = named(called, list(known))
        return (found[-1].name, known[found[-1]]) if found else (called, None)

    def members(self, name: str | None = None) -> tuple[specs.ModelSpec, ...]:
        """Return the models that an ensemble's name, or a model's, stands for."""
        return self._ensemble_of_file(name).members

    def ensemble(
        self, name: str | Sequence[str] | None = None, pivot: str | None = None
    ) -> specs.EnsembleSpec:
        """Return an ensemble by name, or the default one; a model's name is that model alone.

        So is a GGUF file, and `a,b`, or a sequence of both, is an ensemble of them, whose pivot is
        the first. A name may be that of another program on this machine for a model that it holds.
        """
        spec = self._ensemble_of_file(name)
        if pivot is not None:
            spec = replace(spec, pivot=pivot)
        for key, setting in self.outside.items():
            try:
                changed: dict[str, Any] = {key: setting.value}
                spec = replace(spec, fusion=replace(spec.fusion, **changed))
            except InputError as error:
                raise ConfigError(f"{setting.origin}: {error}") from error
        return spec

    def _ensemble_of_file(self, name: str | Sequence[str] | None) -> specs.EnsembleSpec:
        name = self.default_ensemble if name is None else name
        if not isinstance(name, str):
            return self._made(name)
        if name in self.ensembles:
            return self.ensembles[name]
        parts = [each.replace("\\,", ",") for each in _BETWEEN.split(name)]
        return self._made([name] if _is_file(name) else parts)

    def _made(self, given: Sequence[str]) -> specs.EnsembleSpec:
        members: list[specs.MemberSpec] = []
        for model in map(self._found, given):
            taken = [*specs.NO_MEMBER, *(member.name for member in members)]
            members.append(specs.MemberSpec.of(model, name=free_name(model.name, taken)))
        names = [member.name for member in members]
        files = [each for each in given if each not in self.models and _is_file(each)]
        whole = (str(Path(each).absolute()) if each in files else each for each in given)
        return specs.EnsembleSpec(
            *("+".join(names), tuple(members), names[0], self.fusion, self.defaults),
            called=listed(whole).encode(errors="replace").decode(),
        )

    def _found(self, name: str) -> specs.ModelSpec:
        """Return a model that is configured, or of a file: the user's, or another program's."""
        if name in self.models:
            return self.models[name]
        path = settings.user_path(name, "model")
        if not _is_file(path):
            called, spec = self.of_hub(name)
            there = held(os.environ, Path.home()) if name not in self.ensembles else []
            known = named(called, there)
            if spec is not None:
                # What another program holds need not be pulled.
                sources = [specs.PathSource(each.path.absolute()) for each in known[:1]]
                return replace(spec, source=sources[0], size=None, sha256=None) if sources else spec
            if not known:
                hint = did_you_mean(name, (*self.ensembles, *self.models))
                if name in self.ensembles:
                    hint = "an ensemble is no member of another"
                elif path.suffix == ".gguf" or os.path.isdir(path):  # noqa: PTH112
                    hint = f"{path} is no file" if name else "a name is empty"
                elif HUB_NAME.fullmatch(name):
                    hint = f"run: eva-local pull {name}"
                raise ConfigError(f"there is no ensemble or model {name!r}; {hint}")
            path = known[0].path
        source = specs.PathSource(path.absolute())
        return specs.ModelSpec(name_of(Path(name)), source, load=self.load)


@dataclass(frozen=True, slots=True)
class _Defaults:
    """The one key of [defaults] that is no setting of loading, sampling or fusion."""

    ensemble: Words = "demo"

    def __post_init__(self) -> None:
        settle(self)


_KINDS: tuple[type, ...] = (_Defaults, specs.LoadSettings, Sampling, specs.FusionSettings)
DEFAULT_KEYS = settings.keys_of(*_KINDS)


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    of_python: bool = False,
) -> Config:
    """Read the configuration: `overrides` > environment > files > defaults.

    Of a model or ensemble that several files have, and of a key of [defaults], the last one holds:
    the shipped file, the user's, ./models.toml, and `path` or the one that EVA_LOCAL_CONFIG names.
    overrides: keys of [defaults], from the command line or arguments of Python; an entry that is
    None is as good as absent. Raises ConfigError naming the file and the key.
    """
    environ = os.environ if environ is None else environ
    given = _read_environment(environ) | _read_overrides(overrides or {}, of_python)
    layers = _layers(path, environ)
    defaults: dict[str, Setting] = {}
    for path, document in layers:
        defaults |= _read_defaults(path, document.get("defaults", {}))
    outside = {key: given.pop(key) for key in [*given] if key in ("weights", "drafter")}
    effective = {**defaults, **given}

    def among(own: Mapping[str, Setting]) -> dict[str, Setting]:
        return {**defaults, **own, **given}

    models: dict[str, specs.ModelSpec] = {}
    ensembles: dict[str, specs.EnsembleSpec] = {}
    owns: dict[str, dict[str, Setting]] = {}
    chosen = Setting("", "default")
    new: list[list[str]] = []
    for path, document in layers:
        more, own = read_models(path, document.get("models", {}), among)
        new.append([name for name in more if name not in models])
        # The user's own come first.
        models, owns = more | models | more, owns | own
    for number, (path, document) in enumerate(layers):
        tables = document.get("ensembles", {})
        # A model takes the place of an ensemble of an earlier file.
        taken = {name for names in new[number + 1 :] for name in names}
        if isinstance(tables, dict):
            tables = {name: table for name, table in tables.items() if name not in taken}
        made, own = read_ensembles(path, tables, models, document.get("models", {}), among)
        if found := [*(name for name in made if name not in ensembles), *new[number]]:
            chosen = replace(chosen, value=found[0])
        ensembles, owns = made | ensembles | made, owns | own
    chosen = effective.get("ensemble", chosen)
    default = str(chosen.value)
    shown = {**among(owns.get(default, {})), **outside, "ensemble": chosen}
    config = Config(
        paths=tuple(path for path, _ in layers),
        models=models,
        ensembles=ensembles,
        default_ensemble=default,
        defaults=settings.build(Sampling, effective),
        fusion=settings.build(specs.FusionSettings, effective),
        load=settings.build(specs.LoadSettings, effective),
        settings={
            key: shown.get(key, Setting(getattr(kind(), key), "default"))
            for kind in _KINDS
            for key in settings.keys_of(kind)
        },
        outside=outside,
    )
    try:
        config.members()
    except ConfigError as error:
        raise ConfigError(f"{chosen.origin}: {error}") from error
    return config


def listed(names: Iterable[str]) -> str:
    """Return names of models as a list, which is the name of an ensemble of them."""
    return ",".join(name.replace(",", "\\,") for name in names)


def name_of(file: Path) -> str:
    """Return a name for a model, from that of its file."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", file.name.removesuffix(".gguf"))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"


def user_file() -> Path:
    """Return where the user's own models.toml is, or would be."""
    return Path(platformdirs.user_config_dir("eva-local", appauthor=False)) / FILE_NAME


def _layers(path: Path | None, environ: Mapping[str, str]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the files that are read, the last the strongest, and what they say."""
    chosen = []
    if written := path or environ.get(f"{PREFIX}CONFIG"):
        place = "configuration" if path else f"environment {PREFIX}CONFIG"
        chosen = [settings.user_path(written, place)]
    others = [file for file in (user_file(), Path(FILE_NAME)) if file.is_file()]
    found: dict[Path, tuple[Path, dict[str, Any]]] = {}
    for file in (shipped(FILE_NAME), *others, *chosen):
        document = _read_document(file, strict=file in chosen)
        if document is not None:
            # What is named twice counts where it counts most.
            found.pop(file.resolve(), None)
            found[file.resolve()] = file, document
    return list(found.values())


def shipped(name: str) -> Path:
    """Find a file or folder that comes with eva-local: in the package, else in the checkout."""
    for folder in Path(__file__).resolve().parents[1:3]:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(f"{name}: not in this installation of eva-local; install it again")


def _read_overrides(overrides: Mapping[str, object], of_python: bool) -> dict[str, Setting]:
    given = {key: value for key, value in overrides.items() if value is not None}
    settings.refuse_unknown(given, DEFAULT_KEYS, "argument " if of_python else "command line: ")

    def origin(key: str) -> str:
        return f"argument {key}" if of_python else f"command line --{key.replace('_', '-')}"

    return settings.read_settings(_KINDS, given, origin, text=True)


def _read_environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    variables = {f"{PREFIX}{key.upper()}": key for key in DEFAULT_KEYS}
    ours = [
        name for name in environ if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX)
    ]
    given = {name: environ[name] for name in ours if environ[name]}
    settings.refuse_unknown(given, (*variables, *OTHER_VARIABLES), "environment ")
    table = {key: given[name] for name, key in variables.items() if name in given}
    where = {key: f"environment {name}" for name, key in variables.items()}
    return settings.read_settings(_KINDS, table, where.__getitem__, text=True)


def _read_document(path: Path, *, strict: bool) -> dict[str, Any] | None:
    """Return what a file says; None where nobody named it, and it is another program's."""
    names = {tomllib.TOMLDecodeError: "not valid TOML", UnicodeDecodeError: "not UTF-8 text"}
    try:
        with refusing(f"{path}: cannot be read", ConfigError):
            document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        # Else it is a whole number of thousands of digits.
        problem = names.get(type(error), "cannot be read")
        raise ConfigError(f"{path}: {problem}: {error}") from error
    others = (isinstance(document.get(key, []), list) for key in _SECTIONS)
    if not strict and document and all(others):
        log.warning("%s is another program's, and is not read: it has no [models]", path)
        return None
    settings.refuse_unknown(document, _SECTIONS, f"{path}: ")
    if document.get("schema", SCHEMA) != SCHEMA:
        raise ConfigError(f"{path}: schema: must be {SCHEMA}, the form of file that is read here")
    return document


def _read_defaults(path: Path, values: object) -> dict[str, Setting]:
    place = f"{path}: defaults"
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: must be a table")
    settings.refuse_unknown(values, DEFAULT_KEYS, f"{place}.")
    defaults = settings.read_settings(_KINDS, values, f"{place}.".__add__)
    if "weights" in defaults and isinstance(defaults["weights"].value, tuple):
        problem = "can be no list here; give the list in [ensembles.NAME]"
        raise ConfigError(f"{place}.weights: {problem}")
    if "drafter" in defaults and defaults["drafter"].value not in specs.NO_MEMBER:
        problem = f"must be one of {', '.join(specs.NO_MEMBER)}; name a member in [ensembles.NAME]"
        raise ConfigError(f"{place}.drafter: {problem}")
    return defaults
