"""Law 11 on real models, at a few prompts; `python -m tools.lookahead_law` takes sixty."""

import pytest

from eva_local.engine import engine
from tools import lookahead_law

pytestmark = pytest.mark.real


def test_law_11_on_real_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "LookAhead", engine.LookAhead)
    # A batch of several tokens may round otherwise than one: a near-tie may turn, and no more.
    assert lookahead_law.main("prose", "1", "6") <= 2
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 16
    assert sum(int(row.split(", ")[-1].split()[0]) for row in rows) > 16
