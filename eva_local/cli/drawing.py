"""Options that say how answers are drawn: those of the configuration, and those of a request."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eva_local.cli.session import Command, Session, setting_options, stop_option
from eva_local.config.settings import read_text
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.config.config import Config
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


@dataclass(frozen=True, slots=True)
class Drawing:
    """What was given of these options, as text."""

    overrides: dict[str, object]
    greedy: bool
    stop: tuple[str, ...]
    logit_bias: tuple[str, ...]
    grammar: str | None
    json_schema: str | None

    def load(self, session: Session) -> tuple[Config, Sampling]:
        """Return the configuration, and how its ensemble's answers are drawn.

        What was given takes the place of the ensemble's own; all is checked before any model
        is opened.
        """
        if self.greedy and self.overrides["temperature"] is not None:
            raise InputError("give --greedy or --temperature, not both")
        config = session.load(self.overrides | ({"temperature": "0"} if self.greedy else {}))
        return config, self._constrained(config.sampling)

    def _constrained(self, sampling: Sampling) -> Sampling:
        given: dict[str, Any] = {}
        if self.stop:
            given["stop"] = self.stop
        if self.logit_bias:
            given["logit_bias"] = tuple(map(_bias, self.logit_bias))
        if self.grammar is not None or self.json_schema is not None:
            given["grammar"] = _file(self.grammar, "--grammar")
            given["json_schema"] = _file(self.json_schema, "--json-schema")
        sampling = replace(sampling, **given)
        if sampling.grammar is not None or sampling.json_schema is not None:
            from eva_local.engine.grammar import check

            check(sampling)
        return sampling


def drawing_options(function: Command) -> Command:
    """Add the options; the command gets them as `drawing: Drawing`."""

    @functools.wraps(function)
    def command(*arguments: Any, **options: Any) -> Any:
        drawing = Drawing(**{name: options.pop(name) for name in Drawing.__slots__})
        return function(*arguments, drawing=drawing, **options)

    wrapped: Any = command
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]  # click keeps the type of what it wraps


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
