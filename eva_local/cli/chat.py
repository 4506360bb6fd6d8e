"""The command `chat`: a conversation with an ensemble."""

import contextlib
import datetime as dt
from pathlib import Path

import platformdirs

from eva_local.api import Ensemble
from eva_local.chat import log, terminal
from eva_local.chat.chat import Chat
from eva_local.chat.reader import LineEditor, PlainReader, Reader
from eva_local.chat.repl import CommandCompleter, Repl
from eva_local.cli.options import Given, Load
from eva_local.cli.outputs import input_is_closed, open_shown, print_table
from eva_local.config.config import Config
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError

# Columns of --list that are left for the first message.
_FIRST_WORDS = 28


def chat(
    load: Load, overrides: Given, system: str | None, go_on: bool, resume: str | None, listing: bool
) -> int:
    """Hold a conversation; return the exit code."""
    if go_on and resume is not None:
        raise InputError("give --continue or --resume, not both")
    folder = state_folder() / "chats"
    if listing:
        _list(folder)
        return 0
    if input_is_closed():
        raise InputError("standard input is closed: there is nobody to talk with")
    saved = log.newest(folder) if go_on else None
    saved = saved if resume is None else log.find(folder, resume)
    if saved is not None and overrides["ensemble"] is None:
        # The ensemble that the conversation was held with.
        overrides = {**overrides, "ensemble": saved.ensemble}
    return _hold(load(overrides), saved, system)


def state_folder() -> Path:
    """Return the folder of conversations and of what was typed."""
    return Path(platformdirs.user_state_dir("eva-local", appauthor=False))


def _hold(config: Config, saved: log.Saved | None, system: str | None) -> int:
    with contextlib.suppress(OSError):
        # Where this is not possible, what cannot be saved is said as it comes.
        log.private_folder(state_folder())
    screen = terminal.Screen(interactive=terminal.is_terminal())
    with contextlib.ExitStack() as stack:
        file = None
        if saved is not None:
            # Before the models are opened: another chat may hold it.
            file, saved = log.Log.resume(saved)
            stack.callback(file.close)
        stack.enter_context(terminal.orderly_end())
        stack.enter_context(terminal.terminal_restored())
        models = stack.enter_context(contextlib.ExitStack())

        def opened(spec: EnsembleSpec) -> Ensemble:
            # Memory may have no room for two.
            models.close()
            with terminal.typing_unseen():
                return models.enter_context(open_shown(spec))

        ensemble = opened(config.ensemble())
        held = Chat(ensemble, config.sampling, state_folder() / "chats", screen.note)
        stack.callback(held.close)
        reader: Reader = PlainReader()
        if screen.interactive:
            reader = LineEditor(state_folder() / "history", CommandCompleter())
        repl = Repl(held, reader, screen, config.ensemble, opened)
        repl.greet()
        if file is not None and saved is not None:
            held.take_over(saved.conversation, file)
            repl.welcome(saved)
            screen.gap()
        if system is not None:
            held.use_system(system)
        repl.run()
        if held.path is not None and screen.interactive:
            screen.note(f"go on with: eva-local chat --resume {held.path.stem}")
    return 0


def _list(folder: Path) -> None:
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
