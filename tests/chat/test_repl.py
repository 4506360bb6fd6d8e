"""What a person sees of a chat where no terminal is: commands, remarks, refusals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from chats import fake_chat, fake_ensemble

from eva_local.api import Ensemble
from eva_local.chat.repl import Repl
from eva_local.chat.terminal import Screen
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.detokenizer import harmless
from eva_local.errors import ConfigError, ModelError

Talk = Callable[..., tuple[str, str]]


class Script:
    """Says lines, and then leaves."""

    somebody = False

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def read(self) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


@pytest.fixture
def talk(tmp_path, monkeypatch, capsys) -> Iterator[Talk]:
    """Say lines to one and the same chat; return what was written to stdout and to stderr."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    screen = Screen(interactive=False)
    chat = fake_chat(tmp_path, [])
    chat._tell = screen.note
    reader = Script()
    others = {"other": replace(chat.ensemble.spec, name="other")}

    def spec_of(name: str) -> EnsembleSpec:
        if name not in others:
            raise ConfigError(f"there is no ensemble or model {name!r}")
        return others[name]

    def opened(spec: EnsembleSpec) -> Ensemble:
        chat.ensemble.close()
        if spec.fusion.candidates == 7:
            raise ModelError("no room")
        return fake_ensemble(spec)

    repl = Repl(chat, reader, screen, spec_of, opened)

    def say(*lines: str) -> tuple[str, str]:
        reader.lines = list(lines)
        repl.done = False
        capsys.readouterr()
        repl.run()
        said = capsys.readouterr()
        return said.out, said.err

    say.repl = repl  # type: ignore[attr-defined]
    with contextlib.closing(chat):
        yield say


def turns(talk: Talk) -> list[str]:
    return [turn.question for turn in talk.repl.chat.conversation.turns]


def test_answers_go_to_stdout_and_all_else_to_stderr(talk) -> None:
    out, err = talk("the cat", "/why 1", "/stats", "/show", "/nonsense")
    (turn,) = talk.repl.chat.conversation.turns
    assert out.strip() == turn.answer.strip()
    assert "6 tokens at" in err
    assert "is no command" in err
    assert "\x1b" not in err


def test_the_remark_after_an_answer(talk) -> None:
    _, err = talk("the cat")
    last = err.strip().splitlines()[-1]
    assert last.startswith("cut off at max_tokens 6 · 6 tokens at ")
    assert last.count(" · ") == 4
    for part in ("a-1 ", "b-2 ", "% · ", " filtered · context ", "/4096"):
        assert part in last


def test_commands_that_change_the_conversation(talk) -> None:
    talk("the cat", "there")
    assert turns(talk) == ["the cat", "there"]
    _, err = talk("/undo")
    assert (turns(talk), err) == (["the cat"], "taken back: there (1 turn left)\n")
    assert "the same again: temperature is 0" in talk("/regen")[1]
    assert turns(talk) == ["the cat"]
    talk("/system be a cat", "/clear")
    assert turns(talk) == []
    assert talk.repl.chat.conversation.system == "be a cat"
    assert talk("/system")[1] == "be a cat\n"
    talk('/system ""')
    assert talk.repl.chat.conversation.system == ""
    assert "nothing to take back" in talk("/undo")[1]
    assert "no answer to write again" in talk("/regen")[1]


def test_settings_are_checked_and_the_nearest_is_named(talk) -> None:
    talk("/set temperature 0.5", "/set seed 7", "/set max_tokens 3")
    sampling = talk.repl.chat.sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.5, 7, 3)
    talk("/set seed random")
    assert talk.repl.chat.sampling.seed is None
    for line, problem in (
        ("/set temprature 1", "did you mean temperature?"),
        ("/set temperature hot", "must be a number"),
        ("/set temperature -1", "must be in [0, 100)"),
        ("/set top_k", "needs a value; it is 40"),
    ):
        assert problem in talk(line)[1]
    assert "needs a value; it is that of the answer" in talk("/set thinking_temperature")[1]
    shown = talk("/set")[1]
    assert "temperature" in shown


def test_a_member_alone_is_heard_and_nothing_changes(talk) -> None:
    assert "there is no message yet" in talk("/alone a-1")[1]
    answer, _ = talk("hello there")
    held = talk.repl.chat.conversation
    alone, notes = talk("/alone b-2")
    assert notes.startswith("b-2 alone:")
    assert (
        alone.strip()
        == talk.repl.chat.ensemble.complete(
            held.prompt(), talk.repl.chat.sampling, alone="b-2"
        ).text.strip()
    )
    out, notes = talk("/compare")
    assert [line for line in notes.splitlines() if line.endswith("alone:")] == [
        "a-1 alone:",
        "b-2 alone:",
    ]
    assert harmless(answer.strip()) in notes
    assert alone.strip() in out
    assert talk.repl.chat.conversation == held
    assert "/alone takes one of a-1, b-2" in talk("/alone c")[1]
    assert "together:" in notes
    # Another ensemble wrote that answer.
    notes = talk("/model other", "/compare")[1]
    assert "before:" in notes
    assert "together:" not in notes


def test_how_votes_are_fused_can_be_changed(talk) -> None:
    talk("hello there")
    held = talk.repl.chat.conversation
    for words, key, value in (
        ("combine geometric", "combine", "geometric"),
        ("space bytes", "space", "bytes"),
        ("weights 3,1", "weights", (3.0, 1.0)),
        ("gate 0.5", "gate", 0.5),
    ):
        assert f"{key} is {value}" in talk(f"/set {words}")[1]
        assert getattr(talk.repl.chat.ensemble.spec.fusion, key) == value
    assert "weights must be one for each of" in talk("/set weights 1,2,3")[1]
    assert "negative weight needs" in talk("/set combine mean", "/set weights 3,-1")[1]
    # Where the new one cannot be opened, the old one goes on.
    assert "no room" in talk("/set candidates 7")[1]
    assert talk.repl.chat.ensemble.spec.fusion.weights == (3.0, 1.0)
    assert talk("go on")[0]
    assert len(talk.repl.chat.conversation.turns) == len(held.turns) + 1


def test_a_conversation_goes_on_with_another_ensemble(talk) -> None:
    talk("hello there")
    assert "there is no ensemble or model 'none'" in talk("/model none")[1]
    assert "/model takes" in talk("/model")[1]
    talk("/model other")
    assert talk.repl.chat.ensemble.spec.name == "other"
    assert talk("go on")[0]
    assert turns(talk) == ["hello there", "go on"]


def test_a_file_goes_in_front_of_the_next_message_and_of_no_other(talk, tmp_path) -> None:
    (tmp_path / "a file.txt").write_text("the cat\nsat")
    (tmp_path / "half.txt").write_bytes("é".encode()[:1])
    (tmp_path / "long.txt").write_text("cat " * 6000)
    _, err = talk("/read a file.txt", "why is that", "there")
    assert "a file.txt: 11 characters" in err
    assert turns(talk) == ["the cat\nsat\n\nwhy is that", "there"]
    for line, problem in (
        ("/read absent.txt", "No such file"),
        ("/read half.txt", "not UTF-8"),
        ("/read long.txt", "does not fit: a-1 needs"),
        ("/read .", "cannot be read: Is a directory"),
    ):
        assert problem in talk(line)[1]
    talk("/read a file.txt", "/read", "able")
    assert turns(talk)[-1] == "able"


def test_what_was_read_waits_until_it_was_answered(talk, tmp_path, monkeypatch) -> None:
    (tmp_path / "x.txt").write_text("the cat " * 40)
    talk("/read x.txt")
    with monkeypatch.context() as patch:
        # As Ctrl-C does while the members read.
        patch.setattr(talk.repl.screen, "busy", lambda _: os.kill(os.getpid(), signal.SIGINT))
        assert "stopped before a word was said; all is as it was" in talk("why is that")[1]
    assert turns(talk) == []
    talk("there")
    assert turns(talk) == ["the cat " * 40 + "\n\nthere"]


def test_why_and_stats_look_at_the_last_answer(talk, tmp_path) -> None:
    for line in ("/why", "/stats"):
        assert "no answer was written" in talk(line)[1]
    talk("the cat")
    shown = talk("/why")[1]
    assert "tokens were disputed" in shown or "No vote was filtered" in shown
    shown = talk("/why 2")[1]
    assert "token 2 of 6" in shown
    for part in ("together", "a-1", "b-2", "kept", "%"):
        assert part in shown
    assert "has tokens 1 to 6, not 7" in talk("/why 7")[1]
    assert "needs the number of a token" in talk("/why cat")[1]
    assert all(len(line) <= 40 for line in shown.splitlines())
    said = talk("/stats")[1]
    assert said.startswith("6 tokens, ")
    assert " | decoding a token: a-1 " in said


def test_paths_that_are_none_are_one_line(talk) -> None:
    talk("the cat")
    long = "a" * 300
    for line, problem in (
        ("/read ~nosuchuser/x", "/read: ~nosuchuser/x: there is no such home folder"),
        ("/read a\0b", "/read: must be a path"),
        (f"/read {long}", "File name too long"),
        (f"/why {'9' * 5000}", "needs the number of a token"),
        ("/why -1", "has tokens 1 to"),
    ):
        _, err = talk(line)
        assert problem in err
        assert err.count("\n") == 1
    assert turns(talk) == ["the cat"]


def test_a_screen_that_is_gone_ends_the_chat(talk, monkeypatch) -> None:
    def write(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(talk.repl.screen, "write", write)
    with pytest.raises(BrokenPipeError):
        talk("the cat", "there")
    assert turns(talk) == ["the cat"]


def test_odd_text_is_sent_and_said(talk) -> None:
    _, err = talk("caf\udcc3 \x1b[31mred\x00")
    assert turns(talk) == ["caf\ufffd \x1b[31mred\x00"]
    assert "1 byte was no UTF-8" in err
    shown = talk("/undo")[1]
    assert "\x1b" not in shown
    assert "caf\ufffd ␛[31mred␀" in shown


def test_slashes_quotes_and_empty_lines(talk) -> None:
    talk("", "   ", "//why is that", '"""\n/exit\nthe cat\n"""')
    assert turns(talk) == ["/why is that", "/exit\nthe cat"]
    talk("/exit", "not any more")
    assert turns(talk) == ["/why is that", "/exit\nthe cat"]
    assert "/regen" in talk("/help")[1]


@pytest.mark.parametrize("text", ["/regne", "/", "/usr/bin/env", "/WHY", "/" + "x" * 100])
def test_an_unknown_command_names_the_nearest_and_the_way_out(talk, text) -> None:
    assert re.match(r"/.* is no command \(//.*/(regen|why)", talk(text)[1])
    assert turns(talk) == []


def test_other_names_of_commands(talk) -> None:
    assert talk("/?")[1] == talk("/help")[1]
    for name in ("/bye", "/quit", "/q"):
        talk(name, "the cat")
    assert turns(talk) == []


def test_blank_lines_around_an_answer_are_not_shown(capsys) -> None:
    screen = Screen(interactive=False)
    for text in ("\n", "  one", " \n", "\n", "two", "\n", " \n"):
        screen.write(text)
    screen.end()
    assert capsys.readouterr().out == "one \n\ntwo\n"
