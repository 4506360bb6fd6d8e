"""The command `eval`: how good an ensemble is against its members."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli.progress import progress_shown
from eva_local.cli.session import Session, json_option, pass_session, setting_options
from eva_local.cli.table import print_json, print_table

if TYPE_CHECKING:
    from eva_local.evaluate.bits import Bits


@click.command("eval")
@click.option(
    "--bits-per-byte",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Measure bits per byte of the texts of FILE.",
)
@setting_options("ensemble", "n_ctx", "threads", "n_gpu_layers")
@click.option("--method", "methods", multiple=True, help="Only this mapping; may be repeated.")
@click.option("--bytes", "limit", type=click.IntRange(1), help="Read this many bytes at most.")
@json_option
@pass_session
def evaluate(
    session: Session,
    overrides: dict[str, object],
    file: Path,
    methods: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """Measure how well an ensemble predicts the texts of FILE.

    FILE is plain text, or JSON lines with a field `text`, `question` or `prompt`. Each member
    is measured alone, and the ensemble under every mapping and way to combine. Lower is better.
    """
    from eva_local.alignment.library import METHODS, find_or_build
    from eva_local.api import mapping_folders, open_models
    from eva_local.evaluate.bits import bits_per_byte
    from eva_local.evaluate.texts import read_texts

    texts = read_texts(file, limit)
    spec = session.load(overrides).ensemble()
    with progress_shown() as progress, open_models(spec) as models:

        def told(what: str, share: float) -> None:
            progress(what, round(1000 * share), 1000)

        members = {member.name: model for member, model in zip(spec.members, models, strict=True)}
        pivot = members[spec.pivot]
        mappings = {
            method: {
                name: find_or_build(
                    method, model, pivot, mapping_folders(), partial(told, f"{method}: {name}")
                )
                for name, model in members.items()
            }
            for method in methods or METHODS
        }
        found = bits_per_byte(texts, members, spec.pivot, mappings, told)
    _print(found, spec.pivot, as_json=as_json)


def _print(found: Bits, pivot: str, *, as_json: bool) -> None:
    if as_json:
        fused = [
            {"mapping": method, "combine": combine, "bits_per_byte": bits}
            for (method, combine), bits in found.fused.items()
        ]
        result = {"bytes": found.n_bytes, "pivot": pivot, "alone": found.alone, "fused": fused}
        print_json(result)
        return
    rows = [(f"{name} alone", "", f"{bits:.4f}") for name, bits in found.alone.items()]
    rows += [(method, combine, f"{bits:.4f}") for (method, combine), bits in found.fused.items()]
    print_table(("", "COMBINE", "BITS PER BYTE"), rows)
    click.echo(f"{found.n_bytes} bytes, pivot {pivot}")
