"""Thoughts and chat templates on the command line: streams, settings, and what `show` tells."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pexpect
import pytest
from thinkers import NO_THOUGHTS, TOLD, Thinking, thinking_ensemble
from waiting import PATIENCE_S

from eva_local.cli import main
from eva_local.cli import run as run_command
from tools.tiny_gguf import write_tiny_gguf

SAYS = "<think>\nthe un\n</think>\n\nParis is the end"
RUN = f"""
import sys
from thinkers import TOLD, Thinking, thinking_ensemble
from eva_local.cli import main, run
run.open_shown = lambda _: thinking_ensemble(Thinking(TOLD, {SAYS!r}))
sys.exit(main(["run", *sys.argv[1:], "is it"]))
"""
# It ends a conversation by saying what it was told.
MOODS = "{{ raise_exception('told: ' ~ a ~ b ~ c) }}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_command, "input_is_closed", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.toml").write_text('schema = 1\n[models.m]\npath = "m.gguf"\n')
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    # What llama.cpp says of a file that is made.
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def thinker(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = thinking_ensemble(Thinking(TOLD, SAYS))
    monkeypatch.setattr(run_command, "open_shown", lambda _: ensemble)


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_terminal_on_stderr_shows_the_thought(folder, options, monkeypatch) -> None:
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests.parent}{os.pathsep}{tests}")
    (folder / "run.py").write_text(RUN)
    command = f"exec {sys.executable} run.py {options} > out"
    child = pexpect.spawn("/bin/sh", ["-c", command], timeout=PATIENCE_S)
    child.expect(pexpect.EOF)
    child.close()
    shown, out = child.before.decode(), (folder / "out").read_text()
    assert child.exitstatus == 0
    if options:
        assert json.loads(out)["reasoning"].strip() == "the un"
        assert shown == ""
    else:
        assert out == "Paris is the end\n"
        assert shown.startswith("\x1b[2mthinking")
        assert "Paris" not in shown


def test_elsewhere_nothing_of_it_is_shown(thinker, capsys) -> None:
    code, out, err = run(capsys, "run", "is it", "--stats")
    assert (code, out) == (0, "Paris is the end\n")
    assert err.startswith("12 tokens (3 thought), ")
    assert err.count("\n") == 1


def test_a_thought_that_leaves_no_room_for_an_answer_is_told(thinker, capsys) -> None:
    code, out, err = run(capsys, "run", "is it", "-n", "2")
    assert (code, out) == (0, "\n")
    assert err.startswith("eva-local: the thought left no room for an answer; raise -n, or lower")


def test_what_is_told_to_a_template_and_who_wins(folder, capsys) -> None:
    write_tiny_gguf(folder / "m.gguf", n_layers=1, n_ctx=128, chat_template=NO_THOUGHTS)
    (folder / "moods.jinja").write_text(MOODS)
    (folder / "other.jinja").write_text("{{ raise_exception('other') }}")
    (folder / "models.toml").write_text(
        f"""
        schema = 1
        [models.m]
        path = "m.gguf"
        n_ctx = 128
        chat_template = "moods.jinja"
        chat_template_kwargs = {{ a = "model ", b = "model ", c = "model" }}
        [ensembles.e]
        members = ["m"]
        chat_template_kwargs = {{ b = "ensemble ", c = "ensemble" }}
        [ensembles.text]
        members = ["m"]
        chat_template = "{MOODS}"
        """
    )
    for options, told in (
        (("-e", "m"), "told: model model model"),
        (("-e", "e"), "told: model ensemble ensemble"),
        (("-e", "e", "--chat-template-kwargs", '{"c": "line"}'), "told: model ensemble line"),
        (("-e", "text"), "told: model model model"),
        (("-e", "e", "--chat-template", "other.jinja"), "other"),
    ):
        code, out, err = run(capsys, "run", *options, "x")
        assert (code, out) == (2, "")
        assert err == f"eva-local: m: its chat template refuses this conversation: {told}\n"


@pytest.mark.parametrize(
    ("table", "options", "thought"),
    [
        ('thinking = "off"', ("--chat-template-kwargs", '{"enable_thinking": true}'), "the un"),
        ('thinking = "on"', ("--chat-template-kwargs", '{"enable_thinking": false}'), ""),
        (
            "chat_template_kwargs = { enable_thinking = true }",
            ("--chat-template-kwargs", '{"enable_thinking": false}'),
            "",
        ),
        ('thinking = "off"', ("--chat-template-kwargs", '{"effort": "low"}'), ""),
    ],
)
def test_what_templates_are_told_on_the_command_line_goes_before_the_file(
    folder, thinker, capsys, table, options, thought
) -> None:
    text = f'schema = 1\n[models.m]\npath = "m.gguf"\n[ensembles.e]\nmembers = ["m"]\n{table}\n'
    (folder / "models.toml").write_text(text)
    out = run(capsys, "run", "is it", "-e", "e", "--json", *options)[1]
    assert json.loads(out)["reasoning"].strip() == thought


@pytest.mark.parametrize(
    ("options", "mode", "told"),
    [
        ((), "off", "False"),
        (("--chat-template-kwargs", '{"enable_thinking": true}'), "on", "True"),
        (("--chat-template-kwargs", '{"mood": 1}'), "off", "False"),
        (("--thinking", "on"), "on", "True"),
    ],
)
def test_the_command_line_wins_over_what_the_file_tells_templates(
    folder, monkeypatch, capsys, options, mode, told
) -> None:
    (folder / "models.toml").write_text(
        'schema = 1\n[models.m]\npath = "m.gguf"\n[ensembles.e]\nmembers = ["m"]\n'
        "chat_template_kwargs = { enable_thinking = false }\n"
    )
    model = Thinking(NO_THOUGHTS, "Paris")
    model.chat_template = "{{ messages[0].content }} {{ enable_thinking }}{# <think> #}"
    asked = []
    ensemble = thinking_ensemble(model)
    stream = ensemble.stream
    ensemble.stream = lambda prompt, how, **more: (asked.append(how), stream(prompt, how))[1]
    monkeypatch.setattr(run_command, "open_shown", lambda _: ensemble)
    assert run(capsys, "run", "-e", "e", "-n", "2", *options, "is it")[0] == 0
    assert asked[0].thinking == mode
    assert f"is it {told}" in model.seen


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--thinking", "maybe"), '--thinking: must be "apart" or "auto" or "off" or "on"'),
        (("--thinking-budget", "-2"), "--thinking-budget: must be -1 (no limit) or more"),
        (("--thinking-budget", "few"), "--thinking-budget: must be"),
        (("--chat-template", "none.jinja"), "--chat-template: none.jinja: cannot be read: No such"),
        (("--chat-template-kwargs", "[1]"), "--chat-template-kwargs '[1]': give an object of JSON"),
        (("--chat-template-kwargs", "{"), "--chat-template-kwargs '{': give an object of JSON"),
        (("--chat-template-kwargs", "[" * 9999), "[': give an object of JSON"),
        (
            ("--thinking", "on", "--chat-template-kwargs", '{"enable_thinking": false}'),
            "thinking and chat_template_kwargs.enable_thinking contradict each other",
        ),
    ],
)
def test_values_that_cannot_be(capsys, options, problem) -> None:
    code, out, err = run(capsys, "run", *options, "x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert problem in err


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('[models.m]\npath = "m"\nchat_template = "x.jinja"', "models.m.chat_template: "),
        ('[models.m]\npath = "m"\nchat_template_kwargs = 1', "models.m.chat_template_kwargs: "),
        ('[defaults]\nthinking = "yes"\n[models.m]\npath = "m"', "defaults.thinking: must be"),
        (
            '[models.m]\npath = "m"\n[ensembles.e]\nmembers = ["m"]\nchat_template = "x.jinja"',
            "ensembles.e.chat_template: ",
        ),
    ],
)
def test_files_that_cannot_be(folder, capsys, lines, problem) -> None:
    (folder / "models.toml").write_text(f"schema = 1\n{lines}\n")
    code, out, err = run(capsys, "config")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert problem in err
    if "x.jinja" in lines:
        assert err.endswith(f"{folder / 'x.jinja'}: cannot be read: No such file or directory\n")


def test_show_tells_how_a_template_thinks(folder, capsys) -> None:
    write_tiny_gguf(folder / "m.gguf", n_layers=1, n_ctx=128, chat_template=NO_THOUGHTS)
    assert json.loads(run(capsys, "show", "m", "--json")[1])["thinking"] is None
    (folder / "told.jinja").write_text(TOLD)
    (folder / "models.toml").write_text(
        """
        schema = 1
        [models.m]
        path = "m.gguf"
        chat_template = "told.jinja"
        chat_template_kwargs = { effort = ["low"] }
        [ensembles.e]
        members = ["m"]
        thinking = "on"
        thinking_budget = 9
        """
    )
    out = run(capsys, "show", "e")[1]
    for line in ("thinking: on", "thinking_temperature: -", "thinking_budget: 9"):
        assert f"\n{line}\n" in out
    for line in ("chat_template: given", "  effort: ['low']", "  marks: <think>,</think>"):
        assert f"  {line}\n" in out
    assert "    told_by: enable_thinking\n    thinks_untold: yes\n" in out
    write_tiny_gguf(folder / "m.gguf", n_layers=1, n_ctx=128, chat_template=TOLD)
    (folder / "models.toml").write_text('schema = 1\n[models.m]\npath = "m.gguf"\n')
    facts = json.loads(run(capsys, "show", "m", "--json")[1])
    assert facts["thinking"]["marks"] == ["<think>", "</think>"]
    assert (facts["chat_template"], facts["file"]["has_chat_template"]) == (None, True)


def test_show_tells_the_role_of_a_member(folder, capsys) -> None:
    members = '[{ model = "m", name = "critic", system = "Doubt it.", prefix = "So: " }, "m"]'
    text = f'schema = 1\n[models.m]\npath = "m.gguf"\n[ensembles.e]\nmembers = {members}\n'
    (folder / "models.toml").write_text(text)
    critic, plain = json.loads(run(capsys, "show", "e", "--json")[1])["members"]
    assert (critic["name"], critic["system"], critic["prefix"]) == ("critic", "Doubt it.", "So: ")
    assert plain["name"] == "m"
    assert "system" not in plain
