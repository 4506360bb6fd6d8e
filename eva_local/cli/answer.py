"""One answer on standard output, and what it cost."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from eva_local.cli.progress import ProgressDisplay
from eva_local.engine.detokenizer import harmless

if TYPE_CHECKING:
    from eva_local.api import Ensemble
    from eva_local.llama.prompt import Prompt
    from eva_local.trace import TraceWriter
    from eva_local.types import Sampling, Step, Usage


def answer(
    ensemble: Ensemble,
    prompt: Prompt,
    sampling: Sampling,
    *,
    stats: bool = False,
    as_json: bool = False,
    trace: TraceWriter | None = None,
) -> int:
    """Stream the answer; return the exit code: 130 where it was interrupted."""
    steps: list[Step] = []
    code = 0
    out = _Answer(quiet=as_json)
    reading = ProgressDisplay()
    try:
        for step in ensemble.stream(
            prompt,
            sampling,
            trace=trace is not None,
            report=lambda what, share: reading(what, round(1000 * share), 1000),
        ):
            reading.close()
            steps.append(step)
            if trace is not None:
                trace.write(step)
            out.write(step.text)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read the answer has enough of it.
        return out.abandon()
    finally:
        reading.close()
    out.end()
    usage = steps[-1].usage if steps else None
    if as_json:
        reason = steps[-1].finish_reason if steps else None
        answer = {
            "text": "".join(step.text for step in steps),
            "finish_reason": reason or "cancelled",
            "usage": None if usage is None else asdict(usage),
        }
        from eva_local.jsonl import json_line

        click.echo(json_line(answer), nl=False)
    if stats:
        line = "stopped before the end" if usage is None else _summary(usage)
        reason = (steps[-1].finish_reason if steps else None) or "cancelled"
        click.echo(f"{line} | finish: {reason}", err=True)
    return code


def _summary(usage: Usage) -> str:
    steps = max(usage.steps, 1)
    rest = zip(usage.decode_seconds, usage.prompt_seconds, strict=True)
    rate = usage.steps / max(usage.seconds - usage.first_seconds, 1e-9)
    each = ", ".join(
        f"{name} {1000 * (whole - prompt) / steps:.1f} ms"
        for name, (whole, prompt) in zip(usage.members, rest, strict=True)
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
