"""The command `chat`: a conversation with an ensemble."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli.options import (
    Load,
    setting_options,
    stop_option,
    system_option,
)
from eva_local.cli.outputs import give_up_output, input_is_closed, print_table
from eva_local.cli.progress import open_shown
from eva_local.config.config import Config
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.chat.log import Saved
    from eva_local.chat.reader import Reader
    from eva_local.chat.terminal import Screen

# Columns of --list that are left for the first message.
_FIRST_WORDS = 28


@click.command()
@setting_options()
@stop_option
@system_option
@click.option("-c", "--continue", "go_on", is_flag=True, help="Go on with the last conversation.")
@click.option("--resume", metavar="ID", help="Go on with that conversation; see --list.")
@click.option("--list", "listing", is_flag=True, help="List the saved conversations, and end.")
@click.option("--markdown", is_flag=True, help="Show each answer as Markdown when it is complete.")
@click.pass_obj
def chat(
    load: Load,
    overrides: dict[str, object],
    stop: tuple[str, ...],
    system: str | None,
    go_on: bool,
    resume: str | None,
    listing: bool,
    markdown: bool,
) -> int:
    """Hold a conversation.

    Answers are streamed to stdout; /help lists the commands. Every conversation is saved as it
    goes. Where stdin is no terminal, each line of it is a message.
    """
    if go_on and resume is not None:
        raise InputError("give --continue or --resume, not both")
    from eva_local.chat import log

    folder = state_folder() / "chats"
    if listing:
        _list(folder)
        return 0
    if input_is_closed():
        raise InputError("standard input is closed: there is nobody to talk with")
    saved = log.newest(folder) if go_on else None
    saved = saved if resume is None else log.find(folder, resume)
    config = load(overrides)
    if saved is not None and overrides["ensemble"] is None:
        config = _of_conversation(load, config, overrides, saved)
    return _hold(config, folder, saved, system=system, stop=stop, markdown=markdown)


def state_folder() -> Path:
    """Return the folder of conversations and of what was typed."""
    import platformdirs

    return Path(platformdirs.user_state_dir("eva-local", appauthor=False))


def _of_conversation(
    load: Load, config: Config, overrides: dict[str, object], saved: Saved
) -> Config:
    """Return the configuration for the ensemble that a conversation was held with."""
    if saved.ensemble in config.ensembles or saved.ensemble in config.models:
        return load(overrides | {"ensemble": saved.ensemble})
    click.echo(
        f"eva-local: {config.path} has no ensemble {saved.ensemble!r}, which wrote "
        f"{saved.path.stem}; {config.default_ensemble} goes on",
        err=True,
    )
    return config


def _hold(
    config: Config,
    folder: Path,
    saved: Saved | None,
    *,
    system: str | None,
    stop: tuple[str, ...],
    markdown: bool,
) -> int:
    from eva_local.chat import terminal
    from eva_local.chat.chat import Chat
    from eva_local.chat.log import Log, private_folder
    from eva_local.chat.repl import Repl

    with contextlib.suppress(OSError):
        # Where this is not possible, what cannot be saved is said as it comes.
        private_folder(state_folder())
    screen = terminal.Screen(interactive=terminal.is_terminal())
    sampling = replace(config.sampling, stop=stop) if stop else config.sampling
    with contextlib.ExitStack() as stack:
        file = None
        if saved is not None:
            # Before the models are opened: another chat may hold it.
            file, saved = Log.resume(saved)
            stack.callback(file.close)
        stack.enter_context(terminal.orderly_end())
        stack.enter_context(terminal.terminal_restored())
        with terminal.typing_unseen():
            ensemble = stack.enter_context(open_shown(config.ensemble()))
        held = Chat(ensemble, sampling, folder, screen.note)
        stack.callback(held.close)
        repl = Repl(held, _reader(screen), screen, markdown=markdown)
        repl.greet()
        if file is not None and saved is not None:
            held.resume(file, saved.conversation)
            repl.welcome(saved)
            screen.gap()
        if system is not None:
            held.use_system(system)
        try:
            repl.run()
        except BrokenPipeError:
            # Whoever read the answers has enough of them.
            give_up_output()
            return 0
        if held.path is not None and screen.interactive:
            screen.note(f"go on with: eva-local chat --resume {held.path.stem}")
    return 0


def _reader(screen: Screen) -> Reader:
    from eva_local.chat.commands import CommandCompleter
    from eva_local.chat.reader import LineEditor, PlainReader

    if not screen.interactive:
        return PlainReader()
    return LineEditor(state_folder() / "history", CommandCompleter())


def _list(folder: Path) -> None:
    from eva_local.chat import log

    rows: list[tuple[object, ...]] = []
    for path, seconds in log.newest_first(folder).items():
        held = dt.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
        try:
            saved = log.read(path)
        except InputError as error:
            rows.append((path.stem, held, "-", "-", str(error)))
            continue
        turns = saved.conversation.turns
        words = log.first_words(turns[0].question, _FIRST_WORDS) if turns else ""
        rows.append((path.stem, held, saved.ensemble, len(turns), words))
    print_table(("ID", "LAST HELD", "ENSEMBLE", "TURNS", "BEGINS"), rows)
