"""One answer on standard output, from an ensemble that says what it is told to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from eva_local import cli
from eva_local.cli.run import answer
from eva_local.engine.detokenizer import harmless
from eva_local.types import Sampling, Step

EVIL = "caf\u00e9 \x1b[2J\x9b2J\x9d0;mine\x9c\u202e"


class Ensemble:
    """An ensemble of one answer."""

    def stream(self, *asked, **__):
        self.asked = asked
        yield Step(b"x", EVIL, 0.5, (True,), "stop")


def test_json_is_one_line_that_is_harmless_to_print(capsys) -> None:
    assert answer(Ensemble(), "a", Sampling(), as_json=True) == 0
    out = capsys.readouterr().out
    told = {"text": EVIL, "reasoning": "", "finish_reason": "stop", "usage": None}
    assert json.loads(out) == told
    assert harmless(out) == out
    assert len(out.splitlines()) == 1
    assert "caf\u00e9" in out


@pytest.mark.parametrize(
    ("options", "piped", "prompt"),
    [
        (["--raw", "\ufeffWhy?"], b"", "Why?"),
        (["--raw"], b"\xef\xbb\xbfWhy?", "Why?"),
        (["--raw", "Translate:"], b"\xef\xbb\xbfWhy\xef\xbb\xbf?", "Translate:\n\nWhy\ufeff?"),
        (["--system", "\ufeffShort.", "Why?"], b"", [("system", "Short."), ("user", "Why?")]),
    ],
)
def test_a_byte_order_mark_does_not_go_into_the_prompt(
    monkeypatch, models: Path, options, piped: bytes, prompt
) -> None:
    ensemble = Ensemble()
    monkeypatch.setattr("eva_local.cli.run.open_shown", lambda _: contextlib.nullcontext(ensemble))
    command = ["--config", str(models / "models.toml"), "run", "-e", "pair", *options]
    done = CliRunner().invoke(cli.cli, command, input=piped)
    assert done.exit_code == 0
    asked, _ = ensemble.asked
    said = asked if isinstance(asked, str) else [(each.role, each.content) for each in asked]
    assert said == prompt
