"""One answer on standard output, from an ensemble that says what it is told to."""

from __future__ import annotations

import json

from eva_local.cli.answer import answer
from eva_local.records import Sampling, Step
from eva_local.text import harmless

EVIL = "caf\u00e9 \x1b[2J\x9b2J\x9d0;mine\x9c\u202e"


class Ensemble:
    """An ensemble of one answer."""

    def stream(self, *_, **__):
        yield Step(b"x", EVIL, 0.5, (True,), "stop")


def test_json_is_one_line_that_is_harmless_to_print(capsys) -> None:
    assert answer(Ensemble(), "a", Sampling(), as_json=True) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": EVIL, "finish_reason": "stop", "usage": None}
    assert harmless(out) == out
    assert len(out.splitlines()) == 1
    assert "caf\u00e9" in out
