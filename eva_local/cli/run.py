"""The command `run`: one answer, streamed to stdout."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli.answer import answer
from eva_local.cli.drawing import Drawing, drawing_options
from eva_local.cli.progress import progress_shown
from eva_local.cli.session import Session, json_option, pass_session, system_option, written
from eva_local.cli.streams import input_is_closed
from eva_local.engine.detokenizer import refuse_utf16
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.api import Ensemble
    from eva_local.config.config import Config
    from eva_local.llama.prompt import Prompt
    from eva_local.trace import TraceWriter


@click.command()
@click.argument("prompt", required=False, type=written)
@drawing_options
@system_option
@click.option("--raw", is_flag=True, help="Go on with PROMPT as it is, without chat templates.")
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write to FILE why each token was chosen; see: eva-local trace --help.",
)
@click.option("--stats", is_flag=True, help="Say on stderr what the answer cost.")
@json_option
@pass_session
def run(
    session: Session,
    prompt: str | None,
    drawing: Drawing,
    system: str | None,
    raw: bool,
    trace: Path | None,
    stats: bool,
    as_json: bool,
) -> int:
    """Write one answer to PROMPT.

    Without a PROMPT, or beside one, standard input is read; it goes after the PROMPT. The
    answer is streamed to stdout, and nothing else is written there.
    """
    if raw and system is not None:
        raise InputError("--raw has no system message: leave --system out")
    config, sampling = drawing.load(session)
    asked = _prompt(_text(prompt), system, raw=raw)
    with _open(config) as ensemble:
        tracing = contextlib.nullcontext() if trace is None else _tracing(trace, config, asked)
        with tracing as writer:
            return answer(ensemble, asked, sampling, stats=stats, as_json=as_json, trace=writer)


def _open(config: Config) -> Ensemble:
    from eva_local.opening import open_ensemble

    with progress_shown() as progress:
        return open_ensemble(
            config.ensemble(),
            report=lambda what, share: progress(what, round(1000 * share), 1000),
        )


def _text(prompt: str | None) -> str:
    """Return the prompt with standard input after it, unless that is a terminal."""
    if prompt is not None and (sys.stdin.isatty() or input_is_closed()):
        return prompt
    if input_is_closed():
        raise InputError("there is no prompt, and standard input is closed: give one")
    if sys.stdin.isatty():
        click.echo("Type the prompt; end it with Ctrl-D.", err=True)
    try:
        data = sys.stdin.buffer.read()
        refuse_utf16(data, "standard input")
        piped = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is no UTF-8 text: {error}") from error
    if prompt is None and not piped.strip():
        raise InputError("there is no prompt: give one, or write it to standard input")
    return "\n\n".join(part for part in (prompt, piped) if part)


def _prompt(text: str, system: str | None, *, raw: bool) -> Prompt:
    from eva_local.types import Message

    if raw:
        return text
    messages = [Message("user", text)]
    return [Message("system", system), *messages] if system else messages


def _tracing(path: Path, config: Config, prompt: Prompt) -> TraceWriter:
    from eva_local.trace import TraceWriter

    spec = config.ensemble()
    return TraceWriter(
        path,
        ensemble=spec.name,
        members=[member.name for member in spec.members],
        pivot=spec.pivot,
        prompt=prompt,
        settings=asdict(spec.fusion),
    )
