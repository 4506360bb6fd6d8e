"""The commands add, completion, help and version, in folders of a made-up user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from headers import write_gguf, write_other

from eva_local import cli
from eva_local.cli import main
from eva_local.config.config import load_config, user_file
from eva_local.config.specs import PathSource

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty folder, and a user who has configured nothing."""
    for name in list(os.environ):
        if name.startswith("EVA_LOCAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/config"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def eva(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        assert err.count("\n") == len([line for line in err.splitlines() if line])
        return code, out, err

    return run


def known() -> dict[str, Path]:
    """Return the files that are configured, by the names of their models."""
    models = load_config().models
    return {
        name: each.source.path for name, each in models.items() if type(each.source) is PathSource
    }


def refused(told: tuple[int, str, str]) -> str:
    """Return the one line of what was refused."""
    code, out, err = told
    assert (code, out) == (2, "")
    assert err.startswith("eva-local: ")
    assert err.count("\n") == 1
    return err.removeprefix("eva-local: ").rstrip()


def test_add_makes_models_and_an_ensemble_of_files(eva: Run, folder: Path) -> None:
    for name in ("one.gguf", "sub/b, two.Q4_K_M.gguf"):
        Path(name).parent.mkdir(exist_ok=True)
        write_gguf(folder / name)
    code, out, err = eva("add", "one.gguf", "sub", "-e", "duo")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "one: added: one.gguf",
        "b-two.Q4_K_M: added: sub/b, two.Q4_K_M.gguf",
        f"{user_file()}; try: eva-local run -e duo 'Hello'",
    ]
    config = load_config()
    assert known() == {
        "one": folder / "one.gguf",
        "b-two.Q4_K_M": folder / "sub/b, two.Q4_K_M.gguf",
    }
    assert (config.default_ensemble, config.ensemble().pivot) == ("duo", "one")
    assert [each.name for each in config.members("duo")] == ["one", "b-two.Q4_K_M"]
    # A further call adds to what is there, under a name that is free.
    (folder / "more").mkdir()
    write_gguf(folder / "more/one.gguf")
    assert eva("add", "more/one.gguf")[1].splitlines()[0] == "one-2: added: more/one.gguf"
    assert list(known()) == ["one", "b-two.Q4_K_M", "one-2"]


def test_add_knows_a_file_again(eva: Run, folder: Path) -> None:
    write_gguf(folder / "one.gguf")
    (folder / "link.gguf").symlink_to("one.gguf")
    code, out, _ = eva("add", "one.gguf", "one.gguf", "./link.gguf", "-e", "e")
    assert code == 0
    assert [line.split(": ")[:2] for line in out.splitlines()[:3]] == [
        ["one", "added"],
        ["one", "known already"],
        ["one", "known already"],
    ]
    assert [each.name for each in load_config().members("e")] == ["one"]
    before = user_file().read_bytes()
    assert eva("add", "link.gguf")[:2] == (
        0,
        f"one: known already: link.gguf\n{user_file()}; try: eva-local run -e one 'Hello'\n",
    )
    assert user_file().read_bytes() == before


def test_add_takes_the_first_of_several_files(eva: Run, folder: Path) -> None:
    names = [f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    write_gguf(folder / names[1])
    assert names[0] in refused(eva("add", names[1]))
    write_gguf(folder / names[0])
    for given in (names[::-1], ["."]):
        code, out, _ = eva("add", *given)
        assert (code, len(out.splitlines())) == (0, 2 if given == ["."] else 3)
    assert known() == {"m": folder / names[0]}


@pytest.mark.parametrize("name", ["auto", "demo", "smollm2-135m", "ngram"])
def test_add_gives_no_name_that_means_something_else(eva: Run, folder: Path, name: str) -> None:
    write_gguf(folder / f"{name}.gguf")
    assert eva("add", ".")[1].startswith(f"{name}-2: added: ")


@pytest.mark.parametrize(
    "name",
    ["a, b.gguf", 'it"s.gguf', "new\nline.gguf", "back\\slash.gguf", "del\x7f.gguf", "ü☃.gguf"],
)
def test_add_takes_any_name_that_is_text(eva: Run, folder: Path, name: str) -> None:
    write_gguf(folder / name)
    code, out, _ = eva("add", name)
    assert (code, len(out.splitlines())) == (0, 2)
    assert list(known().values()) == [folder / name]


def test_add_refuses_what_holds_no_model_and_writes_nothing(eva: Run, folder: Path) -> None:
    write_gguf(folder / "good.gguf")
    Path("text.gguf").write_text("hello")
    Path("empty.gguf").touch()
    Path("torn.gguf").write_bytes(Path("good.gguf").read_bytes()[:100])
    Path("broken.gguf").symlink_to("nowhere")
    Path("dir.gguf").mkdir()
    os.mkfifo("pipe.gguf")
    odd = os.fsdecode(b"lat\xe9.gguf")
    write_gguf(folder / odd)
    write_other(folder / "eye.gguf", "clip", {"general.type": "mmproj"})
    wrong = {
        "text.gguf": "text.gguf: not a GGUF file, or a damaged one (it does not begin with GGUF)",
        "empty.gguf": "empty.gguf: not a GGUF file, or a damaged one (",
        "torn.gguf": "torn.gguf: not a GGUF file, or a damaged one (",
        "eye.gguf": "eye.gguf: the part of a model that sees or hears; ",
        odd: "lat?.gguf: its path is no UTF-8 text, which models.toml needs; rename it",
        "pipe.gguf": "pipe.gguf: is no file",
        "broken.gguf": "Invalid value for 'FILES...': Path 'broken.gguf' does not exist; see: ",
        "dir.gguf": "there is no GGUF file in dir.gguf",
        "none": "Invalid value for 'FILES...': Path 'none' does not exist; see: ",
        "": "Invalid value for 'FILES...': Path '' does not exist; see: ",
    }
    for name, told in wrong.items():
        given = [name] if name == "dir.gguf" else ["good.gguf", name]
        assert refused(eva("add", *given)).startswith(told)
        assert not user_file().exists()
    # Of a folder, what is wrong is told and left out.
    code, out, err = eva("add", ".")
    assert (code, out.splitlines()[0]) == (0, "good: added: good.gguf")
    assert len(err.splitlines()) == 7
    assert all(" is left out: " in line for line in err.splitlines())
    assert list(known()) == ["good"]


@pytest.mark.parametrize("name", ["my ens", "demo", "auto", "a/b", "", "smollm2-135m", "one"])
def test_add_refuses_a_name_that_is_none_or_taken(eva: Run, folder: Path, name: str) -> None:
    write_gguf(folder / "one.gguf")
    if name == "one":
        eva("add", "one.gguf")
    told = f"--ensemble {name!r}: give a name that is not taken, of letters, digits"
    assert refused(eva("add", "one.gguf", "-e", name)).startswith(told)
    assert user_file().exists() == (name == "one")


@pytest.mark.parametrize(
    "text",
    [
        b'\xef\xbb\xbfschema = 1\r\n[models.z]\r\npath = "z.gguf"\r\n# mine\r\n',
        b'[models]\nz = {path = "z.gguf"} # no line end',
        b'models.z.path = "z.gguf"\n\n\n',
    ],
)
def test_add_leaves_what_the_file_says_as_it_is(eva: Run, folder: Path, text: bytes) -> None:
    write_gguf(folder / "one.gguf")
    file = folder / "real.toml"
    file.write_bytes(text)
    file.chmod(0o600)
    user_file().parent.mkdir(parents=True)
    user_file().symlink_to(file)
    assert eva("add", "one.gguf")[0] == 0
    assert user_file().is_symlink()
    assert file.read_bytes().startswith(text)
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(known()) == {"one", "z"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"broken = ", "not valid TOML: "),
        (b"\xff", "not UTF-8 text: "),
        (b'models = {z = {path = "z.gguf"}}\n', "not valid TOML with a table behind it: "),
        (b"schema = 2", "schema: must be 1"),
        (b"[other]\nx = 1", "other: unknown key; "),
    ],
)
def test_add_leaves_a_file_alone_that_it_cannot_add_to(
    eva: Run, folder: Path, text: bytes, told: str
) -> None:
    write_gguf(folder / "one.gguf")
    user_file().parent.mkdir(parents=True)
    user_file().write_bytes(text)
    assert refused(eva("add", "one.gguf")).startswith(f"{user_file()}: {told}")
    assert user_file().read_bytes() == text


def test_add_where_nothing_can_be_written(eva: Run, folder: Path) -> None:
    write_gguf(folder / "one.gguf")
    user_file().parent.mkdir(parents=True)
    user_file().mkdir()
    assert refused(eva("add", "one.gguf")) == f"{user_file()}: cannot be read: Is a directory"
    user_file().rmdir()
    user_file().symlink_to(user_file().name)
    told = f"{user_file()}: cannot be written: Too many levels of symbolic links"
    assert refused(eva("add", "one.gguf")) == told
    user_file().unlink()
    user_file().parent.rmdir()
    user_file().parent.write_text("a file")
    assert refused(eva("add", "one.gguf")).startswith(f"{user_file()}: cannot be written: ")
    if os.getuid():
        user_file().parent.unlink()
        user_file().parent.mkdir()
        user_file().touch(mode=0o400)
        assert refused(eva("add", "one.gguf")).endswith("cannot be written: Permission denied")


def test_add_to_a_file_that_is_named(
    eva: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(folder / "one.gguf")
    for name, path in (("new/x.toml", Path("new/x.toml")), ("~/y.toml", Path.home() / "y.toml")):
        Path.home().mkdir(exist_ok=True)
        code, out, _ = eva("--config", name, "add", "one.gguf")
        assert code == 0
        assert out.endswith(f"{path}; try: eva-local --config {path} run -e one 'Hello'\n")
        assert "one" in load_config(path).models
    monkeypatch.setenv("EVA_LOCAL_CONFIG", "z.toml")
    assert refused(eva("add", "one.gguf")).startswith("z.toml: cannot be read: ")
    Path("z.toml").touch()
    for told in ("added", "known already"):
        assert eva("add", "one.gguf")[1].startswith(
            f"one: {told}: one.gguf\nz.toml; try: eva-local run "
        )
    assert list(known()) == ["one"]
    assert not user_file().exists()
    assert refused(eva("--config", ".", "add", "one.gguf")) == ".: cannot be read: Is a directory"


def test_an_ensemble_of_the_user_names_no_model_of_one_folder(eva: Run, folder: Path) -> None:
    """Else no command would run in any other folder."""
    write_gguf(folder / "one.gguf")
    Path("models.toml").write_text('[models.here]\npath = "one.gguf"\n')
    assert eva("add", "one.gguf", "-e", "mine")[0] == 0
    os.chdir(folder.parent)
    assert [each.name for each in load_config().members("mine")] == ["one"]


COMPLETE = """
compopt() { echo files; }
source <(eva-local completion bash)
COMP_WORDS=(eva-local "$@")
COMP_CWORD=$#
_eva_local_completion eva-local
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_completion_in_bash(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin/eva-local"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m eva_local "$@"\n')
    program.chmod(0o755)
    root = str(Path(cli.__file__).parents[2])
    (folder / "models.toml").write_text("[theirs]\n")
    (folder / "other.toml").write_text('[models.zz]\npath = "zz.gguf"\n')

    def completed(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", COMPLETE, "bash", *words],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "PYTHONPATH": root,
                "PATH": f"{program.parent}:{os.environ['PATH']}",
            },
        )
        # Whatever is wrong, nothing is written into the line that is typed.
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("ver") == ["verify"]
    assert completed("run", "-e", "tri") == ["trio", "trio-1b", "trio-8b", "trio-12b"]
    assert completed("show", "smol") == ["smollm2-135m"]
    assert completed("--config", "other.toml", "run", "-m", "z") == ["zz"]
    for words in (("run", "-m", "./a"), ("add", "a"), ("batch", "a"), ("run", "-f", "a")):
        assert completed(*words) == ["files"]
    (folder / "models.toml").write_text("x = = 1")
    assert completed("run", "-e", "tri") == ["files"]


def test_completion_for_each_shell(eva: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, word in (("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no-")):
        monkeypatch.setenv("SHELL", f"/bin/{shell}")
        assert eva("completion") == eva("completion", shell)
        assert word in eva("completion")[1]
    for unknown in ("", "/bin/tcsh"):
        monkeypatch.setenv("SHELL", unknown)
        assert refused(eva("completion")) == "name the shell: bash, zsh, fish"
    assert refused(eva("completion", "csh")).startswith("Invalid value for '[bash|zsh|fish]': ")


def test_help_and_version_are_commands_too(eva: Run) -> None:
    Path("models.toml").write_text("broken = ")
    assert eva("help") == eva("--help")
    for command in cli.cli.commands.values():
        assert eva("help", str(command.name)) == eva(str(command.name), "--help")
    assert eva("version") == eva("--version")
    assert refused(eva("help", "frob")) == "No such command 'frob'; see: eva-local --help"
