"""The examples of docs/python.md, run in one process; every public name has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eva_local
from eva_local.config.config import shipped

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.real
def test_the_examples_run(monkeypatch, capsys) -> None:
    monkeypatch.setenv("EVA_LOCAL_CONFIG", str(shipped("models.toml")))
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        # A trace names the example and its line.
        exec(compile(block, f"<example {number} of {PAGE.name}>", "exec"), names)  # noqa: S102
    assert "too slow" in capsys.readouterr().out


def test_every_public_name_has_an_example() -> None:
    code = "\n".join(BLOCKS)
    methods = [name for name in vars(eva_local.Ensemble) if not name.startswith("_")]
    assert {"stream", "astream", "score", "tokenize"} <= set(methods)
    missing = [name for name in methods if not re.search(rf"\beva\.{name}\b", code)]
    assert not missing
    # Steps, completions and ensembles are not made by hand: what they hold is shown.
    by_hand = set(eva_local.__all__) - {"Step", "Completion", "Ensemble"}
    assert all(re.search(rf"\b{name}\b", code) for name in by_hand)
    assert "step.text" in code
    assert "answer.finish_reason" in code
