"""The option --parallel: how many texts are written side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from eva_local.cli.progress import progress_shown
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.api import Ensemble
    from eva_local.config.specs import EnsembleSpec
    from eva_local.types import Sampling

AUTO = "auto"


def parallel_option(things: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Add the option --parallel to a command that writes `things`; see `places_of`."""
    return click.option(
        "--parallel",
        metavar="N",
        default=AUTO,
        show_default=True,
        help=f"Write N {things} side by side; auto measures what is fastest.",
    )


def places_of(text: str) -> int | None:
    """Read --parallel; None is auto."""
    if text == AUTO:
        return None
    try:
        places = int(text)
    except ValueError:
        places = 0
    if not places > 0:
        raise InputError(f"--parallel must be {AUTO} or a whole number above 0, not {text!r}")
    return places


def open_places(
    spec: EnsembleSpec,
    sampling: Sampling | None,
    places: int | None,
    *,
    most: int | None = None,
) -> Ensemble:
    """Open an ensemble with places for that many texts, or for the best number up to `most`."""
    from eva_local.capacity import MOST, open_widest
    from eva_local.opening import open_ensemble

    with progress_shown() as progress:

        def report(what: str, share: float) -> None:
            progress(what, round(1000 * share), 1000)

        if places is None:
            return open_widest(spec, sampling, report, most=min(most or MOST, MOST))
        return open_ensemble(spec, sampling, report, parallel=min(places, most or places))
