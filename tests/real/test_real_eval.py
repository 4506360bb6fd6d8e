"""The task evaluation on the real demo models: a few short rows, from the command line too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eva_local.api import Ensemble
from eva_local.config.config import shipped
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.evaluate.rows import BUILT_IN
from eva_local.llama.model import ALL, Run, decode_every
from eva_local.llama.prompt import PromptWriter
from eva_local.opening import ensemble_of, open_models

pytestmark = pytest.mark.real

COMMAND = [sys.executable, "-m", "eva_local", "--config", str(shipped("models.toml")), "eval"]
ROWS = {
    "capitals": [
        {
            "id": land,
            "prompt": f"Question: What is the capital of {land}?\nAnswer:",
            "choices": ["Madrid", "Paris", "Rome"],
            "label": place,
        }
        for place, land in enumerate(("Spain", "France", "Italy"))
    ],
    "sums": [
        {"prompt": f"Question: What is {n} plus {n}?\nAnswer:", "answers": [str(2 * n)]}
        for n in (1, 2, 5)
    ],
    "texts": [{"text": "The capital of France is Paris, and that of Italy is Rome."}],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rows")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / f"{name}.jsonl" for name in ROWS]


def evaluated(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_true_capital_is_the_likelier_one(demo: Ensemble) -> None:
    prompt = "The capital of France is"
    right, wrong = demo.score(prompt, " Paris"), demo.score(prompt, " Madrid")
    assert right.per_byte > wrong.per_byte
    again = demo.score(prompt, " Paris")
    assert again.log_likelihood == pytest.approx(right.log_likelihood, abs=1e-3)


def test_a_member_alone_scores_as_its_logits_say(demo: Ensemble) -> None:
    """A loop over llama.cpp's logits: every token of the text, among those that stand for text."""
    text, member = ROWS["texts"][0]["text"], demo.spec.members[-1]
    spec = EnsembleSpec(member.name, (member,), member.name, FusionSettings(candidates=0))
    with open_models(spec) as (model,):
        found = ensemble_of(spec, [model]).score("", text)
        model.remove(ALL, 0)
        prompt, tokens = PromptWriter(model).read("")[0], model.tokenizer.encode(text.encode())
        blocks = list(decode_every(model, Run(0, 0, [*prompt, *tokens[:-1]])))
        logits = np.concatenate(blocks)[len(prompt) - 1 :].astype(np.float64)
        said = model.vocabulary.speakable.copy()
        said[list(model.vocabulary.end_ids)] = True
    expected = logits[np.arange(len(tokens)), tokens] - np.logaddexp.reduce(logits[:, said], axis=1)
    assert found.log_likelihood == pytest.approx(expected.sum(), rel=1e-3)


def test_tasks_from_the_command_line(files, tmp_path) -> None:
    kept, out, page = (tmp_path / name for name in ("kept.jsonl", "out.json", "page.html"))
    options = ("-e", "demo", "--max-tokens", 6, "--results", kept, "--json", out, "--html", page)
    done = evaluated(*files, *options)
    assert done.returncode == 0, done.stderr
    assert "best of members" in done.stdout
    data = json.loads(out.read_text())
    assert [one["kind"] for one in data["tasks"]] == ["choice", "generate", "bpb"]
    scores = {one["name"]: one["score"]["value"] for one in data["tasks"][0]["standings"]}
    assert list(scores) == ["qwen2.5-coder-0.5b", "smollm2-135m", "demo"]
    assert scores["demo"] > 60
    assert page.read_text().count("<svg") >= 6
    lines = kept.read_text().splitlines()
    assert len(lines) == 3 * 7
    again = evaluated(*files, *options)
    assert again.stdout == done.stdout
    assert kept.read_text().splitlines() == lines


def test_tuned_settings_are_a_block_that_runs(files, tmp_path) -> None:
    kept = tmp_path / "kept.jsonl"
    few = evaluated(files[0], "-e", "demo", "--tune", "--results", kept)
    assert "--tune needs 20 rows, better 200, and there are fewer: nothing is tuned" in few.stderr
    assert "demo-tuned" not in few.stdout
    rows = [BUILT_IN[0], "--limit", 20]
    done = evaluated(*rows, "-e", "demo", "--tune", "--results", kept)
    assert done.returncode == 0, done.stderr
    block = done.stdout[done.stdout.index('[ensembles."demo-tuned"]') :]
    config = tmp_path / "models.toml"
    config.write_text(shipped("models.toml").read_text() + "\n" + block)
    shown = subprocess.run(
        [*COMMAND[:3], "--config", str(config), "show", "-e", "demo-tuned"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
