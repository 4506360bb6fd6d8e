"""The command `serve`: a local server in the shape of OpenAI's API."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType

import click

from eva_local.cli.options import Load, parallel_option, setting_options
from eva_local.cli.progress import open_shown
from eva_local.config.config import DEFAULT_KEYS
from eva_local.config.settings import read_text
from eva_local.errors import InputError

PORT = 8080
QUEUE = 64
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


@click.command()
@click.option(
    "-e",
    "--ensemble",
    "names",
    multiple=True,
    metavar="NAME",
    help="Offer this ensemble or model; may be repeated. The first is the default.",
)
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Listen here."
)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Listen on this port; 0 takes a free one.",
)
@click.option("--api-key", metavar="KEY", help="Ask for this key. Others can see it with ps.")
@click.option("--api-key-file", metavar="FILE", help="Ask for a key that is a line of FILE.")
@parallel_option("answers")
@click.option(
    "--queue",
    metavar="N",
    type=click.IntRange(0),
    default=QUEUE,
    show_default=True,
    help="Let N more answers wait; beyond that, clients are told to come again.",
)
@click.option(
    "--cors",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages from ORIGIN ask, such as http://localhost:3000. Repeatable.",
)
@setting_options(*(key for key in DEFAULT_KEYS if key != "ensemble"))
@click.pass_obj
def serve(
    load: Load,
    names: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: str | None,
    parallel: int | None,
    queue: int,
    origins: tuple[str, ...],
    overrides: dict[str, object],
) -> int:
    """Answer over HTTP, as OpenAI's API does.

    A program that can talk to OpenAI can talk to an ensemble: its base URL is
    http://127.0.0.1:8080/v1, and a page to chat with is at http://127.0.0.1:8080. Without a key,
    only this machine can ask. Ctrl-C ends it.
    """
    keys = _keys(api_key, api_key_file)
    config = load(overrides)
    specs = [config.ensemble(name) for name in names or (None,)]
    if len({spec.name for spec in specs}) < len(specs):
        raise InputError("-e names an ensemble twice")
    server = _serving().Server(
        [partial(open_shown, spec, None, parallel) for spec in specs],
        host=host,
        port=port,
        keys=keys,
        origins=origins,
        n_waiting=queue,
        told=lambda line: click.echo(line, err=True),
    )
    import asyncio

    from eva_local.chat.terminal import handled

    def stop(_number: int, _frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_DFL)
        server.stop()

    with handled(stop, *_ENDINGS):
        asyncio.run(server.serve())
    return 0


def _keys(key: str | None, file: str | None) -> tuple[str, ...]:
    if key is not None and file is not None:
        raise InputError("give --api-key or --api-key-file, not both")
    if file is None:
        return () if key is None else (key,)
    lines = read_text(Path(file), "--api-key-file").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise InputError(f"--api-key-file: {file} holds no key")
    return keys


def _serving() -> ModuleType:
    try:
        from eva_local.server import serve
    except ImportError as error:
        raise InputError(
            f"the server needs {error.name}, which is not installed: "
            "pip install 'eva-local[server]'"
        ) from error
    return serve
