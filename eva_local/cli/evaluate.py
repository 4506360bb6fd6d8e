"""The command `eval`: how good an ensemble is against its members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eva_local.cli.outputs import output_options
from eva_local.cli.session import Session, pass_session, setting_options
from eva_local.errors import InputError

_PATH = click.Path(path_type=Path)


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
@click.option("--text-bytes", type=click.IntRange(1), help="Take so much of each text at most.")
@click.option(
    "--prompt-bytes",
    type=click.IntRange(0),
    default=0,
    help="Read so much of each text as a prompt, and do not score it.",
)
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
    *("ensemble", "n_ctx", "threads", "n_gpu_layers", "space", "mapping", "combine"),
    *("sharpness", "filter", "filter_n", "candidates", "weights", "weight_temperature"),
    *("weight_decay", "prompt_evidence", "gate"),
)
@pass_session
def evaluate(
    session: Session, /, overrides: dict[str, object], files: tuple[Path, ...], **options: Any
) -> None:
    """Measure an ensemble against its members.

    FILE has rows as JSON lines: `prompt` and `answers`, or `prompt`, `choices` and `label`, or
    `text`. Each member and the ensemble do all rows; what is done is kept, and not done again.

    With --task bpb, FILE is plain text, or JSON lines with a field `text`, `question` or
    `prompt`, and bits per byte are measured: lower is better. The weights prompt-perplexity need
    --prompt-bytes there.
    """
    from eva_local.cli.tasks import TaskOptions, evaluate_tasks
    from eva_local.evaluate.forms import Conditions

    if not files:
        raise InputError("there are no rows: give a FILE of them")
    put = ("chat", "max_tokens", "text_bytes", "prompt_bytes")
    conditions = Conditions(**{key: options.pop(key) for key in put})
    evaluate_tasks(session, overrides, TaskOptions(files=files, conditions=conditions, **options))
