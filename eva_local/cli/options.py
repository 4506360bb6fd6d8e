"""Commands and their options as data, and the configuration that they change."""

import contextlib
import importlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from eva_local.config.config import Config, listed, load_config
from eva_local.config.settings import REQUEST_KEYS, keys_of, read_text
from eva_local.config.specs import FusionSettings, LoadSettings
from eva_local.errors import EvaError, InputError
from eva_local.types import THINKING_KEYS, Sampling

# Reads the configuration, over which the options go that it is given.
Load = Callable[..., Config]
# Settings that options give, unread; None where they give none.
Given = dict[str, Any]

_AUTO = "auto"
_HERE = Path(__file__).parent
#: What each setting is for.
HELP: dict[str, str] = json.loads((_HERE / "help.json").read_text("utf-8"))
# The other options, by command or group: how click declares them, but for their `type`. What is
# not said there is `shared`; `short` names settings, `meant` is what others call commands.
OPTIONS: dict[str, dict[str, Any]] = json.loads((_HERE / "options.json").read_text("utf-8"))
_SHORT = OPTIONS["short"]
# What commands are: which function of which module here a name calls, what it gets, its options.
COMMANDS: dict[str, dict[str, Any]] = json.loads((_HERE / "commands.json").read_text("utf-8"))
_SETTINGS = {
    "load": keys_of(LoadSettings),
    "sampling": keys_of(Sampling),
    "fusion": keys_of(FusionSettings),
    "thoughts": THINKING_KEYS,
}


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


def _note(context: click.Context, option: click.Parameter, value: Any) -> None:
    given = context.params.setdefault("overrides", {})
    key = "ensemble" if option.name == "model" else option.name
    value = (listed(value) if value else None) if option.name == "model" else value
    if value is not None and given.get(key) is not None:
        raise InputError("give the members with -e or with -m, not both")
    if value is not None or key not in given:
        given[key] = value


def _setting(key: str) -> list[click.Parameter]:
    """Return the option of a setting; the command gets all of them, unread, as `overrides`."""
    told = {"metavar": "VALUE", "help": HELP[key], "expose_value": False, "callback": _note}
    if key != "ensemble":
        return [_option(" ".join([*_SHORT.get(key, ()), f"--{key.replace('_', '-')}", key]), told)]
    members = _option("-m --model", {"expose_value": False, "callback": _note})
    return [members, _option("-e --ensemble", told | {"type": "name"})]


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


def made(*groups: str) -> list[click.Parameter]:
    """Return the options of groups: of options.json, of settings, or a setting by its name."""
    found: list[click.Parameter] = []
    for group in groups:
        found += [_option(names, how) for names, how in OPTIONS.get(group, {}).items()]
        for key in () if group in OPTIONS else _SETTINGS.get(group, (group,)):
            found += _setting(key)
    return found


def _option(names: str, how: dict[str, Any]) -> click.Option:
    return click.Option(names.split(), **_typed(OPTIONS["shared"].get(names, {}) | how, names))


def command(name: str, how: dict[str, Any]) -> click.Command:
    """Return a command that commands.json tells of; what it calls is imported when it runs."""
    groups = how.get("options", "").split()

    @click.pass_context
    def call(context: click.Context, /, **options: Any) -> Any:
        module, _, function = how["call"].partition(".")
        called = getattr(importlib.import_module(f"eva_local.cli.{module}"), function)
        if "drawing" in groups:
            options = _drawn(context.obj, **options)
        passed = {"context": context, "load": context.obj}
        return called(*(passed[each] for each in how.get("passes", "").split()), **options)

    arguments = [
        click.Argument([each], **_typed(told, each))
        for each, told in how.get("arguments", {}).items()
    ]
    told = "\n".join(how["help"])
    return click.Command(name, callback=call, params=[*arguments, *made(*groups)], help=told)


def _typed(told: dict[str, Any], name: str) -> dict[str, Any]:
    """Return how click declares a parameter that has a `type` of ours."""
    kind, told = told.get("type"), {key: each for key, each in told.items() if key != "type"}
    if isinstance(kind, list):
        words = isinstance(kind[0], str)
        return told | {"type": click.Choice(kind) if words else click.IntRange(*kind)}
    kinds: dict[str | None, dict[str, Any]] = {
        "file": {"metavar": "FILE", "type": click.Path(path_type=Path)},
        "existing": {"type": click.Path(exists=True, path_type=Path)},
        "path": {"type": click.Path()},
        "content": {"metavar": "FILE", "type": lambda file: read_text(Path(file), name)},
        "text": {"metavar": "TEXT", "type": written},
        "name": {"shell_complete": completed},
        "parallel": {"metavar": "N", "default": _AUTO, "type": lambda n: _count(n, name)},
        "shard": {"metavar": "I/N", "default": "1/1", "type": _shard},
        "bias": {"type": _bias},
        "object": {"type": _object},
    }
    return kinds.get(kind, {}) | told


def _drawn(load: Load, overrides: Given, **options: Any) -> dict[str, Any]:
    """Return options with `config`, and the `sampling` of its ensemble with what they say of it."""
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
    return options | {"config": config, "sampling": sampling}
