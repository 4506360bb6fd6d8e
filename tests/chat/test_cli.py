"""The command `chat` with fake models."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from chats import fake_ensemble
from click.testing import CliRunner

from eva_local import cli
from eva_local.chat import log
from eva_local.chat.log import Conversation, Turn
from eva_local.chat.reader import PlainReader
from eva_local.chat.terminal import Screen
from eva_local.cli import chat


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch) -> Path:
    """Give each test models of its own, and a folder for its conversations."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.toml").write_text('schema = 1\n[models.a-1]\npath = "fake.gguf"\n')
    monkeypatch.setattr(chat, "open_shown", lambda _: fake_ensemble())
    return chat.state_folder()


def converse(*arguments: str, said: str = ""):
    return CliRunner().invoke(cli.cli, ["chat", *arguments], input=said)


def test_conversations_are_for_the_user_alone(state) -> None:
    before = os.umask(0o022)
    try:
        # As an earlier version made it.
        state.mkdir(parents=True)
        assert state.stat().st_mode & 0o777 == 0o755
        result = converse(said="the cat\n")
    finally:
        os.umask(before)
    assert result.exit_code == 0
    (path,) = (state / "chats").iterdir()
    modes = [place.stat().st_mode & 0o777 for place in (state, state / "chats", path)]
    assert modes == [0o700, 0o700, 0o600]


def test_a_link_that_leads_nowhere_is_no_conversation(state) -> None:
    turn = Conversation("", (Turn("the cat", "sat"),))
    log.Log.begin(state / "chats", "a-1", turn).close()
    (state / "chats" / "lost.jsonl").symlink_to(state / "nothing")
    listed = converse("--list").stdout
    assert "the cat" in listed
    assert "lost" not in listed
    assert converse("--continue").exit_code == 0


def test_an_answer_that_nobody_can_take_ends_the_chat(monkeypatch, capsys, state) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Screen, "write", write)
    monkeypatch.setattr(PlainReader, "read", lambda _: "the cat")
    assert cli.main(["chat"]) == 2
    assert capsys.readouterr().err == "eva-local: No space left on device\n"
