"""Thoughts in a chat with a model that thinks: in a real pseudo-terminal, and where none is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from waiting import PATIENCE_S

from eva_local.chat import log
from eva_local.chat.log import Turn

# `eva-local chat` with one model that thinks; at its end it tells what that has read last. A file
# `slow` lets it think a long time, a word at a time.
CHAT = """
import sys, time
from pathlib import Path
from thinkers import TOLD, Thinking, thinking_ensemble
from eva_local.cli import chat, main

class Thinker(Thinking):
    def _scripted(self, tokens):
        slow = Path("slow").exists()
        time.sleep(0.02 * slow)
        self.says = f"<think>\\nthe un{' the un' * 99 * slow}\\n</think>\\n\\nParis is the end"
        read = "".join(map(self.vocabulary.spelled, tokens)).rpartition("assistant\\n")[2]
        if read.startswith("<think>\\n\\n</think>"):
            self.says = "<think>\\n\\n</think>\\n\\nParis"
        return super()._scripted(tokens)

model = Thinker(TOLD, "")
chat.open_shown = lambda _: thinking_ensemble(model)
code = main(["chat", *sys.argv[1:]])
Path("seen").write_text(model.seen)
sys.exit(code)
"""

# The same with two members of that model and one of another, each of which thinks for itself.
PANEL = CHAT.replace("thinking_ensemble(model)", "thinking_ensemble(model, model, other)").replace(
    "chat.open_shown",
    "from thinkers import OTHER, WORDS_B\n"
    'other = Thinking(OTHER, "[THINK]a the[/THINK]Paris is the end", words=WORDS_B)\n'
    "chat.open_shown",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a folder with a model, conversations of its own, and the tests' helpers."""
    (tmp_path / "models.toml").write_text('schema = 1\n[models.m0]\npath = "fake.gguf"\n')
    tests = Path(__file__).parents[1]
    for name, value in {
        "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}",
        "XDG_STATE_HOME": str(tmp_path),
        "EVA_LOCAL_CACHE": str(tmp_path / "cache"),
        "TERM": "xterm-256color",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Person:
    """Somebody at a terminal of 40 columns."""

    def __init__(self, *options: str, script: str = CHAT) -> None:
        command = ["-c", script, *options]
        self.child = pexpect.spawn(sys.executable, command, timeout=PATIENCE_S, dimensions=(30, 40))
        self.child.delaybeforesend = None
        self.wait()

    def wait(self) -> str:
        """Wait for the next prompt; return what came before it."""
        self.child.expect_exact("\x1b[?2004h")
        shown = self.child.before.decode()
        self.child.expect_exact("/help lists")
        return shown

    def say(self, text: str) -> str:
        """Send a line; return what is shown until the next prompt."""
        self.child.send(f"{text}\r")
        return plain(self.wait())

    def leave(self) -> None:
        self.child.send("/exit\r")
        self.child.expect(pexpect.EOF)
        self.child.wait()
        assert self.child.exitstatus == 0


def plain(shown: str) -> str:
    """Return what was shown as words, without control sequences and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", shown).split())


@pytest.fixture
def person() -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def sit_down(*options: str, script: str = CHAT) -> Person:
        people.append(Person(*options, script=script))
        return people[-1]

    yield sit_down
    for somebody in people:
        somebody.child.close(force=True)


def turns(folder: Path) -> tuple[Turn, ...]:
    (path,) = (folder / "eva-local" / "chats").iterdir()
    return log.read(path).conversation.turns


def test_a_session(person, folder) -> None:
    ada = person()
    ada.child.send("is it\r")
    shown = ada.wait()
    assert re.search(r"\x1b\[2mthinking.*\x1b\[2m[^\x1b]*un.*\r\n\r\nParis", shown, re.DOTALL)
    assert "thinking the un Paris is the end" in plain(shown)
    assert re.search(r"12 tokens \(3 thought\) at [\d.]+/s · context \d+/512", plain(shown))
    assert "in the thought" in ada.say("/why 2")
    shown = ada.say("/why 6")
    assert "in the thought" not in shown
    assert "the un" not in shown
    assert "12 tokens (3 thought), " in ada.say("/stats")

    assert "thoughts are folded" in ada.say("/think fold")
    shown = ada.say("is it")
    assert re.search(r"thought for 3 tokens in \d+ s; /thought shows it Paris is the end", shown)
    assert "the un" not in shown.replace("Paris is the end", "").replace("/thought shows it", "")
    assert "the un" in ada.say("/thought")

    assert "thinking is off" in ada.say("/think off")
    shown = ada.say("is it")
    assert "Paris" in shown
    assert "though" not in shown
    assert "thinking is auto" in ada.say("/set thinking auto")
    assert "thinking is auto" in ada.say("/think")
    assert "thinking is auto" in ada.say("/think auto")
    ada.leave()

    thought = Turn("is it", "Paris is the end", "the un\n")
    assert turns(folder) == (thought, thought, Turn("is it", "Paris"))
    # Turn 3 read the answers of turns 1 and 2 without their thoughts.
    read = (folder / "seen").read_text()
    assert read.count("Paris is the end<|im_end|>") == 2
    assert "the un" not in read

    ada = person("--continue", "-e", "m0")
    assert "the un" in ada.say("/thought")
    ada.leave()


def test_ctrl_c_in_a_thought(person, folder) -> None:
    ada = person("-n", "200")
    (folder / "slow").touch()
    ada.child.send("is it\r")
    ada.child.expect(r"the.* un.* the.* un")
    ada.child.send("\x03")
    assert "stopped in the thought (it is kept with the message; /regen" in plain(ada.wait())
    (kept,) = turns(folder)
    assert (kept.answer, kept.reasoning[:13]) == ("", "the un the un")

    (folder / "slow").unlink()
    assert "Paris is the end" in ada.say("/regen")
    (folder / "slow").touch()
    ada.say("/think fold")
    # An answer that is there is not lost for the sake of a thought.
    ada.child.send("/regen\r")
    ada.child.expect("thinking … [1-9]".encode())
    ada.child.send("\x03")
    shown = plain(ada.wait())
    assert "stopped before a word was said; all is as it was" in shown
    assert "the same again" not in shown
    ada.say("/set max_tokens 2")
    assert "cut off at max_tokens 2 in the thought" in ada.say("is it")
    ada.leave()
    first, _ = turns(folder)
    assert first == Turn("is it", "Paris is the end", "the un\n")


def test_thoughts_apart(person, folder) -> None:
    ada = person("--thinking", "apart", script=PANEL)
    told = "m0: the un m1: the un m2: a the"
    shown = ada.say("is it")
    assert f"thinking {told} Paris is the end" in shown
    assert "18 tokens (9 thought)" in shown
    # Each thought is a text of its own, on which its member alone has voted.
    assert re.search(r"5 of 21, in the thought → 'the' together .* m1 kept", ada.say("/why 5"))
    assert re.search(r"10 of 21, in the thought a → ' the' .* m2 kept", ada.say("/why 10"))
    shown = ada.say("/why 14")
    assert re.search(
        r"token 14 of 21 Paris → ' ' together, [\d.]+ bits apart .* m0 kept.* m1 kept.* m2 kept",
        shown,
    )
    shown = ada.say("/why")
    assert f"{told} Par is is the e n d m0 · m1 · m2 2 of 21 tokens were disputed" in shown

    ada.say("/think fold")
    shown = ada.say("is it")
    assert re.search(r"thought for 9 tokens in \d+ s; /thought shows it Paris is the end", shown)
    assert "m0:" not in shown
    assert told in ada.say("/thought")
    (folder / "slow").touch()
    ada.say("/think show")
    ada.child.send("is it\r")
    ada.child.expect(r"m0:.*the.* un.* the.* un")
    ada.child.send("\x03")
    assert "stopped in the thought (it is kept with the message; /regen" in plain(ada.wait())
    (folder / "slow").unlink()
    assert f"{told} Paris is the end" in ada.say("/regen")
    ada.leave()
    thought = "m0:\nthe un\n\n\nm1:\nthe un\n\n\nm2:\na the"
    assert turns(folder) == (Turn("is it", "Paris is the end", thought),) * 3
    earlier, _, last = (folder / "seen").read_text().rpartition("assistant\n")
    assert earlier.count("Paris is the end<|im_end|>") == 2
    assert "the un" not in earlier
    # What was decoded ahead may stand behind it.
    assert "the un\n</think>\n\nParis is the end" in last


def test_no_colours_where_no_color_says_so(person, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    ada = person()
    ada.child.send("is it\r")
    shown = ada.wait()
    assert "Paris is the end" in plain(shown)
    assert not re.search(r"\x1b\[[0-9;]*[39][0-7]", shown)


def test_where_no_terminal_is(folder) -> None:
    said = "is it\n/think show\n/think on\n/regen\n/think x\n"
    done = subprocess.run(
        [sys.executable, "-c", CHAT], input=said, capture_output=True, text=True, check=True
    )
    assert done.stdout == "Paris is the end\n" * 2
    err = done.stderr.splitlines()
    assert re.fullmatch(r"thought for 3 tokens in \d+ s; /thought shows it", err[0])
    assert err[2:6] == [
        "thinking is auto; thoughts are shown",
        "thinking is on; thoughts are shown",
        "thinking",
        "the un",
    ]
    assert "/think takes auto, off, on, apart, fold, show, not x" in err
    assert "\x1b" not in done.stderr


def test_logs_of_before_there_were_thoughts(folder) -> None:
    lines = (
        {"schema": 1, "kind": "chat", "ensemble": "m0", "began": "2026-01-01T00:00:00+00:00"},
        {"kind": "user", "text": "is it"},
        {"kind": "answer", "text": "Paris"},
    )
    (folder / "eva-local" / "chats").mkdir(parents=True)
    (folder / "eva-local" / "chats" / "old.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines)
    )
    assert turns(folder) == (Turn("is it", "Paris"),)
