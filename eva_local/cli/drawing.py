"""Options that say how answers are drawn: those of the configuration, and those of a request."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eva_local.cli.session import Command, Session, setting_options
from eva_local.config.config import DEFAULT_KEYS
from eva_local.config.settings import read_text
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.config.config import Config
    from eva_local.types import Sampling

_OPTIONS = (
    click.option("-n", "--max-tokens", metavar="VALUE", help="Write at most this many tokens."),
    click.option("--greedy", is_flag=True, help="Always take the likeliest token: temperature 0."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; may be repeated."),
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
    max_tokens: str | None
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
        temperature = "0" if self.greedy else self.overrides["temperature"]
        given = {"max_tokens": self.max_tokens, "temperature": temperature}
        config = session.load(self.overrides | given)
        return config, self._constrained(config.sampling)

    def _constrained(self, sampling: Sampling) -> Sampling:
        if self.stop:
            sampling = replace(sampling, stop=self.stop)
        if self.logit_bias:
            sampling = replace(sampling, logit_bias=tuple(_bias(text) for text in self.logit_bias))
        if self.grammar is not None or self.json_schema is not None:
            sampling = replace(
                sampling,
                grammar=self.grammar and read_text(Path(self.grammar), "--grammar"),
                json_schema=self.json_schema and read_text(Path(self.json_schema), "--json-schema"),
            )
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
    return setting_options(*(key for key in DEFAULT_KEYS if key != "max_tokens"))(wrapped)  # type: ignore[no-any-return]  # click keeps the type of what it wraps


def _bias(text: str) -> tuple[str, float]:
    token, equals, value = text.rpartition("=")
    try:
        if equals:
            return token, -math.inf if value.lower() == "false" else float(value)
    except ValueError:
        pass
    raise InputError(f"--logit-bias {text!r}: give TEXT=NUMBER, or TEXT=false to forbid it")
