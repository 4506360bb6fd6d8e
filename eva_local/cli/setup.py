"""Commands that set eva-local up: add, completion; and help and version, for who types them."""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from eva_local.cli.options import Load
from eva_local.config.catalogue import free_name
from eva_local.config.config import load_config, name_of, user_file
from eva_local.config.specs import PathSource, part_names
from eva_local.errors import ConfigError, InputError, refusing
from eva_local.jsonl import replace_file
from eva_local.models.header import refusal

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...", type=Path)
@click.option("-e", "--ensemble", metavar="NAME", help="Make an ensemble of them, the first pivot.")
@click.pass_context
def add(context: click.Context, files: tuple[Path, ...], ensemble: str | None) -> None:
    """Add GGUF files to your models.toml.

    Of a DIR, all that are in it. The files stay where they are. With `eva-local --config FILE add`
    it is FILE that is written, else the models.toml of your configuration folder.
    """
    load: Load = context.obj
    config = load() if _written(context).exists() else load_config()
    taken = [*config.models, *config.ensembles]
    if ensemble in taken:
        raise InputError(f"--ensemble {ensemble}: this name is taken; choose another")
    known = {
        spec.source.path.resolve(): name
        for name, spec in config.models.items()
        if isinstance(spec.source, PathSource)
    }
    members: list[str] = []
    new: dict[tuple[str, str], dict[str, object]] = {}
    for file in _models_of(files):
        name = known.get(file.resolve())
        if name is None:
            name = free_name(name_of(file), taken)
            taken.append(name)
            new["models", name] = {"path": str(file.absolute())}
        click.echo(f"{name}: {'known already' if file.resolve() in known else 'added'}: {file}")
        members.append(name)
    if not members:
        raise InputError(f"there is no GGUF file in {', '.join(map(str, files))}")
    if ensemble is not None:
        new["ensembles", ensemble] = {"members": [*dict.fromkeys(members)]}
    path = append(context, new)
    click.echo(f"{path}; try: eva-local run -e {ensemble or members[0]} 'Hello'")


@click.command()
@click.argument("shell", required=False, type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str | None) -> None:
    """Print what lets a SHELL complete names and files.

    For bash: eva-local completion bash >> ~/.bashrc
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in _SHELLS:
        raise InputError(f"name the shell: {', '.join(_SHELLS)}")
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "eva-local", "_EVA_LOCAL_COMPLETE").source())


@click.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(context: click.Context, command: str | None) -> None:
    """Show what COMMAND does; without one, all commands."""
    root = context.find_root()
    group = root.command
    assert isinstance(group, click.Group)
    if command is None:
        click.echo(group.get_help(root))
        return
    found = group.get_command(root, command)
    if found is None:
        raise click.UsageError(f"No such command '{command}'.", root)
    click.echo(found.get_help(click.Context(found, parent=root, info_name=command)))


@click.command()
def version() -> None:
    """Show the version."""
    from importlib.metadata import version as installed

    click.echo(f"eva-local {installed('eva-local')}")


def append(context: click.Context, tables: Mapping[tuple[str, str], Mapping[str, object]]) -> Path:
    """Append tables to the models.toml of `--config FILE`, else the user's, and return its path."""
    path, text = _written(context), "schema = 1\n"
    if path.exists():
        with refusing(f"{path}: cannot be read", ConfigError):
            text = path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n"
    for (kind, name), table in tables.items():
        lines = (f"{key} = {_quoted(value)}\n" for key, value in table.items())
        text += f"\n[{kind}.{_quoted(name)}]\n{''.join(lines)}"
    try:
        tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    with refusing(f"{path}: cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.resolve(), text.encode())
    return path


def _written(context: click.Context) -> Path:
    path: Path = context.find_root().params["config_path"] or user_file()
    return path


def _models_of(files: tuple[Path, ...]) -> Iterator[Path]:
    for each in files:
        if not each.exists():
            raise InputError(f"{each}: there is no such file or folder")
        for file in sorted(each.rglob("*.gguf")) if each.is_dir() else [each]:
            if file.name != part_names(file.name)[0]:
                continue
            if wrong := refusal(file):
                if not each.is_dir():
                    raise InputError(f"{file}: {wrong}")
                click.echo(f"eva-local: {file} is left out: {wrong}", err=True)
            else:
                yield file


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
