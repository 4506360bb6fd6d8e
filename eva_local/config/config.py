"""models.toml, the environment and the command line -> frozen specs of models and ensembles."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eva_local.config import specs
from eva_local.config.catalogue import check_weights, read_ensembles, read_models
from eva_local.config.settings import (
    Setting,
    build,
    keys_of,
    read_settings,
    refuse_unknown,
    user_path,
)
from eva_local.errors import ConfigError, InputError, refusing
from eva_local.reading import Words, did_you_mean, settle
from eva_local.types import Sampling

SCHEMA = 1
FILE_NAME = "models.toml"
PREFIX = "EVA_LOCAL_"
# Variables that are not settings: where files are, and switches of the test suite.
OTHER_VARIABLES = ("EVA_LOCAL_CONFIG", "EVA_LOCAL_CACHE")
TEST_PREFIX = "EVA_LOCAL_TEST_"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was configured, from every place, with `settings` telling which."""

    path: Path
    models: Mapping[str, specs.ModelSpec]
    ensembles: Mapping[str, specs.EnsembleSpec]
    default_ensemble: str
    defaults: Sampling
    fusion: specs.FusionSettings
    settings: tuple[Setting, ...]
    weights: Setting | None = None
    drafter: Setting | None = None

    @property
    def sampling(self) -> Sampling:
        """How the ensemble that is run draws its answers."""
        return self._ensemble_of_file(None).sampling

    def model(self, name: str) -> specs.ModelSpec:
        """Return a model by name; ConfigError names the nearest."""
        if name not in self.models:
            hint = did_you_mean(name, self.models)
            raise ConfigError(f"{self.path}: there is no model {name!r}; {hint}")
        return self.models[name]

    def members(self, name: str | None = None) -> tuple[specs.ModelSpec, ...]:
        """Return the models that an ensemble's name, or a model's, stands for."""
        return self._ensemble_of_file(name).members

    def ensemble(self, name: str | None = None) -> specs.EnsembleSpec:
        """Return an ensemble by name, or the default one; a model's name is that model alone."""
        spec = self._ensemble_of_file(name)
        # Weights and a drafter from outside the file are meant for the one ensemble that is run, so
        # they are measured against its members here and not for every ensemble of the file.
        if self.weights is not None:
            check_weights(self.weights, len(spec.members))
        if self.drafter is None:
            return spec
        try:
            fusion = replace(spec.fusion, drafter=str(self.drafter.value))
            return replace(spec, fusion=fusion)
        except InputError as error:
            raise ConfigError(f"{self.drafter.origin}: {error}") from error

    def _ensemble_of_file(self, name: str | None) -> specs.EnsembleSpec:
        name = self.default_ensemble if name is None else name
        if name in self.ensembles:
            return self.ensembles[name]
        if name in self.models:
            return specs.EnsembleSpec(
                name, (specs.MemberSpec.of(self.models[name]),), name, self.fusion, self.defaults
            )
        hint = did_you_mean(name, (*self.ensembles, *self.models))
        raise ConfigError(f"{self.path}: there is no ensemble or model {name!r}; {hint}")


@dataclass(frozen=True, slots=True)
class _Defaults:
    """The one key of [defaults] that is no setting of loading, sampling or fusion."""

    ensemble: Words = "demo"

    def __post_init__(self) -> None:
        settle(self)


_KINDS: tuple[type, ...] = (_Defaults, specs.LoadSettings, Sampling, specs.FusionSettings)
DEFAULT_KEYS = tuple(key for kind in _KINDS for key in keys_of(kind))


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """Read the configuration: `overrides` > environment > file > defaults.

    path: the file; None looks for it (see `find_config`). overrides: keys of [defaults]; an
    entry that is None is as good as absent. Raises ConfigError naming the file and the key.
    """
    environ = os.environ if environ is None else environ
    given = {**_read_environment(environ), **_read_overrides(overrides or {})}
    path = find_config(path, environ)
    document = _read_document(path)
    defaults = _read_defaults(path, document.get("defaults", {}))
    drafter = given.pop("drafter", None)
    effective = {**defaults, **given}

    def among(own: Mapping[str, Setting]) -> dict[str, Setting]:
        return {**defaults, **own, **given}

    models, own = read_models(path, document.get("models", {}), among)
    ensembles, more = read_ensembles(path, document.get("ensembles", {}), models, among)
    chosen = _default_ensemble(path, effective, [*ensembles, *models])
    default = str(chosen.value)
    shown = {**defaults, **{**own, **more}[default], **given, "ensemble": chosen}
    if drafter is not None:
        shown["drafter"] = drafter
    return Config(
        path=path,
        models=models,
        ensembles=ensembles,
        default_ensemble=default,
        defaults=build(Sampling, effective),
        fusion=build(specs.FusionSettings, effective),
        settings=tuple(
            shown.get(key, Setting(key, getattr(kind(), key), "default"))
            for kind in _KINDS
            for key in keys_of(kind)
        ),
        weights=given.get("weights"),
        drafter=drafter,
    )


def find_config(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Choose the file: `path`, EVA_LOCAL_CONFIG, ./models.toml, the user's, the shipped one."""
    if path is not None:
        return user_path(path, "configuration")
    if environ.get(f"{PREFIX}CONFIG"):
        return user_path(environ[f"{PREFIX}CONFIG"], f"environment {PREFIX}CONFIG")
    import platformdirs  # only needed where nobody named a file

    user = Path(platformdirs.user_config_dir("eva-local", appauthor=False)) / FILE_NAME
    for candidate in (Path(FILE_NAME), user):
        if candidate.is_file():
            return candidate
    return shipped(FILE_NAME)


def shipped(name: str) -> Path:
    """Find a file or folder that comes with eva-local: in the package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise ConfigError(f"{name}: not in this installation of eva-local; install it again")


def _read_overrides(overrides: Mapping[str, object]) -> dict[str, Setting]:
    given = {key: value for key, value in overrides.items() if value is not None}
    refuse_unknown(given, DEFAULT_KEYS, "command line: ")
    named = {key: f"command line --{key.replace('_', '-')}" for key in given}
    return read_settings(_KINDS, given, named.__getitem__, text=True)


def _read_environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    variables = {f"{PREFIX}{key.upper()}": key for key in DEFAULT_KEYS}
    given = {
        name: text
        for name, text in environ.items()
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and text
    }
    refuse_unknown(given, (*variables, *OTHER_VARIABLES), "environment ")
    table = {variables[name]: text for name, text in given.items() if name in variables}
    return read_settings(_KINDS, table, lambda key: f"environment {PREFIX}{key.upper()}", text=True)


def _read_document(path: Path) -> dict[str, Any]:
    import tomllib

    names = {tomllib.TOMLDecodeError: "not valid TOML", UnicodeDecodeError: "not UTF-8 text"}
    try:
        with refusing(f"{path}: cannot be read", ConfigError):
            document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        # Else it is a whole number of thousands of digits.
        problem = names.get(type(error), "cannot be read")
        raise ConfigError(f"{path}: {problem}: {error}") from error
    refuse_unknown(document, ("schema", "defaults", "models", "ensembles"), f"{path}: ")
    if document.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: schema: must be {SCHEMA}, the form of file that is read here")
    return document


def _read_defaults(path: Path, values: object) -> dict[str, Setting]:
    place = f"{path}: defaults"
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: must be a table")
    refuse_unknown(values, DEFAULT_KEYS, f"{place}.")
    defaults = read_settings(_KINDS, values, f"{place}.".__add__)
    if "weights" in defaults and isinstance(defaults["weights"].value, tuple):
        problem = "can be no list here; give the list in [ensembles.NAME]"
        raise ConfigError(f"{place}.weights: {problem}")
    if "drafter" in defaults and defaults["drafter"].value not in specs.NO_MEMBER:
        problem = f"must be one of {', '.join(specs.NO_MEMBER)}; name a member in [ensembles.NAME]"
        raise ConfigError(f"{place}.drafter: {problem}")
    return defaults


def _default_ensemble(
    path: Path, effective: Mapping[str, Setting], names: Sequence[str]
) -> Setting:
    if not names:
        raise ConfigError(f"{path}: models: has no model; add one as [models.NAME]")
    default = Setting("ensemble", _Defaults().ensemble, "default")
    chosen = effective.get("ensemble", default)
    if chosen.value not in names:
        if chosen is default:
            return Setting("ensemble", names[0], "default")
        hint = did_you_mean(str(chosen.value), names)
        raise ConfigError(f"{chosen.origin}: there is no ensemble {chosen.value!r}; {hint}")
    return chosen
