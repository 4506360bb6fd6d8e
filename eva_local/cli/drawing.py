"""Options that say how answers are drawn: those of the configuration, and those of a request."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eva_local.cli.session import (
    Command,
    Session,
    pass_session,
    setting_options,
    stop_option,
)
from eva_local.config.settings import read_text
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.types import Sampling

_OPTIONS = (
    setting_options(),
    click.option("--greedy", is_flag=True, help="Always take the likeliest token: temperature 0."),
    stop_option,
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="TEXT=VALUE",
        help="Add VALUE to the log-probability of the token TEXT; false forbids it. Repeatable.",
    ),
    click.option("--grammar", metavar="FILE", help="Write only what this grammar allows (GBNF)."),
    click.option("--json-schema", metavar="FILE", help="Write only JSON that obeys this schema."),
)


def drawing_options(function: Command) -> Command:
    """Add the options; the command gets `config` and the `sampling` of its ensemble.

    What was given takes the place of the ensemble's own; all is checked before any model is
    opened.
    """

    @functools.wraps(function)
    def command(
        session: Session,
        overrides: dict[str, object],
        greedy: bool,
        stop: tuple[str, ...],
        logit_bias: tuple[str, ...],
        grammar: str | None,
        json_schema: str | None,
        **options: Any,
    ) -> Any:
        if greedy and overrides["temperature"] is not None:
            raise InputError("give --greedy or --temperature, not both")
        config = session.load(overrides | ({"temperature": "0"} if greedy else {}))
        given: dict[str, Any] = {}
        if stop:
            given["stop"] = stop
        if logit_bias:
            given["logit_bias"] = tuple(map(_bias, logit_bias))
        if grammar is not None or json_schema is not None:
            given["grammar"] = _file(grammar, "--grammar")
            given["json_schema"] = _file(json_schema, "--json-schema")
        sampling = _checked(replace(config.sampling, **given))
        return function(config=config, sampling=sampling, **options)

    wrapped: Any = pass_session(command)
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]  # click keeps the type of what it wraps


def _checked(sampling: Sampling) -> Sampling:
    if sampling.grammar is not None or sampling.json_schema is not None:
        from eva_local.engine.grammar import check

        check(sampling)
    return sampling


def _file(name: str | None, option: str) -> str | None:
    return None if name is None else read_text(Path(name), option)


def _bias(text: str) -> tuple[str, float]:
    token, equals, value = text.rpartition("=")
    try:
        if equals:
            return token, -math.inf if value.lower() == "false" else float(value)
    except ValueError:
        pass
    raise InputError(f"--logit-bias {text!r}: give TEXT=NUMBER, or TEXT=false to forbid it")
