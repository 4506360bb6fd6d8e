"""The command `serve`: a local server in the shape of OpenAI's API."""

import signal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from eva_local.cli import options
from eva_local.cli.outputs import open_shown
from eva_local.config.config import DEFAULT_KEYS, listed
from eva_local.config.settings import read_text
from eva_local.errors import InputError

_ENDINGS = (signal.SIGINT, signal.SIGTERM)


@click.command()
@click.option(
    "-e",
    "--ensemble",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=options.completed,
    help="Offer this ensemble or model; may be repeated. The first is the default.",
)
@click.option(*options.MODEL, "models", **options.MODEL_HOW)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", help="Listen here.")
@options.count_option(
    "--port", default=8080, least=0, most=65535, text="Listen on this port; 0 takes a free one."
)
@click.option("--api-key-file", metavar="FILE", help="Ask for a key that is a line of FILE.")
@options.parallel_option("answers")
@options.count_option(
    "--queue", "n_waiting", default=64, least=0, text="Let so many more wait, and refuse the rest."
)
@click.option(
    "--cors",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages from ORIGIN ask, such as http://localhost:3000. Repeatable.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Be called NAME, too, such as host.docker.internal or '*.local'. Repeatable.",
)
@click.option(
    "--unknown-keys",
    type=click.Choice(["refuse", "warn"]),
    default="refuse",
    help="What to do with keys of requests that mean nothing here.",
)
@click.option(
    "--trust-templates",
    is_flag=True,
    help="Take chat templates from clients: programs, which can take all time and memory.",
)
@options.setting_options(*(key for key in DEFAULT_KEYS if key != "ensemble"))
@click.pass_obj
def serve(
    load: options.Load,
    /,
    names: tuple[str, ...],
    models: tuple[str, ...],
    api_key_file: str | None,
    parallel: int | None,
    overrides: dict[str, object],
    **where: Any,
) -> int:
    """Answer over HTTP, as OpenAI's API does.

    A program that can talk to OpenAI can talk to an ensemble: its base URL is
    http://127.0.0.1:8080/v1, and a page to chat with is at http://127.0.0.1:8080. Without a key,
    only this machine can ask. Ctrl-C ends it.
    """
    keys: tuple[str, ...] = ()
    if api_key_file is not None:
        lines = read_text(Path(api_key_file), "--api-key-file").splitlines()
        keys = tuple(filter(None, map(str.strip, lines)))
        if not keys:
            raise InputError(f"--api-key-file: {api_key_file} holds no key")
    config = load(overrides)
    asked = [*names, *([listed(models)] if models else [])]
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
