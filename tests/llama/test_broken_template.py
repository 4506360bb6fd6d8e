"""A model whose chat template is broken: what each face says, and what needs no template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from batches import do, errand, fake_ensemble, fake_spec, results
from fakes import FakeModel
from servers import serving

from tools.tiny_gguf import write_tiny_gguf

BROKEN = [("{% if %}", "cannot be read"), ("{{ 1 / 0 }}", "failed: ZeroDivisionError")]
broken = pytest.mark.parametrize(("template", "problem"), BROKEN)


@broken
def test_run_names_the_model_and_goes_on_with_plain_text(tmp_path, template, problem) -> None:
    write_tiny_gguf(tmp_path / "x.gguf", n_layers=1, chat_template=template)
    config = tmp_path / "models.toml"
    config.write_text(f'schema = 1\n[models.tiny]\npath = "{tmp_path}/x.gguf"\n')

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "eva_local", "--config", str(config), "run", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "EVA_LOCAL_CACHE": str(tmp_path / "cache")},
            cwd=Path(__file__).parents[2],
            check=False,
        )

    done = run("-e", "tiny", "-n", "2", "the")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"tiny: its chat template {problem}" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("-e", "tiny", "-n", "2", "--raw", "the").returncode == 0


@broken
def test_a_batch_has_a_row_that_says_so(tmp_path, monkeypatch, template, problem) -> None:
    monkeypatch.setattr(FakeModel, "chat_template", template)
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "prompt": "the"}) + "\n" for n in "xy"))
    spec = fake_spec(tmp_path)
    assert do(errand(rows, out, spec)).n_failed == 2
    for row in results(out):
        assert f"a: its chat template {problem}" in json.dumps(row["error"])
    raw = tmp_path / "raw.jsonl"
    assert do(errand(rows, raw, spec, wishes={"raw": True})).n_failed == 0


@broken
def test_a_server_refuses_conversations_and_does_the_rest(
    tmp_path, monkeypatch, template, problem
) -> None:
    monkeypatch.setattr(FakeModel, "chat_template", template)
    spec = fake_spec(tmp_path)
    with serving(lambda: fake_ensemble(spec)) as client:
        for stream in (False, True):
            reply = client.chat("the", stream=stream, max_tokens=2)
            assert reply.status == 400
            assert f"a: its chat template {problem}" in reply.problem
        assert client.complete("the", max_tokens=2).status == 200
