"""Commands that set eva-local up: add and completion."""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from eva_local.cli.outputs import shown
from eva_local.config.catalogue import NAME, free_name, written_table
from eva_local.config.config import load_config, name_of, user_file
from eva_local.config.settings import REQUEST_KEYS, keys_of, user_path
from eva_local.config.specs import NO_MEMBER, EnsembleSpec, MemberSpec, PathSource, part_names
from eva_local.errors import ConfigError, InputError, StoreError, refusing
from eva_local.jsonl import replace_file
from eva_local.models.header import read_header, refusal
from eva_local.types import Sampling

_SHELLS = ("bash", "zsh", "fish")


def add(context: click.Context, files: tuple[Path, ...], ensemble: str | None) -> None:
    """Add GGUF files, and those in folders, to the user's models.toml."""
    new = Additions(context, ensemble, "--ensemble")
    members: list[str] = []
    told = []
    for file in _models_of(files):
        known = len(new.tables)
        members.append(new.model(file))
        state = "added" if len(new.tables) > known else "known already"
        told.append(f"{members[-1]}: {state}: {shown(file)}")
    if not members:
        raise InputError(f"there is no GGUF file in {', '.join(map(str, files))}")
    if ensemble is not None:
        new.tables["ensembles", ensemble] = {"members": [*dict.fromkeys(members)]}
    told.append(new.write(ensemble or members[0]))
    click.echo("\n".join(told))


class Additions:
    """What is to be added to the models.toml that a command names; for an ensemble of a new name.

    Raises InputError, naming the `option`, for a name that is taken or none.
    """

    def __init__(self, context: click.Context, ensemble: str | None, option: str) -> None:
        self._context, self.path = context, written(context)
        there = self.path.exists()
        self.config = config = load_config(self.path if there else None)
        self._taken = [*NO_MEMBER, *config.models, *config.ensembles]
        if ensemble is not None and (ensemble in self._taken or not NAME.fullmatch(ensemble)):
            problem = "give a name that is not taken, of letters, digits, '.', '_' and '-'"
            raise InputError(f"{option} {ensemble!r}: {problem}")
        self._taken.append(ensemble or "")
        # A model of ./models.toml is known in one folder only.
        text = self.path.read_text("utf-8-sig") if there else ""
        own = tomllib.loads(text).get("models", {})
        self._known = {
            os.path.realpath(spec.source.path): name
            for name, spec in config.models.items()
            if name in own and isinstance(spec.source, PathSource)
        }
        self.tables: dict[tuple[str, str], dict[str, object]] = {}

    def model(self, file: Path) -> str:
        """Return the name of a model of the user's, which is entered where it has none."""
        real = os.path.realpath(file)
        if real not in self._known:
            if problem := _problem(file):
                raise InputError(f"{shown(file)}: {problem}")
            self._known[real] = name = free_name(name_of(file), self._taken)
            self._taken.append(name)
            self.tables["models", name] = {"path": str(file.absolute())}
        return self._known[real]

    def ensemble(self, spec: EnsembleSpec) -> dict[str, object]:
        """Return the table of an ensemble; raise InputError for settings that it cannot hold."""
        for key in REQUEST_KEYS:
            if getattr(spec.sampling, key) != getattr(Sampling(), key):
                raise InputError(f"{spec.name} has a {key}, which stands elsewhere: copy its table")
        names = {one.source: name for name, one in self.config.models.items()}
        members: list[str] = []
        for member in spec.members:
            own = isinstance(source := member.source, PathSource) and self.model(source.path)
            members.append(own or names[source])
            plain = self.config.models.get(members[-1], MemberSpec("", member.source))
            if member.role != MemberSpec.of(plain).role:
                raise InputError(f"{member.name} has a role: copy the table of {spec.name}")
        table: dict[str, object] = {"members": members, "pivot": spec.pivot}
        loaded = ((spec.fusion, self.config.fusion), (spec.sampling, self.config.defaults))
        for settings, others in loaded:
            for key in keys_of(type(settings)):
                one = getattr(settings, key)
                # What the defaults of a file say is not always what the program's are.
                if not one == getattr(type(settings)(), key) == getattr(others, key):
                    table[key] = "random" if one is None else one
        return table

    def write(self, name: str) -> str:
        """Write them; return what to try with a name of theirs."""
        if self.tables:
            append(self.path, self.tables)
        named = f" --config {self.path}" if self._context.find_root().params["config_path"] else ""
        return f"{self.path}; try: eva-local{named} run -e {name} 'Hello'"


def completion(context: click.Context, shell: str | None) -> None:
    """Print what lets a shell, or the user's, complete names and files."""
    kind = get_completion_class(shell or Path(os.environ.get("SHELL", "")).name)
    if kind is None:
        raise InputError(f"name the shell: {', '.join(_SHELLS)}")
    click.echo(kind(context.find_root().command, {}, "eva-local", "_EVA_LOCAL_COMPLETE").source())


def append(path: Path, tables: Mapping[tuple[str, str], Mapping[str, object]]) -> None:
    """Append tables to a models.toml, or begin one; it is as it was where that cannot be done."""
    new = "".join(f"\n{written_table(*place, table)}\n" for place, table in tables.items())
    with refusing(f"{path}: cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What may not be written is not replaced either.
        with path.open("ab") as file:
            mode = os.fstat(file.fileno()).st_mode
        old = path.read_bytes() or b"schema = 1\n"
        data = old + (b"" if old.endswith(b"\n") else b"\n") + new.encode()
        try:
            tomllib.loads(data.decode("utf-8-sig"))
        except ValueError as error:
            raise ConfigError(f"{path}: not valid TOML with a table behind it: {error}") from error
        replace_file(Path(os.path.realpath(path)), data)
        path.chmod(mode)


def written(context: click.Context) -> Path:
    """Return the models.toml that is named, else the user's."""
    named = context.find_root().params["config_path"] or os.environ.get("EVA_LOCAL_CONFIG")
    return user_path(named or user_file(), "--config")


def _models_of(files: Iterable[Path]) -> Iterator[Path]:
    for each in files:
        found = sorted(each.rglob("*.gguf")) if each.is_dir() else [each]
        firsts = (one.with_name(part_names(one.name)[0]) for one in found if not one.is_dir())
        for file in dict.fromkeys(firsts):
            if not (problem := _problem(file)):
                yield file
            elif not each.is_dir():
                raise InputError(f"{file}: {problem}")
            else:
                click.echo(f"eva-local: {shown(file)} is left out: {shown(problem)}", err=True)


def _problem(file: Path) -> str:
    """Say why a file cannot be added; else ""."""
    if file.exists() and not file.is_file():
        return "is no file"
    try:
        str(file.absolute()).encode()
        read_header(file)
    except UnicodeEncodeError:
        return "its path is no UTF-8 text, which models.toml needs; rename it"
    except StoreError as error:
        return str(error).removeprefix(f"{file}: ")
    return refusal(file)
