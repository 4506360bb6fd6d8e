"""The command `chat` as a person uses it: in a real pseudo-terminal, on the real models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from eva_local.chat import log
from eva_local.config.config import shipped

pytestmark = pytest.mark.real

COMMAND = ["-m", "eva_local", "--config", str(shipped("models.toml")), "chat"]
PASTE = "\x1b[200~", "\x1b[201~"


class Person:
    """Somebody at a terminal of 80 columns."""

    def __init__(self, state: Path, *options: str) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            [*COMMAND, *options],
            env=os.environ | {"TERM": "xterm-256color", "XDG_STATE_HOME": str(state)},
            timeout=120,
            dimensions=(40, 80),
        )
        self.child.delaybeforesend = None
        self.before = termios.tcgetattr(self.child.child_fd)
        self.greeting = self.wait()

    def wait(self) -> str:
        """Wait for the next prompt; return what came before it, as it is read."""
        self.child.expect_exact("\x1b[?2004h")
        text = self.child.before.decode()
        self.child.expect_exact("/help lists the commands")
        return visible(text)

    def say(self, text: str) -> str:
        """Send a line; return what is shown until the next prompt."""
        self.child.send(f"{text}\r")
        return self.wait()

    def begin(self, text: str) -> None:
        """Send a line; return when the answer has begun."""
        self.child.send(f"{text}\r")
        self.child.expect_exact("\x1b[?2004l")
        self.child.expect("[a-z]{3}.*[a-z]{3} ")

    def paste(self, data: bytes) -> str:
        """Paste bytes as a terminal does, and send them."""
        self.child.send(PASTE[0].encode() + data + PASTE[1].encode() + b"\r")
        return self.wait()

    def leave(self, keys: str) -> str:
        """Leave; check that the terminal is as it was."""
        self.child.send(keys)
        self.child.expect(pexpect.EOF)
        text = visible(self.child.before.decode())
        assert termios.tcgetattr(self.child.child_fd) == self.before
        self.child.wait()
        assert self.child.exitstatus == 0
        return text


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


@pytest.fixture
def person(tmp_path) -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def sit_down(*options: str) -> Person:
        people.append(Person(tmp_path, *options))
        return people[-1]

    yield sit_down
    for somebody in people:
        if somebody.child.isalive():
            somebody.child.kill(9)
            somebody.child.wait()
        somebody.child.close()


def test_a_session(person, tmp_path) -> None:
    ada = person("-e", "demo", "--n-ctx", "256", "-n", "24")
    assert "demo: qwen2.5-coder-0.5b + smollm2-135m, context 256" in ada.greeting

    said = ada.say("What is the capital of France?")
    assert "The capital of France is Paris." in said
    assert re.search(
        r"7 tokens at [\d.]+/s · qwen2.5-coder-0.5b \d+%, smollm2-135m \d+% · \d+\s+filtered\s+·\s+"
        r"context\s+\d+/256",
        said,
    )
    assert "Rome" in ada.say("And of Italy?")
    said = ada.say("/regen")
    assert "Rome" in said
    assert "the same again: temperature is 0" in said

    said = ada.say("/why 1")
    assert "token 1 of 8" in said
    for member in ("together", "qwen2.5-coder-0.5b", "smollm2-135m"):
        assert re.search(rf"{member}.*\n(  .*\n)* ▸'The' +\d+\.\d% █+", said)
    assert re.search(r"\d+ of 8 tokens were disputed|No vote was filtered", ada.say("/why"))
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s,\s+first\s+after", ada.say("/stats"))

    assert "taken back: And of Italy? (1 turn left)" in ada.say("/undo")
    assert "Berlin" in ada.say("And of Germany?")
    assert "did you mean /regen?" in ada.say("/regne")

    ada.say("/set max_tokens 150")
    ada.begin("Tell me a very long story about the sea.")
    ada.child.send("\x03")
    assert re.search(r"stopped · \d+ tokens? at", ada.wait())

    ada.say("/set max_tokens 24")
    for _ in range(6):
        said = ada.say("And what happened then, after all of that had come to its end?")
        if "the context is full" in said:
            break
    assert re.search(
        r"the context is full \(\S+ needs \d+ tokens of 256, and 24 are kept for\s+the answer\): "
        r"the oldest (turn is|\d turns are) left out",
        said,
    )
    assert "left out  the oldest" in ada.say("/show")
    said = ada.say("the sea " * 200)
    assert re.search(r"this message does not fit: \S+ needs \d+ tokens of 256", said)

    assert "go on with: eva-local chat --resume" in ada.leave("/exit\r")
    (path,) = (tmp_path / "eva-local" / "chats").iterdir()
    saved = log.read(path).conversation
    assert [turn.question for turn in saved.turns[:3]] == [
        "What is the capital of France?",
        "And of Germany?",
        "Tell me a very long story about the sea.",
    ]

    ada = person("--continue", "-n", "12")
    assert f"{path.stem}: {len(saved.turns)} turns" in ada.greeting
    assert "> And what happened then" in ada.greeting
    said = ada.say("What is the capital of France?")
    assert " at " in said
    ada.leave("\x04")
    assert len(log.read(path).conversation.turns) == len(saved.turns) + 1


def test_kill_9_loses_only_the_answer_that_is_being_written(person, tmp_path) -> None:
    ada = person("-e", "smollm2-135m", "-n", "400")
    ada.say("/set max_tokens 5")
    ada.say("What is the capital of France?")
    ada.say("/set max_tokens 400")
    ada.begin("Tell me a very long story about the sea.")
    ada.child.kill(9)
    ada.child.wait()

    (path,) = (tmp_path / "eva-local" / "chats").iterdir()
    first, second = log.read(path).conversation.turns
    assert first.answer
    assert (second.question, second.answer) == ("Tell me a very long story about the sea.", None)

    done = plain(tmp_path, "--continue", "-n", "5", text="/regen\n")
    assert f"{path.stem}: 2 turns" in done.stderr
    assert "this message has no answer; /regen writes one" in done.stderr
    (again, second) = log.read(path).conversation.turns
    assert again == first
    assert second.answer
    assert done.stdout.strip() == second.answer.strip()


def test_pasted_text_of_any_kind(person, tmp_path) -> None:
    ada = person("-e", "smollm2-135m", "--n-ctx", "512", "-n", "4")
    said = ada.paste(b"All work and no play. " * (100_000 // 22))
    assert re.search(r"does not fit: smollm2-135m needs \d{5} tokens of 512", said)
    said = ada.paste(b"What is\x00 this: \x1b[2J\x1b]0;owned\x07 ?")
    assert " tokens at " in said
    said = ada.paste("Is this a cafe: café".encode()[:-1])
    assert "1 byte was no UTF-8 and became U+FFFD" in said
    assert " tokens at " in said
    ada.leave("\x04")
    (path,) = (tmp_path / "eva-local" / "chats").iterdir()
    turns = log.read(path).conversation.turns
    assert [turn.question for turn in turns] == [
        "What is\x00 this: \x1b[2J\x1b]0;owned\x07 ?",
        "Is this a cafe: caf\ufffd",
    ]


def plain(state: Path, *options: str, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *COMMAND, *options],
        input=text,
        env=os.environ | {"XDG_STATE_HOME": str(state)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_without_a_terminal_each_line_is_a_message_and_all_is_plain(tmp_path) -> None:
    text = 'What is\x00 red?\n"""\nTwo\nlines\n"""\n/why 1\n'
    done = plain(tmp_path, "-e", "smollm2-135m", "-n", "4", text=text)
    assert len(done.stdout.strip().splitlines()) >= 2
    assert len(re.findall(r"\d tokens at [\d.]+/s · context \d+/4096\n", done.stderr)) == 2
    assert "token 1 of " in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    listed = plain(tmp_path, "--list", text="").stdout.splitlines()
    assert re.search(r"smollm2-135m +2 +What is␀ red\?", listed[1])
