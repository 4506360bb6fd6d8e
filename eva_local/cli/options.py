"""Options that commands share, and the configuration that they change, read when asked for."""

import contextlib
import functools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from eva_local.config.config import DEFAULT_KEYS, Config, listed, load_config
from eva_local.config.settings import REQUEST_KEYS, read_text
from eva_local.errors import EvaError, InputError

Command = TypeVar("Command", bound=Callable[..., Any])
# Reads the configuration, over which the options go that it is given.
Load = Callable[..., Config]

_AUTO = "auto"
_HERE = Path(__file__).parent
#: What each setting is for.
HELP: dict[str, str] = json.loads((_HERE / "help.json").read_text("utf-8"))
# The other options, by command or group: how click declares them, but for their `type`. What is
# not said there is `shared`; `short` names settings, `meant` is what others call commands.
OPTIONS: dict[str, dict[str, Any]] = json.loads((_HERE / "options.json").read_text("utf-8"))
_SHORT = OPTIONS["short"]


def written(text: str) -> str:
    """Return a text without the byte order mark of a file that a shell put in its place."""
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")


def completed(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a model or ensemble, or a file."""
    logging.disable()
    with contextlib.suppress(EvaError, OSError):
        config = load_config(context.find_root().params.get("config_path"))
        known = (*config.ensembles, *config.models)
        if names := [CompletionItem(name) for name in known if name.startswith(begun)]:
            return names
    return [CompletionItem(begun, type="file")]


def setting_options(*keys: str) -> Callable[[Command], Command]:
    """Add an option for each setting; the command gets those, unread, as `overrides`."""

    def note(context: click.Context, option: click.Parameter, value: Any) -> None:
        given = context.params.setdefault("overrides", {})
        key = "ensemble" if option.name == "model" else option.name
        value = (listed(value) if value else None) if option.name == "model" else value
        if value is not None and given.get(key) is not None:
            raise InputError("give the members with -e or with -m, not both")
        if value is not None or key not in given:
            given[key] = value

    how: dict[str, Any] = {"expose_value": False, "callback": note}

    def decorate(command: Command) -> Command:
        for key in reversed(keys or DEFAULT_KEYS):
            names = [*_SHORT.get(key, ()), f"--{key.replace('_', '-')}", key]
            complete = completed if key == "ensemble" else None
            told = how | {"metavar": "VALUE", "help": HELP[key], "shell_complete": complete}
            command = click.option(*names, **told)(command)
            if key == "ensemble":
                command = _option("-m --model", how)(command)
        return command

    return decorate


def _bias(text: str) -> tuple[str, float]:
    token, equals, value = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if equals:
            return token, -math.inf if value.lower() == "false" else float(value)
    raise InputError(f"--logit-bias {text!r}: give TEXT=NUMBER, or TEXT=false to forbid it")


def _object(text: str) -> dict[str, Any]:
    found = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
    if not isinstance(found, dict):
        raise InputError(f"--chat-template-kwargs {text!r}: give an object of JSON")
    return found


def _count(text: str, name: str) -> int | None:
    if text != _AUTO and not (text.isdecimal() and int(text)):
        raise InputError(f"{name} must be {_AUTO} or a whole number above 0, not {text!r}")
    return None if text == _AUTO else int(text)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 0 < int(number) <= int(count):
        return int(number), int(count)
    raise InputError(f"--shard {text!r}: give I/N, such as 1/4 for the first of four")


def declared(*groups: str) -> Callable[[Command], Command]:
    """Add the options of groups of options.json, in the order of both."""

    def decorate(command: Command) -> Command:
        for group in reversed(groups):
            for names, how in reversed(OPTIONS[group].items()):
                command = _option(names, how)(command)
        return command

    return decorate


def _option(names: str, how: dict[str, Any]) -> Callable[[Command], Command]:
    told = OPTIONS["shared"].get(names, {}) | how
    return click.option(*names.split(), **told | _typed(told.get("type"), names))


def _typed(kind: str | list[Any] | None, name: str) -> dict[str, Any]:
    match kind:
        case "file":
            return {"metavar": "FILE", "type": click.Path(path_type=Path)}
        case "content":
            return {"metavar": "FILE", "type": lambda file: read_text(Path(file), name)}
        case "text":
            return {"metavar": "TEXT", "type": written}
        case "name":
            return {"type": None, "shell_complete": completed}
        case "parallel":
            return {"metavar": "N", "default": _AUTO, "type": lambda text: _count(text, name)}
        case "shard":
            return {"metavar": "I/N", "default": "1/1", "type": _shard}
        case [str(), *_]:
            return {"type": click.Choice(kind)}
        case [*bounds]:
            return {"type": click.IntRange(*bounds)}
    return {"type": {"bias": _bias, "object": _object}.get(kind or "")}


def drawing_options(function: Command) -> Command:
    """Add the options; the command gets `config`, and the `sampling` of its ensemble with them."""

    @functools.wraps(function)
    def command(load: Load, overrides: dict[str, object], **options: Any) -> Any:
        config = load(overrides)
        drawn = {key: options.pop(key) for key in REQUEST_KEYS}
        given = {key: value for key, value in drawn.items() if value not in (None, (), {})}
        if "grammar" in given or "json_schema" in given:
            # One takes the place of the other.
            given = {"grammar": None, "json_schema": None} | given
        from eva_local.openai.request import read_options

        told = given.pop("chat_template_kwargs", {})
        asked = {"thinking": overrides["thinking"], "chat_template_kwargs": told}
        sampling = replace(read_options(asked, config.sampling), **given)
        if sampling.grammar is not None or sampling.json_schema is not None:
            from eva_local.engine.grammar import check

            check(sampling)
        return function(config=config, sampling=sampling, **options)

    made: Any = click.pass_obj(command)
    decorated: Command = setting_options()(declared("drawing")(made))
    return decorated
