"""The commands that look after models: pull, list, show, verify, config."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from eva_local.cli.options import Given, Load
from eva_local.cli.outputs import ProgressDisplay, print_json, print_report, print_table, shown
from eva_local.cli.setup import append, written
from eva_local.config.catalogue import free_name
from eva_local.config.config import Config, name_of
from eva_local.config.elsewhere import HUB_NAME, held, named
from eva_local.config.specs import ModelSpec, PathSource
from eva_local.errors import InputError, PromptError, StoreError
from eva_local.models import download, store
from eva_local.models.header import read_header, refusal


def pull(context: click.Context, names: tuple[str, ...], overrides: Given, force: bool) -> None:
    """Fetch models and check them; those of the hub are entered in the user's models.toml."""
    load: Load = context.obj
    known = [found for name in names if (found := _known(context, name, force))]
    config = load(overrides)
    chosen = _chosen(config, known, overrides["ensemble"])
    for spec in chosen if names else chosen or config.members():
        state = "pulled"
        if isinstance(spec.source, PathSource):
            state = "your own file"
        elif not force and store.find(spec) is not None:
            state = "already here"
        with contextlib.closing(ProgressDisplay()) as progress:
            path = store.pull(spec, progress, force=force)
        click.echo(f"{spec.name}: {state}: {path}")


def list_models(load: Load, everything: bool, as_json: bool) -> None:
    """List models and ensembles."""
    config = load()
    models = [_model_row(spec) for spec in config.models.values()]
    ensembles: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "members": [member.name for member in spec.members],
            "here": all(_is_here(member) for member in spec.members),
            "default": spec.name == config.default_ensemble,
            "description": spec.description,
        }
        for spec in config.ensembles.values()
    ]
    others: list[dict[str, Any]] = []
    # Whatever is in the folders of other programs.
    with contextlib.suppress(Exception):
        for each in held(os.environ, Path.home()):
            size = store.size(ModelSpec(each.name, PathSource(each.path)))
            others.append(asdict(each) | {"size": size})
    told = {"models": models, "ensembles": ensembles}
    if everything:
        told["elsewhere"] = others
    if as_json:
        print_json(told)
        return
    print_report("cli/list.txt", told=told, size=_size)
    for spec in config.models.values():
        if (path := store.find(spec)) and (wrong := refusal(path)):
            click.echo(f"{spec.name}: {path}: {wrong}", err=True)
    if others and not everything:
        more = "more models are held by other programs: eva-local list --all"
        click.echo(f"{len(others)} {more}", err=True)


def show(load: Load, name: str | None, overrides: Given, as_json: bool) -> None:
    """Show what is known of a model or ensemble."""
    if name is not None and overrides["ensemble"] is not None:
        raise InputError("show: give a NAME or -e NAME, not both")
    config = load(overrides)
    if name is not None and name in config.models and name not in config.ensembles:
        facts = _model_facts(config.models[name])
    else:
        spec = config.ensemble(name)
        facts = {
            "name": spec.name,
            "description": spec.description,
            "pivot": spec.pivot,
            "fusion": asdict(spec.fusion),
            **{k: v for k, v in asdict(spec.sampling).items() if k.startswith("thinking")},
            "chat_template": spec.sampling.chat_template and "given",
            "chat_template_kwargs": spec.sampling.chat_template_kwargs,
            "members": [_model_facts(member) for member in spec.members],
        }
    print_json(facts) if as_json else print_report("cli/show.txt", facts=facts, size=_size)


def verify(load: Load, names: tuple[str, ...], overrides: Given, as_json: bool) -> int:
    """Check the files that are here; return the exit code, 2 where one is not what it should be."""
    config = load(overrides)
    named = _chosen(config, names, overrides["ensemble"])
    found = []
    for spec in named or config.models.values():
        with contextlib.closing(ProgressDisplay()) as progress:
            result = store.verify(spec, progress)
        if result.status != "missing" or spec in named:
            found.append((result, spec))
    if as_json:
        print_json([asdict(result) for result, _ in found])
    elif found:
        told: dict[str, Any] = {"size": store.size, "local_problem": store.local_problem}
        print_report("cli/verify.txt", found=found, **told)
    return 2 if any(one.status in ("mismatch", "missing", "invalid") for one, _ in found) else 0


def config(load: Load, overrides: Given, as_json: bool) -> None:
    """Show every setting and where it comes from."""
    loaded = load(overrides)
    # The n_ctx of the members that are here is at most what they were trained for.
    contexts: dict[str, int] = {}
    for member in loaded.members():
        with contextlib.suppress(StoreError):
            if path := store.find(member):
                contexts[member.name] = member.load.context(read_header(path).n_ctx_train)
    files, cache = [str(path.absolute()) for path in loaded.paths], str(store.cache_folder())
    if as_json:
        settings: dict[str, Any] = {key: asdict(one) for key, one in loaded.settings.items()}
        settings["n_ctx"]["members"] = contexts
        print_json({"files": files, "cache": cache, "settings": settings})
        return
    click.echo("".join(f"file: {file}\n" for file in files) + f"cache: {cache}\n")
    rows = ((key, one.value, one.origin) for key, one in loaded.settings.items())
    print_table(("KEY", "VALUE", "FROM"), rows)
    cut = [one.shortened(contexts.get(one.name, one.load.n_ctx)) for one in loaded.members()]
    for notice in dict.fromkeys(filter(None, cut)):
        click.echo(notice)


def _known(context: click.Context, name: str, force: bool) -> str | None:
    """Return a configured name; what the hub has is entered first, None is held elsewhere."""
    asked = HUB_NAME.fullmatch(name)
    if asked is None or Path(name).is_file():
        return name
    config: Config = context.obj()
    repository, revision, file, quant = asked.groups("")
    called = f"{repository}:{quant}".removesuffix(":")
    if not file:
        called, spec = config.of_hub(called)
        there = named(called, held(os.environ, Path.home()))
        if there and not force and not (spec and store.find(spec)):
            place = f"{there[0].program} already: {there[0].path}"
            click.echo(f"{name}: held by {place}; use it with -m {called}")
            return None
        if spec is not None:
            return spec.name
    source, size, licence = download.ask(repository, revision, file, quant)
    for spec in config.models.values():
        if spec.source == source:
            return spec.name
    new = free_name(name_of(Path(source.file)), [*config.models, *config.ensembles])
    more = f" and {count - 1} more" if (count := len(source.parts)) > 1 else ""
    told = f"{_size(size or None)}, licence {licence or 'unknown'}"
    click.echo(shown(f"{new}: {repository}: {source.file}{more}, {told}"))
    table: dict[str, object] = {"hub": repository, "file": source.file}
    table |= {"revision": source.revision, "size": size, "licence": licence}
    given = {key: value for key, value in table.items() if value not in ("", 0, "main")}
    append(written(context), {("models", new): given})
    return new


def _chosen(config: Config, names: Sequence[str], ensemble: str | None) -> list[ModelSpec]:
    wanted = [*names, *([ensemble] if ensemble is not None else [])]
    members = [member for name in wanted for member in config.members(name)]
    return list(dict.fromkeys(members))


def _model_row(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "size": store.size(spec) if store.find(spec) else spec.size,
        "here": _is_here(spec),
        "licence": spec.licence,
        "description": spec.description,
    }


def _is_here(spec: ModelSpec) -> bool:
    path = store.find(spec)
    return path is not None and not refusal(path)


def _model_facts(spec: ModelSpec) -> dict[str, object]:
    path, load, file = store.find(spec), asdict(spec.load), None
    template = spec.chat_template
    if path is not None:
        header = read_header(path)
        load["n_ctx"] = spec.load.context(header.n_ctx_train)
        template = template or header.chat_template
        file = asdict(header)
        del file["chat_template"]
    known = {"source": asdict(spec.source), "sha256": spec.sha256, "load": load}
    role = {key: found for key in ("system", "prefix") if (found := getattr(spec, key, ""))}
    return {
        **(_model_row(spec) | known | role),
        "chat_template": spec.chat_template and "given",
        "chat_template_kwargs": spec.chat_template_kwargs,
        "thinking": thinking_of(spec.name, template or ""),
        "path": path,
        "problem": (path and refusal(path)) or None,
        "file": file,
    }


def thinking_of(name: str, template: str) -> dict[str, object] | None:
    """Return how a chat template thinks; None where it does not, or cannot be read."""
    from eva_local.llama.chat_template import ChatTemplate, Thinker

    with contextlib.suppress(PromptError):
        thinker = Thinker(ChatTemplate(template, name, {"bos_token": "", "eos_token": ""}))
        if thinker.marks is not None:
            marks = (thinker.marks.begin.strip(), thinker.marks.end)
            told_by = tuple(thinker.arguments("on"))
            return {"marks": marks, "told_by": told_by, "thinks_untold": thinker.thinks}
    return None


def _size(value: object) -> str:
    return f"{value / 1e6:.0f} MB" if isinstance(value, int) else "?"
