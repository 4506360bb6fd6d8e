"""Bits per byte on the command line: `eval --bits-per-byte`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click

from eva_local.cli.progress import progress_shown
from eva_local.cli.table import print_json, print_table
from eva_local.settings import convert
from eva_local.specs import EnsembleSpec, FusionSettings

if TYPE_CHECKING:
    from eva_local.alignment.mapping import Mapping
    from eva_local.evaluate.bits import Bits

# Settings that can be given several times, with what is measured where none is given; mappings
# are all that there are.
_DEFAULTS: dict[str, tuple[str, ...]] = {
    "mapping": (),
    "combine": ("mean", "geometric"),
    "weights": ("equal", "running"),
    "filter": ("top-n", "off"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Bits per byte of an ensemble, on texts of `file`."""

    file: Path
    spec: EnsembleSpec
    bits: Bits

    def show(self) -> None:
        """Print a table, the best setting last."""
        bits, per_byte = self.bits, self.bits.per_byte
        rows = [
            (f"{name} alone", "", "", "", f"{per_byte(each):.4f}")
            for name, each in bits.alone.items()
        ]
        ranked = sorted(bits.fused.items(), key=lambda item: -per_byte(item[1]))
        rows += [
            (one.mapping, one.combine, _words(one.weights), one.filter, f"{per_byte(each):.4f}")
            for one, each in ranked
        ]
        print_table(("", "COMBINE", "WEIGHTS", "FILTER", "BITS PER BYTE"), rows)
        click.echo(f"{sum(bits.n_bytes)} bytes, pivot {self.spec.pivot}")

    def show_json(self) -> None:
        """Print all figures, also the bits of each text."""

        def figures(each: Sequence[float]) -> dict[str, Any]:
            return {"bits_per_byte": self.bits.per_byte(each), "bits": each}

        print_json(
            {
                "file": self.file.name,
                "members": list(self.bits.alone),
                "pivot": self.spec.pivot,
                "bytes": self.bits.n_bytes,
                "alone": {name: figures(each) for name, each in self.bits.alone.items()},
                "fused": [
                    {"settings": asdict(one), **figures(each)}
                    for one, each in self.bits.fused.items()
                ],
            }
        )


def measure(
    spec: EnsembleSpec,
    file: Path,
    chosen: dict[str, tuple[str, ...]],
    limit: int | None,
    prompt_bytes: int,
) -> Measured:
    """Open an ensemble and measure it on the texts of a file.

    `chosen` has the values of `mapping`, `combine`, `weights` and `filter` to measure.
    """
    from eva_local.alignment.library import METHODS, find_or_build, mapping_folders
    from eva_local.evaluate.bits import bits_per_byte, passages
    from eva_local.evaluate.texts import read_texts
    from eva_local.opening import open_models

    texts = read_texts(file, limit)
    settings = _settings(spec, {**_DEFAULTS, "mapping": tuple(METHODS)}, chosen)
    with progress_shown() as progress, open_models(spec) as models:

        def told(what: str, share: float) -> None:
            progress(what, round(1000 * share), 1000)

        members = {member.name: model for member, model in zip(spec.members, models, strict=True)}
        pivot = members[spec.pivot]
        mappings: dict[str, dict[str, Mapping]] = {
            method: {
                name: find_or_build(
                    method, model, pivot, mapping_folders(), partial(told, f"{method}: {name}")
                )
                for name, model in members.items()
            }
            for method in {one.mapping: None for one in settings}
        }
        parts = passages(texts, members, prompt_bytes)
        bits = bits_per_byte(parts, members, spec.pivot, settings, mappings, told)
    return Measured(file, spec, bits)


def _settings(
    spec: EnsembleSpec,
    defaults: dict[str, tuple[str, ...]],
    chosen: dict[str, tuple[str, ...]],
) -> list[FusionSettings]:
    """Return the ensemble's own settings with every combination of the chosen values."""
    hints = get_type_hints(FusionSettings)
    axes = [
        [
            convert(value, hints[key], f"command line --{key}", text=True)
            for value in dict.fromkeys(chosen[key] or default)
        ]
        for key, default in defaults.items()
    ]
    return [
        replace(spec.fusion, **dict(zip(defaults, values, strict=True)), candidates=0, gate=1.0)
        for values in product(*axes)
    ]


def _words(weights: str | tuple[float, ...]) -> str:
    return weights if isinstance(weights, str) else ",".join(f"{weight:g}" for weight in weights)
