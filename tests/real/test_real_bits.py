"""Bits per byte on the real models: a broken member does no harm, and the command's figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from evaluations import alone

from eva_local.config.config import load_config, shipped
from eva_local.config.specs import EnsembleSpec
from eva_local.evaluate.contest import Contest
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import Results, Task, TaskRow
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Logits, Run
from eva_local.llama.prompt import PromptWriter
from eva_local.opening import open_models
from eva_local.types import Message

pytestmark = pytest.mark.real

STORY = """The keeper of the lighthouse climbed the stairs every evening before the sun went down.
She filled the lamp with oil, cleaned the glass, and wrote the weather of the day into a large
book that lay on the table. In winter the storms came from the north, and for many days no ship
could be seen. Then she would sit by the window, drink her tea, and listen to the wind."""
# Bytes of it that are a prompt: it ends with a word.
PROMPT = 36
WORSE = "qwen2.5-coder-0.5b"


@dataclass(frozen=True)
class Nonsense:
    """A model that is as sure as it was, but of other tokens."""

    model: LlamaModel

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        return [None if row is None else row[..., ::-1].copy() for row in self.model.decode(runs)]


@dataclass(frozen=True, eq=False)
class Misled:
    """A model that reads other tokens in place of its prompt."""

    model: LlamaModel
    prompt: Sequence[int]

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        return self.model.decode([self._misread(run) for run in runs])

    def _misread(self, run: Run) -> Run:
        wrong = self.prompt[run.start : run.start + len(run.tokens)]
        return replace(run, tokens=[*wrong, *run.tokens[len(wrong) :]])


def misled(model: LlamaModel) -> Misled:
    """Let a conversation about garbage, in its template, end where the prompt should."""
    writer = PromptWriter(model)
    wrong = writer.read([Message("user", "xq7; zzkw %% 0f ~~ " * 20)])[0]
    return Misled(model, wrong[-len(writer.read(STORY[:PROMPT])[0]) :])


@pytest.fixture(scope="module")
def trio() -> Iterator[tuple[EnsembleSpec, dict[str, LlamaModel]]]:
    spec = load_config(shipped("models.toml"), {}).ensemble("trio")
    with open_models(spec, bytewise=spec.fusion.space == "bytes") as models:
        yield spec, dict(zip((member.name for member in spec.members), models, strict=True))


@pytest.mark.parametrize("broken", [Nonsense, misled])
def test_a_broken_member_costs_less_than_one_percent(trio, tmp_path, broken) -> None:
    spec, models = trio
    models = {**models, WORSE: broken(models[WORSE])}
    running = replace(spec.fusion, weights="running", filter="off")
    rules = {"running": running, "equal": replace(running, weights="equal")}
    contestants = [
        *map(alone, spec.members),
        *(replace(spec, name=name, fusion=fusion) for name, fusion in rules.items()),
    ]
    task = Task("story", "bpb", (TaskRow("story", text=STORY),))
    with Results(tmp_path / "results.jsonl") as results:
        contest = Contest(models, results, Conditions(prompt_bytes=PROMPT))
        entries = contest.run([task], contestants)
    cost = {one.spec.name: -one.results[0].log_likelihoods[0] for one in entries}
    best = min(cost[member.name] for member in spec.members)
    assert cost["running"] < 1.01 * best
    assert cost["running"] < cost["equal"]


def test_the_command(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [STORY[:100], STORY[100:180]]
    texts.write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    command = [sys.executable, "-m", "eva_local", "--config", str(shipped("models.toml")), "eval"]
    chosen = ["--mapping", "surface", "--combine", "mean", "--weights", "2,1", "--filter", "off"]
    kept = ["--results", str(tmp_path / "kept.jsonl"), "--json"]
    asked = [*command, str(texts), "-e", "prose", "--task", "bpb", *chosen, *kept]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    fused = found["contestants"][-1]
    assert fused["settings"]["weights"] == [2.0, 1.0]
    assert (fused["settings"]["mapping"], fused["settings"]["combine"]) == ("surface", "mean")
    (task,) = found["tasks"]
    assert len(task["standings"]) == 3
    for standing in task["standings"]:
        first, second = (row[standing["name"]]["value"] for row in task["answers"])
        score = standing["score"]["value"]
        assert (100 * first + 80 * second) / 180 == pytest.approx(score)
        assert 0.3 < score < 3
    wrong = subprocess.run(
        [*asked, "--combine", "sum"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "command line --combine: must be" in wrong.stderr
