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
from eva_local.config.settings import read_text
from eva_local.errors import EvaError, InputError

Command = TypeVar("Command", bound=Callable[..., Any])
# Reads the configuration, over which the options go that it is given.
Load = Callable[..., Config]

_AUTO = "auto"
_SHORT = {
    "ensemble": ("-e",),
    "n_ctx": ("-c", "--ctx-size"),
    "threads": ("-t",),
    "n_gpu_layers": ("-ngl",),
    "max_tokens": ("-n",),
    "temperature": ("--temp",),
}

HELP = {
    "ensemble": "Run this ensemble, one model alone, or a,b,c: models or files together.",
    "n_ctx": "Tokens of context of each member.",
    "n_gpu_layers": "Layers on the GPU; -1 is all.",
    "main_gpu": "The one GPU to use, from 0; -1 is all.",
    "tensor_split": "Shares of the GPUs, such as 3,1.",
    "threads": "CPU threads; 0 is all cores.",
    "n_batch": "Tokens decoded at once at most.",
    "flash_attention": "auto, on or off.",
    "kv_type": "Type of the cached keys and values: f16, q8_0, q4_0 or f32.",
    "swa_full": "Keep all of a sliding window, so that text can be taken back.",
    "batch_invariant": "Compute each text on the CPU as if no other were beside it.",
    "snapshots": "Saved states of a text that a recurrent model can go back to; 0 is none.",
    "max_tokens": "Write at most this many tokens.",
    "temperature": "0 always takes the likeliest token.",
    "top_k": "Draw from this many tokens; 0 is off.",
    "top_p": "Draw from the likeliest tokens of this mass; 1 is off.",
    "min_p": "Draw from tokens at least this likely against the first; 0 is off.",
    "repeat_penalty": "Above 1, what was written is less likely again; 1 is off.",
    "repeat_last_n": "Penalties look at this many tokens back; -1 is all, 0 is off.",
    "presence_penalty": "Taken from the log-probability of what was written; 0 is off.",
    "frequency_penalty": "The same, for each time that it was written.",
    "seed": "Start of the random numbers; -1 or random is another one each time.",
    "thinking": "Think before the answer: on, off, apart (each member for itself) or auto.",
    "thinking_temperature": "Temperature of thoughts apart, if not that of the answer.",
    "thinking_budget": "Tokens of a thought at most; -1 is as many as of the answer.",
    "thinking_mark": "What ends a thought apart of a model that has no marks for it.",
    "thinking_instruction": "What such a model is told, with {mark} for the mark.",
    "space": "The space in which votes are added up: pivot or bytes.",
    "mapping": "surface, surface-refined, eva or eva-paper.",
    "combine": "mean or geometric.",
    "sharpness": "Geometric mean: above 1, what members agree on counts for more; 1 is off.",
    "filter": "Which members take part in a step: top-n or off.",
    "filter_n": "The n of the filter top-n.",
    "candidates": "Tokens that a member votes with; 0 is all.",
    "weights": "equal, running, prompt-perplexity, thought, or numbers, such as 2,1.",
    "weight_temperature": "Weights that follow the text: the higher, the more equal.",
    "weight_decay": "Running weights: what is left of the past after each byte.",
    "prompt_evidence": "Bytes at the end of a prompt that weights begin with; 0 is none.",
    "gate": "Ask the others only where the pivot is less sure than this; 1 is always.",
    "drafter": "Who goes ahead so that answers come sooner: auto, off, ngram or a member.",
}


def written(text: str) -> str:
    """Return a text without the byte order mark of a file that a shell put in its place."""
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")


system_option = click.option(
    "-s", "--system", metavar="TEXT", type=written, help="What the system message says."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def completed(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a model or ensemble, or a file."""
    logging.disable()
    with contextlib.suppress(EvaError, OSError):
        config = load_config(context.find_root().params.get("config_path"))
        if names := [
            name for name in (*config.ensembles, *config.models) if name.startswith(begun)
        ]:
            return [CompletionItem(name) for name in names]
    return [CompletionItem(begun, type="file")]


MODEL = ("-m", "--model")
MODEL_HOW: dict[str, Any] = {
    "multiple": True,
    "metavar": "MODEL",
    "shell_complete": completed,
    "help": "A member: a GGUF file or a model's name; repeat it. The first is the pivot.",
}


def parallel_option(things: str) -> Callable[[Command], Command]:
    """Add --parallel to a command that writes `things`; it gets an int, or None for auto."""

    def number_of_texts(text: str) -> int | None:
        if text != _AUTO and not (text.isdecimal() and int(text)):
            raise InputError(f"--parallel must be {_AUTO} or a whole number above 0, not {text!r}")
        return None if text == _AUTO else int(text)

    return click.option(
        "--parallel",
        metavar="N",
        default=_AUTO,
        show_default=True,
        type=number_of_texts,
        help=f"Write N {things} side by side; auto asks memory.",
    )


def count_option(
    *names: str, default: int, least: int = 1, text: str
) -> Callable[[Command], Command]:
    """Add an option for a whole number."""
    kind = click.IntRange(least)
    return click.option(*names, type=kind, default=default, show_default=True, help=text)


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

    how: dict[str, Any] = {"metavar": "VALUE", "expose_value": False, "callback": note}

    def decorate(command: Command) -> Command:
        for key in reversed(keys or DEFAULT_KEYS):
            names = [*_SHORT.get(key, ()), f"--{key.replace('_', '-')}", key]
            told = how | ({"shell_complete": completed} if key == "ensemble" else {})
            command = click.option(*names, help=HELP[key], **told)(command)
            if key == "ensemble":
                command = click.option(*MODEL, **how | MODEL_HOW)(command)
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


def _text_option(name: str, text: str) -> Callable[[Command], Command]:
    read = functools.partial(read_text, where=name)
    return click.option(name, metavar="FILE", type=lambda file: read(Path(file)), help=text)


_DRAWN = ("stop", "logit_bias", "grammar", "json_schema", "chat_template", "chat_template_kwargs")
_DRAWING = (
    setting_options(),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; may be repeated."),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="TEXT=VALUE",
        type=_bias,
        help="Add VALUE to the log-probability of the token TEXT; false forbids it. Repeatable.",
    ),
    _text_option("--grammar", "Write only what this grammar allows (GBNF)."),
    _text_option("--json-schema", "Write only JSON that obeys this schema."),
    _text_option("--chat-template", "Put conversations to all members as this file says (Jinja)."),
    click.option(
        "--chat-template-kwargs",
        metavar="JSON",
        type=_object,
        default="{}",
        help='Tell this to the chat templates, such as \'{"reasoning_effort": "low"}\'.',
    ),
)


def drawing_options(function: Command) -> Command:
    """Add the options; the command gets `config`, and the `sampling` of its ensemble with them."""

    @functools.wraps(function)
    def command(load: Load, overrides: dict[str, object], **options: Any) -> Any:
        config = load(overrides)
        drawn = {key: options.pop(key) for key in _DRAWN}
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
    for option in reversed(_DRAWING):
        made = option(made)
    return made  # type: ignore[no-any-return]  # click keeps the type of what it wraps
