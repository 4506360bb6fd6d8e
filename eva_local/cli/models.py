"""The commands that look after models: pull, list, show, verify, config."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from eva_local.cli.options import (
    Load,
    ensemble_option,
    json_option,
    setting_options,
)
from eva_local.cli.outputs import print_json, print_table, shown
from eva_local.cli.progress import ProgressDisplay
from eva_local.config.config import Config
from eva_local.config.specs import EnsembleSpec, ModelSpec, PathSource
from eva_local.errors import InputError, StoreError
from eva_local.models import store


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@ensemble_option
@click.option("--force", is_flag=True, help="Fetch again what is here already.")
@click.pass_obj
def pull(load: Load, names: tuple[str, ...], ensemble: str | None, force: bool) -> None:
    """Fetch models and check them.

    NAME is a model or an ensemble; without one, the default ensemble is fetched. What was
    interrupted is continued. No other command uses the network.
    """
    config = load({"ensemble": ensemble})
    for spec in _chosen(config, names, ensemble) or config.members():
        state = "pulled"
        if isinstance(spec.source, PathSource):
            state = "your own file"
        elif not force and store.find(spec) is not None:
            state = "already here"
        with contextlib.closing(ProgressDisplay()) as progress:
            path = store.pull(spec, progress.count, force=force)
        click.echo(f"{spec.name}: {state}: {path}")


@click.command("list")
@json_option
@click.pass_obj
def list_models(load: Load, as_json: bool) -> None:
    """List models and ensembles."""
    config = load()
    models = [_model_row(spec) for spec in config.models.values()]
    ensembles: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "members": [member.name for member in spec.members],
            "here": all(store.find(member) for member in spec.members),
            "default": spec.name == config.default_ensemble,
            "description": spec.description,
        }
        for spec in config.ensembles.values()
    ]
    if as_json:
        print_json({"models": models, "ensembles": ensembles})
        return
    print_table(
        ("MODEL", "SIZE", "HERE", "LICENCE", "DESCRIPTION"),
        [tuple((row | {"size": _size(row["size"])}).values()) for row in models],
    )
    click.echo()
    print_table(
        ("ENSEMBLE", "HERE", "MEMBERS", "DESCRIPTION"),
        [
            (
                f"{row['name']}{' (default)' if row['default'] else ''}",
                row["here"],
                " + ".join(row["members"]),
                row["description"],
            )
            for row in ensembles
        ],
    )


@click.command()
@click.argument("name", required=False)
@ensemble_option
@json_option
@click.pass_obj
def show(load: Load, name: str | None, ensemble: str | None, as_json: bool) -> None:
    """Show what is known of a model or ensemble.

    Its settings, its file, and what the file says of itself; without a NAME, of the default
    ensemble.
    """
    if name is not None and ensemble is not None:
        raise InputError("show: give a NAME or -e NAME, not both")
    config = load({"ensemble": ensemble})
    facts = (
        _model_facts(config.model(name))
        if name is not None and name in config.models
        else _ensemble_facts(config.ensemble(name))
    )
    print_json(facts) if as_json else _print_facts(facts)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@ensemble_option
@json_option
@click.pass_obj
def verify(load: Load, names: tuple[str, ...], ensemble: str | None, as_json: bool) -> int:
    """Check the files that are here.

    NAME is a model, an ensemble, or `all` for every model that is here, as without a NAME. The
    checksum of each file is computed and compared with the one that is configured, or that
    `pull` kept. The exit code is 2 where a file is not what it should be, or a named one is
    missing.
    """
    config = load({"ensemble": ensemble})
    named = _chosen(config, [name for name in names if name != "all"], ensemble)
    others = config.models.values() if not named or "all" in names else ()
    found = []
    for spec in dict.fromkeys((*named, *others)):
        with contextlib.closing(ProgressDisplay()) as progress:
            result = store.verify(spec, progress.count)
        if result.status != "missing" or spec in named:
            found.append(result)
    if as_json:
        print_json([asdict(result) for result in found])
    for result in found:
        if not as_json:
            click.echo(f"{result.name}: {_verdict(result, config.models[result.name])}")
    return 2 if any(one.status in ("mismatch", "missing", "invalid") for one in found) else 0


@click.command()
@setting_options()
@json_option
@click.pass_obj
def config(load: Load, overrides: dict[str, str], as_json: bool) -> None:
    """Show every setting and where it comes from."""
    loaded = load(overrides)
    file, cache = str(loaded.path.absolute()), str(store.cache_folder())
    contexts = _contexts(loaded)
    if as_json:
        settings = {
            setting.key: {"value": setting.value, "origin": setting.origin}
            for setting in loaded.settings
        }
        settings["n_ctx"]["members"] = contexts
        print_json({"file": file, "cache": cache, "settings": settings})
        return
    click.echo(f"file: {file}\ncache: {cache}\n")
    print_table(("KEY", "VALUE", "FROM"), [(s.key, s.value, s.origin) for s in loaded.settings])
    cut = [one.shortened(contexts.get(one.name, one.load.n_ctx)) for one in loaded.members()]
    for notice in dict.fromkeys(filter(None, cut)):
        click.echo(notice)


def _contexts(config: Config) -> dict[str, int]:
    """Return the n_ctx of the members that are here: at most what they were trained for."""
    from eva_local.models.header import read_header

    found = {}
    for member in config.members():
        path = store.find(member)
        with contextlib.suppress(StoreError):
            if path is not None:
                found[member.name] = member.load.context(read_header(path).n_ctx_train)
    return found


def _chosen(config: Config, names: Sequence[str], ensemble: str | None) -> list[ModelSpec]:
    """Return the models of all names; the name of an ensemble stands for its members."""
    wanted = [*names, *([ensemble] if ensemble is not None else [])]
    members = [member for name in wanted for member in config.members(name)]
    return list(dict.fromkeys(members))


def _model_row(spec: ModelSpec) -> dict[str, Any]:
    here = store.find(spec) is not None
    return {
        "name": spec.name,
        "size": store.size(spec) if here else spec.size,
        "here": here,
        "licence": spec.licence,
        "description": spec.description,
    }


def _model_facts(spec: ModelSpec) -> dict[str, object]:
    from eva_local.models.header import read_header

    path = store.find(spec)
    header = None if path is None else read_header(path)
    load = asdict(spec.load)
    if header is not None:
        load["n_ctx"] = spec.load.context(header.n_ctx_train)
    return {
        **_model_row(spec),
        "source": asdict(spec.source),
        "sha256": spec.sha256,
        "load": load,
        "path": path,
        "file": None if header is None else asdict(header),
    }


def _ensemble_facts(spec: EnsembleSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "description": spec.description,
        "pivot": spec.pivot,
        "fusion": asdict(spec.fusion),
        "members": [_model_facts(member) for member in spec.members],
    }


def _verdict(result: store.Verification, spec: ModelSpec) -> str:
    is_own = isinstance(spec.source, PathSource)
    match result.status:
        case "ok":
            return "ok"
        case "missing":
            if is_own:
                return store.local_problem(spec)
            lacks = "" if result.path is None else f" whole: {result.path} is missing"
            return f"not here{lacks}; run: eva-local pull {result.name}"
        case "mismatch":
            if is_own and spec.size not in (None, store.size(spec)):
                return store.local_problem(spec)
            return (
                f"NOT the expected file: {result.path} has sha256 {result.sha256}, not "
                f"{result.expected}; {_remedy(spec)}"
            )
        case "unverified":
            return f"unverified: no sha256 is configured; the file has {result.sha256}"
        case "invalid":
            return f"NOT a GGUF file: {result.path}; {_remedy(spec)}"


def _remedy(spec: ModelSpec) -> str:
    if isinstance(spec.source, PathSource):
        return f"mend the file, or models.{spec.name}"
    return f"run: eva-local pull --force {spec.name}"


def _print_facts(facts: dict[str, object], indent: str = "") -> None:
    for key, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{key}:")
            _print_facts(value, indent + "  ")
        elif isinstance(value, list):
            for item in value:
                click.echo(f"{indent}{key.removesuffix('s')}:")
                _print_facts(item, indent + "  ")
        else:
            # What a file says of itself is not to be obeyed, and makes no lines of its own.
            click.echo(f"{indent}{key}: {_size(value) if key == 'size' else shown(value)}")


def _size(value: object) -> str:
    return f"{value / 1e6:.0f} MB" if isinstance(value, int) else "?"
