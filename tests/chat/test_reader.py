"""What was typed before, in its file. The line editor itself: test_chat_terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from eva_local.chat.reader import _History


@pytest.fixture(autouse=True)
def careless() -> Iterator[None]:
    """Let files be readable by all, if nobody says otherwise."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_first_message_reaches_the_history_which_the_user_alone_can_read(tmp_path) -> None:
    file = tmp_path / "state" / "eva-local" / "history"
    _History(file).store_string("a secret")
    assert list(_History(file).load_history_strings()) == ["a secret"]
    assert [mode(path) for path in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]


def test_a_history_that_was_open_to_others_is_closed(tmp_path) -> None:
    folder = tmp_path / "eva-local"
    folder.mkdir()
    file = folder / "history"
    file.write_text("\n# 2026-11-22\n+an old secret\n")
    assert (mode(folder), mode(file)) == (0o755, 0o644)
    history = _History(file)
    assert mode(file) == 0o600
    history.store_string("a new one")
    assert mode(folder) == 0o700
    assert list(history.load_history_strings()) == ["a new one", "an old secret"]
