"""The command line: answers on stdout, all else on stderr.

Which commands there are stands in commands.json, and what they do in modules here, each imported
when a command of its runs: `eva-local --help` needs none of them.
"""

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from eva_local.cli.options import COMMANDS, OPTIONS, command, made
from eva_local.cli.outputs import give_up_output, open_streams
from eva_local.config.config import load_config
from eva_local.engine.detokenizer import harmless_line
from eva_local.errors import EvaError

INTERRUPTED = 130


class _Commands(click.Group):
    """Commands that end in peace where whoever reads their output has enough of it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            give_up_output()
            return 0

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Some type them as words.
        if args and args[0] in ("help", "version"):
            args = [*args[1:], f"--{args[0]}"]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        for name, others in OPTIONS["meant"].items():
            if args[0] not in self.commands and args[0].lower() in others.split():
                ctx.fail(f"no such command {args[0]!r}; did you mean {name!r}?")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    commands=[command(name, how) for name, how in COMMANDS.items()],
    params=made("eva-local"),
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="eva-local", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, config_path: Path | None, verbose: bool) -> None:
    """Let several local GGUF models with different vocabularies write one answer together."""
    _log_to_stderr(logging.DEBUG if verbose else logging.WARNING)
    context.obj = partial(load_config, config_path, os.environ)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error is one line on stderr."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Answers are UTF-8 whatever the locale says.
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        result = cli.main(arguments, prog_name="eva-local", standalone_mode=False)
    except EvaError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        _complain(_refusal(error))
        return EvaError.exit_code
    except MemoryError as error:
        _complain(f"there is not enough memory: {str(error) or 'give it less, or more of it'}")
        return EvaError.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        problem = " ".join(error.format_message().split()).rstrip(".")
        context = error.ctx if isinstance(error, click.UsageError) else None
        if re.search(r"unexpected extra argument.*\.gguf\b", problem):
            problem = f"{problem}: give models with -m"
        _complain(f"{problem}; see: {context.command_path} --help" if context else problem)
        return error.exit_code
    # click returns what the command returned, or the code of an early end such as --help.
    return result if isinstance(result, int) else 0


def _log_to_stderr(level: int) -> None:
    given: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        # A prompt is put to the members in every row, or every turn: a warning is given once.
        message = record.getMessage()
        is_known = message in given
        if record.levelno >= logging.WARNING and not record.exc_info:
            given.add(message)
        # A bar or a spinner stands in for it, and lets lines stand above itself.
        handler.stream = sys.stderr
        return not is_known

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("eva-local: %(levelname)s: %(message)s"))
    handler.addFilter(is_new)
    log = logging.getLogger("eva_local")
    log.handlers[:] = [handler]
    log.setLevel(level)


def _refusal(error: OSError) -> str:
    # Only the streams are written without a name, and a closed one takes nothing.
    where = error.filename or ("standard output" if error.errno == errno.EBADF else None)
    try:
        sys.stdout.flush()
    except OSError:
        where = where or "standard output"
        give_up_output()
    return ": ".join(filter(None, (where, error.strerror or str(error))))


def _complain(problem: str) -> None:
    click.echo(f"eva-local: {harmless_line(problem)}", file=sys.stderr)
