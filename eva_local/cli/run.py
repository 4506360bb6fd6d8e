"""The command `run`: one answer, streamed to stdout."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TextIO

import click

from eva_local.cli.progress import progress_shown
from eva_local.cli.session import Session, json_option, pass_session, setting_options
from eva_local.config import DEFAULT_KEYS
from eva_local.errors import InputError
from eva_local.text import harmless

if TYPE_CHECKING:
    from eva_local.api import Ensemble
    from eva_local.config import Config
    from eva_local.prompt import Prompt
    from eva_local.records import Sampling, Step, Usage


@click.command()
@click.argument("prompt", required=False)
@setting_options(*(key for key in DEFAULT_KEYS if key != "max_tokens"))
@click.option("-n", "--max-tokens", metavar="VALUE", help="Write at most this many tokens.")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token: temperature 0.")
@click.option("-s", "--system", metavar="TEXT", help="What the system message says.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; may be repeated.")
@click.option("--raw", is_flag=True, help="Go on with PROMPT as it is, without chat templates.")
@click.option("--stats", is_flag=True, help="Say on stderr what the answer cost.")
@json_option
@pass_session
def run(
    session: Session,
    prompt: str | None,
    overrides: dict[str, object],
    max_tokens: str | None,
    greedy: bool,
    system: str | None,
    stop: tuple[str, ...],
    raw: bool,
    stats: bool,
    as_json: bool,
) -> int:
    """Write one answer to PROMPT.

    Without a PROMPT, or beside one, standard input is read; it goes after the PROMPT. The
    answer is streamed to stdout, and nothing else is written there.
    """
    if greedy and overrides["temperature"] is not None:
        raise InputError("give --greedy or --temperature, not both")
    if raw and system is not None:
        raise InputError("--raw has no system message: leave --system out")
    temperature = "0" if greedy else overrides["temperature"]
    config = session.load(overrides | {"max_tokens": max_tokens, "temperature": temperature})
    asked = _prompt(_text(prompt), system, raw=raw)
    with _open(config) as ensemble:
        return _answer(ensemble, asked, _sampling(config, stop), stats=stats, as_json=as_json)


def _sampling(config: Config, stop: tuple[str, ...]) -> Sampling:
    return replace(config.sampling, stop=stop)


def _open(config: Config) -> Ensemble:
    from eva_local.api import open_ensemble

    with progress_shown() as progress:
        return open_ensemble(
            config.ensemble(),
            report=lambda what, share: progress(what, round(1000 * share), 1000),
        )


def _text(prompt: str | None) -> str:
    """Return the prompt with standard input after it, unless that is a terminal."""
    if prompt is not None and sys.stdin.isatty():
        return prompt
    if sys.stdin.isatty():
        click.echo("Type the prompt; end it with Ctrl-D.", err=True)
    try:
        piped = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is no UTF-8 text: {error}") from error
    if prompt is None and not piped.strip():
        raise InputError("there is no prompt: give one, or write it to standard input")
    return "\n\n".join(part for part in (prompt, piped) if part)


def _prompt(text: str, system: str | None, *, raw: bool) -> Prompt:
    from eva_local.records import Message

    if raw:
        return text
    messages = [Message("user", text)]
    return [Message("system", system), *messages] if system else messages


def _answer(
    ensemble: Ensemble, prompt: Prompt, sampling: Sampling, *, stats: bool, as_json: bool
) -> int:
    """Stream the answer; return the exit code: 130 where it was interrupted."""
    steps: list[Step] = []
    code = 0
    out = _Answer(quiet=as_json)
    try:
        for step in ensemble.stream(prompt, sampling):
            steps.append(step)
            out.write(step.text)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read the answer has enough of it.
        return out.abandon()
    out.end()
    usage = steps[-1].usage if steps else None
    if as_json:
        reason = steps[-1].finish_reason if steps else None
        answer = {
            "text": "".join(step.text for step in steps),
            "finish_reason": reason or "cancelled",
            "usage": None if usage is None else asdict(usage),
        }
        click.echo(json.dumps(answer, ensure_ascii=False))
    if stats:
        line = "stopped before the end" if usage is None else _summary(usage)
        reason = (steps[-1].finish_reason if steps else None) or "cancelled"
        click.echo(f"{line} | finish: {reason}", err=True)
    return code


def _summary(usage: Usage) -> str:
    steps = max(usage.steps, 1)
    rate = usage.steps / max(usage.seconds - usage.first_seconds, 1e-9)
    each = ", ".join(
        f"{name} {1000 * seconds / steps:.1f} ms"
        for name, seconds in zip(usage.members, usage.decode_seconds, strict=True)
    )
    filtered = ", ".join(
        f"{name} {count}" for name, count in zip(usage.members, usage.filtered, strict=True)
    )
    return (
        f"{usage.steps} tokens, {rate:.1f} tokens/s, first after {usage.first_seconds:.2f} s"
        f" | decoding a token: {each} | votes filtered: {filtered}"
    )


class _Answer:
    """Standard output, as the place for an answer."""

    def __init__(self, *, quiet: bool) -> None:
        self._out: TextIO = sys.stdout
        self._quiet = quiet
        self._on_terminal = sys.stdout.isatty()
        self._last = ""

    def write(self, text: str) -> None:
        if not text or self._quiet:
            return
        self._last = text[-1]
        # A model may write escape sequences; a terminal must not obey them.
        shown = harmless(text) if self._on_terminal else text
        self._out.write(shown)
        self._out.flush()

    def end(self) -> None:
        if not self._quiet and self._last != "\n":
            self._out.write("\n")
            self._out.flush()

    def abandon(self) -> int:
        # Python would complain at exit about what it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
