"""The command `serve`: a local server in the shape of OpenAI's API."""

import asyncio
import signal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from eva_local.chat.terminal import handled
from eva_local.cli.options import Given, Load
from eva_local.cli.outputs import open_shown
from eva_local.config.config import listed
from eva_local.config.settings import read_text
from eva_local.errors import InputError

_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def serve(
    load: Load,
    names: tuple[str, ...],
    model: tuple[str, ...],
    api_key_file: Path | None,
    parallel: int | None,
    overrides: Given,
    **where: Any,
) -> int:
    """Answer over HTTP until a signal ends it; return the exit code."""
    keys: tuple[str, ...] = ()
    if api_key_file is not None:
        lines = read_text(api_key_file, "--api-key-file").splitlines()
        keys = tuple(filter(None, map(str.strip, lines)))
        if not keys:
            raise InputError(f"--api-key-file: {api_key_file} holds no key")
    config = load(overrides)
    asked = [*names, *([listed(model)] if model else [])]
    specs = [config.ensemble(name) for name in asked or (None,)]
    if len({spec.name for spec in specs}) < len(specs):
        raise InputError("-e names an ensemble twice")
    try:
        from eva_local.server.serve import Server
    except ImportError as error:
        hint = "which is not installed: pip install 'eva-local[server]'"
        raise InputError(f"the server needs {error.name}, {hint}") from error
    openers = [partial(open_shown, spec, parallel) for spec in specs]
    server = Server(openers, keys=keys, told=partial(click.echo, err=True), **where)

    def stop(_number: int, _frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_DFL)
        server.stop()

    with handled(stop, *_ENDINGS):
        asyncio.run(server.serve())
    return 0
