"""The command `eval`: how good an ensemble is against its members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from eva_local.cli.outputs import output_options
from eva_local.cli.session import Command, Session, pass_session, setting_options
from eva_local.errors import InputError

_PATH = click.Path(path_type=Path)


def _many(*names: str, help_text: str) -> Callable[[Command], Command]:
    """Make an option that --bits-per-byte lets be repeated."""
    return click.option(*names, multiple=True, metavar="VALUE", help=help_text)


@click.command("eval")
@click.argument("files", metavar="FILE...", nargs=-1, type=_PATH)
@click.option(
    "--task",
    "kind",
    type=click.Choice(["auto", "generate", "choice", "bpb", "translate"]),
    default="auto",
    show_default=True,
    help="What the rows are; auto looks at their fields.",
)
@click.option("--limit", type=click.IntRange(1), help="Take the first rows of each FILE.")
@click.option(
    "--few-shot",
    "shot_files",
    multiple=True,
    metavar="FILE",
    type=_PATH,
    help="Put solved rows before each prompt; repeat it for several tasks.",
)
@click.option(
    "--shots",
    "n_shots",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="How many of them.",
)
@click.option("--chat", is_flag=True, help="Use the members' chat templates, not plain text.")
@click.option("--max-tokens", type=click.IntRange(1), help="Length of answers; else as tasks need.")
@click.option("--text-bytes", type=click.IntRange(1), help="Score so much of each text at most.")
@click.option("--members/--no-members", default=True, help="Measure each member alone too.")
@click.option(
    "--compare",
    multiple=True,
    metavar="SETTINGS",
    help="Also measure other settings: KEY=VALUE,... or an ensemble's name; may be repeated.",
)
@click.option("--tune", is_flag=True, help="Fit settings on half of the rows, report on the rest.")
@click.option(
    "--parallel",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Do so many rows side by side.",
)
@click.option(
    "--results",
    type=_PATH,
    metavar="FILE",
    help="Keep each answer there, so that the same command goes on.",
)
@click.option("--fresh", is_flag=True, help="Do again what is kept already.")
@output_options
@setting_options(
    *("ensemble", "n_ctx", "threads", "n_gpu_layers", "candidates"),
    *("filter_n", "weight_temperature", "weight_decay", "gate"),
)
@_many("--mapping", "--method", "mapping", help_text="surface, surface-refined, eva, eva-paper.")
@_many("--combine", help_text="mean or geometric.")
@_many("--weights", help_text="equal, running, prompt-perplexity, or numbers.")
@_many("--filter", help_text="top-n or off.")
@click.option(
    "--bits-per-byte",
    metavar="FILE",
    type=_PATH,
    help="Measure bits per byte of the texts of FILE exactly, under many settings: "
    "--mapping, --combine, --weights and --filter may be repeated.",
)
@click.option(
    "--bytes",
    "n_bytes",
    type=click.IntRange(1),
    help="With --bits-per-byte: read this many bytes at most.",
)
@click.option(
    "--prompt-bytes",
    type=click.IntRange(0),
    default=0,
    help="With --bits-per-byte: give so many bytes of each text as a prompt, unmeasured.",
)
@pass_session
def evaluate(
    session: Session,
    /,
    overrides: dict[str, object],
    files: tuple[Path, ...],
    bits_per_byte: Path | None,
    **options: Any,
) -> None:
    """Measure an ensemble against its members.

    FILE has rows as JSON lines: `prompt` and `answers`, or `prompt`, `choices` and `label`, or
    `text`. Each member and the ensemble do all rows; what is done is kept, and not done again.

    With --bits-per-byte, FILE is plain text, or JSON lines with a field `text`, `question` or
    `prompt`. Each member is measured alone, and the ensemble under every mapping, way to
    combine, weighting and filter, unless options choose some. Lower is better. The weights
    prompt-perplexity need --prompt-bytes.
    """
    axes = {key: options.pop(key) for key in ("mapping", "combine", "weights", "filter")}
    if bits_per_byte is None:
        _do_tasks(session, {**overrides, **_single(axes)}, files, options)
    elif files:
        raise InputError(f"give {files[0]} or --bits-per-byte FILE, not both")
    else:
        _measure_bits(session, overrides, bits_per_byte, axes, options)


def _do_tasks(
    session: Session,
    overrides: Mapping[str, object],
    files: tuple[Path, ...],
    options: Mapping[str, Any],
) -> None:
    from eva_local.cli.tasks import TaskOptions, evaluate_tasks
    from eva_local.evaluate.contest import Setting

    if not files:
        raise InputError("there are no rows: give a FILE of them, or --bits-per-byte FILE")
    kept = ("shot_files", "n_shots", "members", "compare", "tune", "parallel", "results", "fresh")
    evaluate_tasks(
        session,
        overrides,
        TaskOptions(
            files=files,
            kind=None if options["kind"] == "auto" else options["kind"],
            limit=options["limit"],
            setting=Setting(options["chat"], options["max_tokens"], options["text_bytes"]),
            json_out=options["json_out"],
            html_out=options["html_out"],
            **{key: options[key] for key in kept},
        ),
    )


def _measure_bits(
    session: Session,
    overrides: Mapping[str, object],
    file: Path,
    chosen: dict[str, tuple[str, ...]],
    options: Mapping[str, Any],
) -> None:
    from eva_local.cli.bits import measure

    spec = session.load(overrides).ensemble()
    found = measure(spec, file, chosen, options["n_bytes"], options["prompt_bytes"])
    if options["json_out"] is None:
        found.show()
    else:
        found.show_json()


def _single(axes: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
    """Return the settings that were given; rows are done under one, and others are compared."""
    for key, values in axes.items():
        if len(values) > 1:
            raise InputError(f"--{key} can be given once; --compare {key}=VALUE measures others")
    return {key: values[0] for key, values in axes.items() if values}
