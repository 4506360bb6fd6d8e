"""The command `eval`: how good an ensemble is against its members."""

from __future__ import annotations

from pathlib import Path

import click

from eva_local.cli.session import Session, json_option, pass_session, setting_options


@click.command("eval")
@click.option(
    "--bits-per-byte",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Measure bits per byte of the texts of FILE.",
)
@setting_options(
    *("ensemble", "n_ctx", "threads", "n_gpu_layers"),
    *("filter_n", "weight_temperature", "weight_decay"),
)
@click.option("--method", "mappings", multiple=True, help="Only this mapping; may be repeated.")
@click.option("--combine", "combines", multiple=True, help="Only mean, or geometric.")
@click.option("--weights", "weightings", multiple=True, help="Only these weights; may be repeated.")
@click.option("--filter", "filters", multiple=True, help="Only with this filter: top-n, or off.")
@click.option("--bytes", "limit", type=click.IntRange(1), help="Read this many bytes at most.")
@click.option(
    "--prompt-bytes",
    type=click.IntRange(0),
    default=0,
    help="Give so many bytes of each text as a prompt, and do not measure them.",
)
@json_option
@pass_session
def evaluate(
    session: Session,
    overrides: dict[str, object],
    file: Path,
    mappings: tuple[str, ...],
    combines: tuple[str, ...],
    weightings: tuple[str, ...],
    filters: tuple[str, ...],
    limit: int | None,
    prompt_bytes: int,
    as_json: bool,
) -> None:
    """Measure how well an ensemble predicts the texts of FILE.

    FILE is plain text, or JSON lines with a field `text`, `question` or `prompt`. Each member
    is measured alone, and the ensemble under every mapping, way to combine, weighting and
    filter, unless options choose some. Lower is better. The weights prompt-perplexity need
    --prompt-bytes.
    """
    from eva_local.cli.bits import measure

    spec = session.load(overrides).ensemble()
    chosen = {"mapping": mappings, "combine": combines, "weights": weightings, "filter": filters}
    found = measure(spec, file, chosen, limit, prompt_bytes)
    if as_json:
        found.show_json()
    else:
        found.show()
