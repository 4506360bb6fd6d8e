"""What is not as it was asked for, or can hardly be meant, is said once: where anybody looks."""

import io
import json
import logging
import shutil
from pathlib import Path

import pytest
from model_sources import sha256

from eva_local.cli import main
from eva_local.config.config import load_config
from eva_local.opening import load, open_ensemble
from eva_local.types import Message, Sampling
from tools.tiny_gguf import write_tiny_gguf

LONG = "one: n_ctx is 256, not 100000: the model was trained for no longer texts"
PLAIN = "{} has no chat template: it is given conversations as a plain dialogue (User: … "
CONVERSATION = [Message("user", "the light")]
SHORT = Sampling(max_tokens=1)


@pytest.fixture
def folder(tmp_path, models) -> Path:
    """A folder with the same model under several names, and with a chat template."""
    shutil.copy(models / "one.gguf", tmp_path / "copy.gguf")
    (tmp_path / "link.gguf").symlink_to(models / "one.gguf")
    write_tiny_gguf(
        tmp_path / "taught.gguf",
        n_layers=1,
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    known = sha256((models / "one.gguf").read_bytes())
    (tmp_path / "models.toml").write_text(
        f"""
        schema = 1
        [defaults]
        n_ctx = 128
        [models.one]
        path = "{models}/one.gguf"
        sha256 = "{known}"
        [models.two]
        path = "{models}/two.gguf"
        [models.again]
        path = "{models}/one.gguf"
        [models.link]
        path = "link.gguf"
        [models.copy]
        path = "copy.gguf"
        sha256 = "{known}"
        [models.taught]
        path = "taught.gguf"
        [ensembles.pair]
        members = ["one", "two"]
        [ensembles.twice]
        members = ["one", "one"]
        [ensembles.renamed]
        members = ["one", "again"]
        [ensembles.linked]
        members = ["two", "one", "link"]
        [ensembles.copied]
        members = ["one", "copy"]
        [ensembles.mixed]
        members = ["taught", "two"]
        """
    )
    return tmp_path


def opened(folder: Path, name: str, caplog: pytest.LogCaptureFixture, **settings: object) -> list:
    """Return what is said when an ensemble is opened."""
    caplog.clear()
    load(name, config=folder / "models.toml", **settings).close()
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_context_that_is_cut_names_the_member_and_both_numbers(folder, caplog) -> None:
    two = LONG.replace("one", "two")
    assert opened(folder, "pair", caplog, n_ctx=100_000) == [("WARNING", LONG), ("WARNING", two)]
    assert opened(folder, "pair", caplog, n_ctx=256) == []
    assert opened(folder, "pair", caplog) == []


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("twice", "one", "one-2"),
        ("renamed", "one", "again"),
        ("linked", "one", "link"),
        ("copied", "one", "copy"),
    ],
)
def test_members_that_are_one_model_are_named(folder, caplog, name, one, other) -> None:
    (said,) = opened(folder, name, caplog)
    assert said[1] == (
        f"{name}: members {one} and {other} are the same model in the same role, which has two "
        "votes"
    )


def test_a_member_without_a_chat_template_is_named_at_the_first_conversation(
    folder, caplog
) -> None:
    spec = load_config(folder / "models.toml", {}).ensemble("mixed")
    with open_ensemble(spec) as ensemble:
        ensemble.complete("the light", SHORT)
        ensemble.score("the", " light")
        ensemble.complete(CONVERSATION, SHORT, alone="taught")
        assert not caplog.records
        for _ in range(2):
            ensemble.complete(CONVERSATION, SHORT)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(PLAIN.format("two"))
    caplog.clear()
    with open_ensemble(spec) as ensemble:
        ensemble.complete(CONVERSATION, Sampling(max_tokens=1, thinking="apart"))
    assert [record.getMessage()[:20] for record in caplog.records] == [PLAIN.format("two")[:20]]


def test_the_command_line_says_each_once(folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("EVA_LOCAL_N_CTX", "100000")
    command = ["--config", str(folder / "models.toml")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    code = main([*command, "run", "-e", "twice", "-n", "1", "the light"])
    err = capsys.readouterr().err
    assert code == 0, err
    for said in (LONG, "twice: members one and one-2 are", PLAIN.format("one")):
        assert err.count(f"eva-local: WARNING: {said}") == 1
    log = logging.getLogger("eva_local")
    for _ in range(3):
        log.warning("the same for every row")
    log.warning("the same for every %s", "prompt")
    assert capsys.readouterr().err.splitlines() == [
        "eva-local: WARNING: the same for every row",
        "eva-local: WARNING: the same for every prompt",
    ]


def test_show_and_config_tell_the_context_that_is_used(folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("EVA_LOCAL_N_CTX", "100000")
    command = ["--config", str(folder / "models.toml")]
    assert main([*command, "show", "pair", "--json"]) == 0
    members = json.loads(capsys.readouterr().out)["members"]
    assert [member["load"]["n_ctx"] for member in members] == [256, 256]
    assert main([*command, "show", "one"]) == 0
    assert "100000" not in capsys.readouterr().out
    assert main([*command, "config", "-e", "one"]) == 0
    assert LONG in capsys.readouterr().out.splitlines()
    assert main([*command, "config", "--json", "-e", "pair"]) == 0
    told = json.loads(capsys.readouterr().out)["settings"]["n_ctx"]
    assert told["members"] == {"one": 256, "two": 256}
    # What is not here, or cannot be read, is not known.
    (folder / "taught.gguf").write_bytes(b"GGUF")
    assert main([*command, "config", "--json", "-e", "mixed"]) == 0
    told = json.loads(capsys.readouterr().out)["settings"]["n_ctx"]
    assert told["members"] == {"two": 256}
