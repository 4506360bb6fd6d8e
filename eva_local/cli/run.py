"""The commands `run`, one answer streamed to stdout, and `trace`, the page of a trace of one."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from eva_local.api import Ensemble
from eva_local.cli.outputs import ProgressDisplay, input_is_closed, open_shown
from eva_local.config.config import Config
from eva_local.config.elsewhere import is_gguf
from eva_local.config.settings import read_text
from eva_local.engine.detokenizer import harmless, refuse_utf16
from eva_local.errors import InputError, refusing
from eva_local.jsonl import json_line
from eva_local.llama.prompt import Prompt
from eva_local.trace import TraceFile, TraceWriter, read_trace, summarize, trace_page
from eva_local.types import Message, Sampling, Step


def run(
    config: Config,
    sampling: Sampling,
    prompt: str | None,
    file: Path | None,
    system: str | None,
    raw: bool,
    trace: Path | None,
    **how: bool,
) -> int:
    """Write one answer to a prompt; return the exit code."""
    if raw and system is not None:
        raise InputError("--raw has no system message: leave --system out")
    if file is not None:
        if prompt is not None:
            raise InputError("give PROMPT or --file, not both")
        prompt = read_text(file, "--file")
    if prompt and is_gguf(Path(prompt)):
        raise InputError(f"{prompt} is a model: give it with -m, and a prompt")
    text = _text(prompt)
    if not text.strip():
        raise InputError("the prompt is empty")
    before = [Message("system", system)] if system else []
    asked: Prompt = text if raw else [*before, Message("user", text)]
    spec = config.ensemble()
    with open_shown(spec) as ensemble, contextlib.ExitStack() as stack:
        writer = None
        if trace is not None:
            said = asked if isinstance(asked, str) else tuple(asked)
            told = TraceFile(spec.name, ensemble.members, spec.pivot, said, asdict(spec.fusion))
            writer = stack.enter_context(TraceWriter(trace, told))
        return answer(ensemble, asked, sampling, trace=writer, **how)


def _text(prompt: str | None) -> str:
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


def answer(
    ensemble: Ensemble,
    prompt: Prompt,
    sampling: Sampling,
    *,
    stats: bool = False,
    as_json: bool = False,
    trace: TraceWriter | None = None,
) -> int:
    """Stream an answer to stdout; return the exit code: 130 where it was interrupted."""
    steps: list[Step] = []
    code = 0
    with contextlib.closing(ProgressDisplay()) as reading, _thoughts(as_json) as think:
        try:
            for step in ensemble.stream(prompt, sampling, trace=trace is not None, report=reading):
                reading.close()
                steps.append(step)
                if trace is not None:
                    trace.write(step)
                think(step)
                if not as_json:
                    _write(step.text)
        except KeyboardInterrupt:
            code = 130
    text = "".join(step.text for step in steps)
    usage = steps[-1].usage if steps else None
    reason = (steps[-1].finish_reason if steps else None) or "cancelled"
    if as_json:
        cost = None if usage is None else asdict(usage)
        thought = "".join(step.reasoning or "" for step in steps)
        said = {"text": text, "reasoning": thought, "finish_reason": reason, "usage": cost}
        click.echo(json_line(said), nl=False)
    elif not text.endswith("\n"):
        _write("\n")
    if reason == "length" and steps[-1].reasoning is not None:
        problem = "the thought left no room for an answer; raise -n, or lower --thinking-budget"
        click.echo(f"eva-local: {problem}", err=True)
    if stats:
        from eva_local.chat.votes import usage_line

        click.echo(f"{usage_line(usage)} | finish: {reason}", err=True)
    return code


@contextlib.contextmanager
def _thoughts(as_json: bool) -> Iterator[Callable[[Step], None]]:
    if as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from eva_local.chat.terminal import Screen

    screen = Screen(interactive=False, folds=False)
    yield screen.think
    screen.end_thought()


def _write(text: str) -> None:
    # A model may write escape sequences; a terminal must not obey them.
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def trace(file: Path, output: str | None) -> None:
    """Make a page of a trace that `run --trace FILE.jsonl` wrote."""
    found = read_trace(file)
    for note in found.notes:
        click.echo(f"eva-local: {file}: {note}", err=True)
    page = trace_page(found).encode()
    if output == "-":
        click.echo(page, nl=False)
        return
    path = file.with_suffix(".html") if output is None else Path(output)
    if path.resolve() == file.resolve():
        raise InputError(f"{path} is the trace itself; name another page with -o PAGE.html")
    with refusing(f"the page {path} cannot be written"):
        path.write_bytes(page)
    summary = summarize(found.members, found.steps)
    click.echo(f"{path}: {summary.tokens} tokens, {summary.disputed} disputed", err=True)
