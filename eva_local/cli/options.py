"""Options that commands share, and the configuration that they change, read when asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from eva_local.config.config import DEFAULT_KEYS, Config
from eva_local.config.settings import read_text
from eva_local.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])
# Reads the configuration, over which the options go that it is given.
Load = Callable[..., Config]

_AUTO = "auto"
_SHORT = {"ensemble": ("-e",), "max_tokens": ("-n",)}

HELP = {
    "ensemble": "Run this ensemble, or one model alone.",
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
    "max_tokens": "Write at most this many tokens.",
    "temperature": "0 always takes the likeliest token.",
    "top_k": "Draw from this many tokens; 0 is off.",
    "top_p": "Draw from the likeliest tokens of this mass; 1 is off.",
    "min_p": "Draw from tokens at least this likely against the first; 0 is off.",
    "repeat_penalty": "Above 1, what was written is less likely again; 1 is off.",
    "repeat_last_n": "Penalties look at this many tokens back; -1 is all, 0 is off.",
    "presence_penalty": "Taken from the log-probability of what was written; 0 is off.",
    "frequency_penalty": "The same, for each time that it was written.",
    "seed": "Start of the random numbers, or random.",
    "space": "The space in which votes are added up: pivot or bytes.",
    "mapping": "surface, surface-refined, eva or eva-paper.",
    "combine": "mean or geometric.",
    "sharpness": "Geometric mean: above 1, what members agree on counts for more; 1 is off.",
    "filter": "Which members take part in a step: top-n or off.",
    "filter_n": "The n of the filter top-n.",
    "candidates": "Tokens that a member votes with; 0 is all.",
    "weights": "equal, running, prompt-perplexity, or numbers, such as 2,1.",
    "weight_temperature": "Weights that follow the text: the higher, the more equal.",
    "weight_decay": "Running weights: what is left of the past after each byte.",
    "prompt_evidence": "Bytes at the end of a prompt that weights begin with; 0 is none.",
    "gate": "Ask the others only where the pivot is less sure than this; 1 is always.",
}


def written(text: str) -> str:
    """Return a text without the byte order mark of a file that a shell put in its place."""
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")


system_option = click.option(
    *("-s", "--system"),
    metavar="TEXT",
    type=written,
    help="What the system message says.",
)
stop_option = click.option(
    "--stop", multiple=True, metavar="TEXT", help="End before TEXT; may be repeated."
)
ensemble_option = click.option("-e", "--ensemble", metavar="NAME", help="All members of NAME.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _number_of_texts(text: str) -> int | None:
    """Read --parallel; None is auto."""
    if text == _AUTO:
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not number > 0:
        raise InputError(f"--parallel must be {_AUTO} or a whole number above 0, not {text!r}")
    return number


def parallel_option(things: str) -> Callable[[Command], Command]:
    """Add --parallel to a command that writes `things`; it gets an int, or None for auto."""
    return click.option(
        "--parallel",
        metavar="N",
        default=_AUTO,
        show_default=True,
        type=_number_of_texts,
        help=f"Write N {things} side by side; auto measures what is fastest.",
    )


def count_option(
    *names: str, default: int, least: int = 1, text: str
) -> Callable[[Command], Command]:
    """Add an option for a whole number."""
    kind = click.IntRange(least)
    return click.option(*names, type=kind, default=default, show_default=True, help=text)


def setting_options(*keys: str) -> Callable[[Command], Command]:
    """Add an option for each setting; the command gets those as `overrides: dict[str, str]`.

    Their values stay text: the configuration checks them as it checks the environment.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(*arguments: Any, **options: Any) -> Any:
            overrides = {key: options.pop(key) for key in chosen}
            return function(*arguments, overrides=overrides, **options)

        wrapped: Any = command
        for key in reversed(chosen):
            names = [*_SHORT.get(key, ()), f"--{key.replace('_', '-')}", key]
            wrapped = click.option(*names, metavar="VALUE", help=HELP[key])(wrapped)
        return wrapped  # type: ignore[no-any-return]  # click keeps the type of what it wraps

    chosen = keys or DEFAULT_KEYS
    return decorate


def _bias(text: str) -> tuple[str, float]:
    token, equals, value = text.rpartition("=")
    try:
        if equals:
            return token, -math.inf if value.lower() == "false" else float(value)
    except ValueError:
        pass
    raise InputError(f"--logit-bias {text!r}: give TEXT=NUMBER, or TEXT=false to forbid it")


def _text_option(name: str, text: str) -> Callable[[Command], Command]:
    """Add an option that names a file; the command gets what is written there."""
    read = functools.partial(read_text, where=name)
    return click.option(name, metavar="FILE", type=lambda file: read(Path(file)), help=text)


_DRAWING = (
    setting_options(),
    click.option("--greedy", is_flag=True, help="Always take the likeliest token: temperature 0."),
    stop_option,
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="TEXT=VALUE",
        type=_bias,
        help="Add VALUE to the log-probability of the token TEXT; false forbids it. Repeatable.",
    ),
    _text_option("--grammar", "Write only what this grammar allows (GBNF)."),
    _text_option("--json-schema", "Write only JSON that obeys this schema."),
)


def drawing_options(function: Command) -> Command:
    """Add the options; the command gets `config` and the `sampling` of its ensemble.

    What was given takes the place of the ensemble's own; all is checked before any model is
    opened.
    """

    @functools.wraps(function)
    def command(
        load: Load,
        overrides: dict[str, object],
        greedy: bool,
        stop: tuple[str, ...],
        logit_bias: tuple[tuple[str, float], ...],
        grammar: str | None,
        json_schema: str | None,
        **options: Any,
    ) -> Any:
        if greedy and overrides["temperature"] is not None:
            raise InputError("give --greedy or --temperature, not both")
        config = load(overrides | ({"temperature": "0"} if greedy else {}))
        lists = {"stop": stop, "logit_bias": logit_bias}
        given: dict[str, Any] = {key: value for key, value in lists.items() if value}
        if grammar is not None or json_schema is not None:
            given |= {"grammar": grammar, "json_schema": json_schema}
        sampling = replace(config.sampling, **given)
        if sampling.grammar is not None or sampling.json_schema is not None:
            from eva_local.engine.grammar import check

            check(sampling)
        return function(config=config, sampling=sampling, **options)

    wrapped: Any = click.pass_obj(command)
    for option in reversed(_DRAWING):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]  # click keeps the type of what it wraps
