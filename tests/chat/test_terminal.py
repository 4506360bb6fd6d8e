"""The line editor and signals in a real pseudo-terminal, without models."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from waiting import PATIENCE_S

# Reads lines and shows each as Python writes it; ends as the command does.
EDITOR = """
import sys
from pathlib import Path
from eva_local.chat.repl import CommandCompleter
from eva_local.chat.reader import LineEditor
from eva_local.chat.terminal import orderly_end, terminal_restored
with orderly_end(), terminal_restored():
    editor = LineEditor(Path(sys.argv[1]) / "history", CommandCompleter())
    while True:
        try:
            print("READ", ascii(editor.read()))
        except KeyboardInterrupt:
            print("CTRL-C")
        except EOFError:
            print("CTRL-D")
            break
"""
# As while an answer comes, without a terminal that shows what is typed; says when something was.
ANSWER = """
import select, sys, time
from eva_local.chat.terminal import interruption_noted, orderly_end, typing_unseen
with orderly_end(), interruption_noted() as interrupted, typing_unseen():
    print("BEGUN", flush=True)
    select.select([sys.stdin], [], [])
    print("TYPED", flush=True)
    while not interrupted():
        time.sleep(0.02)
print("STOPPED", input())
"""
PASTE = "\x1b[200~", "\x1b[201~"
Spawn = Callable[..., pexpect.spawn]


@pytest.fixture
def spawn(tmp_path) -> Iterator[Spawn]:
    running: list[pexpect.spawn] = []

    def start(script: str, **environment: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-c", script, str(tmp_path)],
            env=os.environ | {"TERM": "xterm-256color"} | environment,
            timeout=PATIENCE_S,
            dimensions=(24, 80),
        )
        child.delaybeforesend = None
        running.append(child)
        return child

    yield start
    for child in running:
        if child.isalive():
            child.kill(9)
            child.wait()
        child.close()


def ready(child: pexpect.spawn) -> None:
    child.expect_exact("\x1b[?2004h")
    child.expect_exact("> ")


def reads(child: pexpect.spawn, keys: str | bytes) -> str:
    """Send keys and Enter; return what was read, as Python writes it."""
    child.send(keys)
    child.send("\r")
    child.expect(r"READ (.*)\r\n")
    found = child.match[1].decode()
    ready(child)
    return found


def test_what_is_typed_and_pasted(spawn, tmp_path) -> None:
    child = spawn(EDITOR)
    ready(child)
    assert reads(child, "hello") == "'hello'"
    assert reads(child, "two\x1b\rlines") == r"'two\nlines'"
    assert reads(child, '"""\rtwo\r  lines\r"""') == """'\"\"\"\\ntwo\\n  lines\\n\"\"\"'"""
    assert reads(child, f"{PASTE[0]}two\r\nlines\rmore{PASTE[1]}") == r"'two\nlines\nmore'"
    odd = f"{PASTE[0]}a\x00b\x1b[31mc\x1b]0;title\x07{PASTE[1]}"
    assert reads(child, odd) == r"'a\x00b\x1b[31mc\x1b]0;title\x07'"
    half = PASTE[0].encode() + "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()[:-1]
    assert reads(child, half + b"!" + PASTE[1].encode()) == r"'caf\udcc3!'"
    # The history holds it all, whatever it was.
    assert reads(child, "\x1b[A\x1b[A\x1b[A") == r"'two\nlines\nmore'"
    assert "caf" in (tmp_path / "history").read_text()


def test_pasted_escape_sequences_are_shown_and_not_obeyed(spawn) -> None:
    child = spawn(EDITOR)
    ready(child)
    child.send(f"{PASTE[0]}\x1b]0;owned\x07\x1b[2J{PASTE[1]}\r")
    child.expect("READ")
    assert b"\x1b]0;owned" not in child.before
    assert b"\x1b[2J" not in child.before
    assert b"owned" in child.before


def test_a_paste_of_100_kb(spawn, tmp_path) -> None:
    child = spawn(EDITOR)
    ready(child)
    text = "".join(f"{number:05} all work and no play\r" for number in range(100_000 // 27))
    child.send(PASTE[0])
    for at in range(0, len(text), 1000):
        child.send(text[at : at + 1000])
    child.send(f"{PASTE[1]}\r")
    child.expect(r"READ '00000 all.*play")
    assert (tmp_path / "history").exists() is False


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(spawn) -> None:
    child = spawn(EDITOR)
    ready(child)
    child.send("half a mess\x03")
    child.expect("CTRL-C")
    ready(child)
    assert reads(child, "whole") == "'whole'"
    child.send("\x04")
    child.expect("CTRL-D")
    child.expect(pexpect.EOF)


def test_tab_completes_commands_settings_and_files(spawn, tmp_path) -> None:
    (tmp_path / "notes-of-today.txt").touch()
    child = spawn(EDITOR)
    ready(child)
    for begun, rest in (
        ("/reg", "en"),
        ("/set min", "_p"),
        (f"/read {tmp_path}/notes", "-of-today.txt"),
    ):
        child.send(begun)
        child.expect_exact(begun[-1:])
        child.send("\t")
        child.expect_exact(rest[-4:])
        assert reads(child, "") == f"'{begun}{rest}'"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_before_when_the_prompt_is_told_to_end(spawn, number) -> None:
    child = spawn(EDITOR)
    before = termios.tcgetattr(child.child_fd)
    ready(child)
    assert termios.tcgetattr(child.child_fd) != before
    child.kill(number)
    child.expect_exact("\x1b[?2004l")
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before
    child.wait()
    assert child.exitstatus == 128 + number
    assert b"Traceback" not in child.before


def test_what_is_typed_while_an_answer_comes_is_unseen_and_waits(spawn) -> None:
    child = spawn(ANSWER)
    before = termios.tcgetattr(child.child_fd)
    child.expect("BEGUN")
    child.send("secret\n")
    child.expect("TYPED")
    assert b"secret" not in child.before
    child.kill(signal.SIGINT)
    child.expect("STOPPED")
    assert b"secret" not in child.before
    child.expect("secret")
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before


def test_the_terminal_is_as_before_when_an_answer_is_told_to_end(spawn) -> None:
    child = spawn(ANSWER)
    before = termios.tcgetattr(child.child_fd)
    child.expect("BEGUN")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before


def test_colours_are_left_out_where_no_color_says_so(spawn) -> None:
    colour = re.compile(rb"\x1b\[[0-9;]*[39][0-7]")
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        child = spawn(EDITOR, **environment)
        child.expect_exact("lists the commands")
        assert bool(colour.search(child.before)) is coloured


def test_the_history_outlives_the_chat_and_no_failure_of_it_ends_one(spawn, tmp_path) -> None:
    child = spawn(EDITOR)
    ready(child)
    reads(child, "remembered")
    child.send("\x04")
    child.expect(pexpect.EOF)
    child = spawn(EDITOR)
    ready(child)
    assert reads(child, "\x1b[A") == "'remembered'"
    child.send("\x04")
    child.expect(pexpect.EOF)
    history: Path = tmp_path / "history"
    history.unlink()
    history.mkdir()
    child = spawn(EDITOR)
    ready(child)
    assert reads(child, "still here") == "'still here'"
