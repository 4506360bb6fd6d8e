"""Members by file and by name on the command line: -m, and a,b,c, through the commands."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from eva_local import cli
from eva_local.cli import chat, main
from eva_local.errors import EvaError

Run = Callable[..., tuple[int, str, str]]
LITTLE = ("-t", "1", "-c", "128")
KNOWN = "there is no ensemble or model"


@pytest.fixture(autouse=True)
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a folder with two files of models, and a user who has configured nothing."""
    for name in list(os.environ):
        if name.startswith("EVA_LOCAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "user"))
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(models / "one.gguf", here / "one.gguf")
    shutil.copy(models / "two.gguf", here / "b, two.gguf")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def eva(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        told = [line for line in err.splitlines() if "has no chat template" not in line]
        return code, out, "\n".join(told)

    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield run


BOTH = ("-m", "one.gguf", "-m", "b, two.gguf")
SAME = (BOTH, ("-e", "one.gguf,b\\, two.gguf"), ("--ensemble", "./one.gguf,b\\, two.gguf"))


def test_one_command_from_two_files_to_an_answer(eva: Run) -> None:
    answers = {eva("run", *how, *LITTLE, "-n", "4", "the light") for how in SAME}
    ((code, out, err),) = answers
    assert (code, err) == (0, "")
    assert out.strip()
    code, out, _ = eva("run", "-e", "b, two.gguf", *LITTLE, "-n4", "--json", "the")
    assert (code, json.loads(out)["usage"]["members"]) == (0, ["b-two"])


@pytest.mark.parametrize("how", SAME)
def test_show_and_config_and_pull_and_verify(eva: Run, folder: Path, how: tuple[str, ...]) -> None:
    facts = json.loads(eva("show", "--json", *how)[1])
    assert (facts["name"], facts["pivot"]) == ("one+b-two", "one")
    assert [each["name"] for each in facts["members"]] == ["one", "b-two"]
    value = ",".join(each.replace(",", "\\,") for each in how[1::2]) if how is BOTH else how[1]
    settings = json.loads(eva("config", "--json", *how)[1])["settings"]
    assert settings["ensemble"] == {"value": value, "origin": "command line --ensemble"}
    told = f"one: your own file: {folder / 'one.gguf'}\nb-two: your own file: "
    assert eva("pull", *how)[1].startswith(told)
    code, out, _ = eva("verify", *how)
    assert (code, [line.split(": ")[:2] for line in out.splitlines()]) == (
        0,
        [["one", "unverified"], ["b-two", "unverified"]],
    )


def test_verify_and_show_take_files_as_names(eva: Run, folder: Path) -> None:
    Path("text.gguf").write_text("hello")
    code, out, _ = eva("verify", "one.gguf", "b, two.gguf", "text.gguf")
    assert (code, len(out.splitlines())) == (2, 3)
    assert out.splitlines()[2].startswith(f"text: NOT a GGUF file: {folder / 'text.gguf'}; ")
    assert json.loads(eva("show", "--json", "b, two.gguf")[1])["pivot"] == "b-two"
    code, _, err = eva("show", "one.gguf", "-m", "one.gguf")
    assert (code, err) == (2, "eva-local: show: give a NAME or -e NAME, not both")


def test_one_file_twice_is_two_members_and_that_is_told(eva: Run) -> None:
    code, _, err = eva("run", "-m", "one.gguf", "-m", "./one.gguf", *LITTLE, "-n1", "the")
    assert code == 0
    assert "members one and one-2 are the same model in the same role" in err


@pytest.mark.parametrize("name", ["auto", "off", "ngram"])
def test_a_file_may_have_a_name_that_means_something_else(eva: Run, name: str) -> None:
    Path("one.gguf").rename(f"{name}.gguf")
    facts = json.loads(eva("show", "--json", "-m", f"{name}.gguf")[1])
    assert facts["members"][0]["name"] == f"{name}-2"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (("-m", ""), "command line --ensemble: must be a text that is not empty, not ''"),
        (("-e", ""), "command line --ensemble: must be a text that is not empty, not ''"),
        (("-e", "one.gguf,"), f"command line --ensemble: {KNOWN} ''; a name is empty"),
        (("-m", "one.gguf", "-m", ""), f"command line --ensemble: {KNOWN} ''; a name is empty"),
        (("-m", "no.gguf"), f"command line --ensemble: {KNOWN} 'no.gguf'; no.gguf is no file"),
        (("-m", "."), f"command line --ensemble: {KNOWN} '.'; . is no file"),
        (("-m", "x" * 300), f"command line --ensemble: {KNOWN} '{'x' * 300}'; known are: "),
        (
            ("-m", "~nosuchuser/x"),
            "command line --ensemble: model: ~nosuchuser/x: there is no such home",
        ),
        (("-m", "demo", "-m", "one.gguf"), f"command line --ensemble: {KNOWN} 'demo'; an ensemble"),
        (("-m", "one.gguf", "-e", "demo"), "give the members with -e or with -m, not both"),
        (("-m", "text.gguf"), "/text.gguf: invalid magic characters"),
        (("-m", "empty.gguf"), "/empty.gguf: failed to read magic"),
        (("-m", "torn.gguf"), "/torn.gguf: failed to read key-value pairs"),
    ],
)
def test_what_is_no_member_is_one_line(eva: Run, how: tuple[str, ...], told: str) -> None:
    Path("text.gguf").write_text("hello")
    Path("empty.gguf").touch()
    Path("torn.gguf").write_bytes(Path("one.gguf").read_bytes()[:3000])
    code, out, err = eva("run", *how, "-n", "1", "the")
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_the_prompt(eva: Run) -> None:
    Path("ask.txt").write_bytes(b"\xef\xbb\xbfthe light")
    asked = ("run", "-m", "one.gguf", *LITTLE, "-n", "3", "--seed", "-1")
    assert eva(*asked, "-f", "ask.txt") == eva(*asked, "the light")
    Path("odd.txt").write_bytes(b"\xff")
    for file, told in {
        "odd.txt": "--file: odd.txt: cannot be read: not UTF-8 text",
        "none": "--file: none: cannot be read: No such file or directory",
        ".": "--file: .: cannot be read: Is a directory",
        os.devnull: "the prompt is empty",
    }.items():
        assert eva(*asked, "-f", file) == (2, "", f"eva-local: {told}")
    assert eva(*asked, "-f", "ask.txt", "x")[2] == "eva-local: give PROMPT or --file, not both"


def test_a_file_of_a_model_is_no_prompt(eva: Run) -> None:
    told = "eva-local: one.gguf is a model: give it with -m, and a prompt"
    assert eva("run", "one.gguf") == (2, "", told)


def test_batch_and_eval(eva: Run) -> None:
    Path("in.txt").write_text("the\nlight\n")
    more = (*LITTLE, "--parallel", "2")
    assert eva("batch", "in.txt", "out.jsonl", *BOTH, *more, "-n", "2")[0] == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    code, _, err = eva("batch", "in.txt", "out.jsonl", "-m", "one.gguf", *more, "-n", "2")
    assert code == 2
    assert "out.jsonl was begun otherwise" in err
    Path("rows.jsonl").write_text('{"text": "the light is on"}\n{"text": "a house is red"}\n')
    code, out, _ = eva("eval", "rows.jsonl", *BOTH, *LITTLE)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("one+b-two ")]


def test_chat_goes_on_with_the_same_files_in_any_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def converse(*arguments: str, said: str = ""):
        return CliRunner().invoke(cli.cli, ["chat", *LITTLE, "-n", "2", *arguments], input=said)

    assert converse(*BOTH, said="the\n").exit_code == 0
    monkeypatch.chdir(folder.parent)
    assert converse("--continue", said="light\n").exit_code == 0
    (listed,) = converse("--list").stdout.splitlines()[1:]
    assert f"{folder}/one.gguf,{folder}/b\\, two.gguf  2 " in listed
    (folder / "one.gguf").unlink()
    gone = converse("--continue", said="light\n").exception
    assert isinstance(gone, EvaError)
    assert str(gone).endswith(f"{folder}/one.gguf is no file")
    assert [each.suffix for each in (chat.state_folder() / "chats").iterdir()] == [".jsonl"]


def test_serve_offers_what_is_named_in_either_way(
    monkeypatch: pytest.MonkeyPatch, eva: Run
) -> None:
    offered = []

    class Server:
        def __init__(self, openers, **_):
            offered.extend(opener.args[0].name for opener in openers)

        def stop(self) -> None: ...

        async def serve(self) -> None: ...

    monkeypatch.setattr("eva_local.server.serve.Server", Server)
    assert eva("serve", "-e", "b, two.gguf", *BOTH, "-e", "demo")[0] == 0
    assert offered == ["b-two", "demo", "one+b-two"]
    code, _, err = eva("serve", "-e", "one.gguf", "-m", "one.gguf")
    assert (code, err) == (2, "eva-local: -e names an ensemble twice")
    assert eva("serve", "-m", "")[0] == 2
