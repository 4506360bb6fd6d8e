"""Bits per byte on the real models: a broken member does no harm, and the command's figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from eva_local.alignment.library import find_or_build, mapping_folders
from eva_local.config import load_config, shipped
from eva_local.evaluate.bits import Passage, bits_per_byte, passages
from eva_local.model import LlamaModel, Logits, Run
from eva_local.opening import open_models
from eva_local.prompt import PromptWriter
from eva_local.records import Message
from eva_local.specs import EnsembleSpec

pytestmark = pytest.mark.real

STORY = """The keeper of the lighthouse climbed the stairs every evening before the sun went down.
She filled the lamp with oil, cleaned the glass, and wrote the weather of the day into a large
book that lay on the table. In winter the storms came from the north, and for many days no ship
could be seen. Then she would sit by the window, drink her tea, and listen to the wind."""


@dataclass(frozen=True)
class Nonsense:
    """A model that is as sure as it was, but of other tokens."""

    model: LlamaModel

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        return [None if row is None else row[::-1].copy() for row in self.model.decode(runs)]

    def decode_every(self, run: Run) -> Iterator[Logits]:
        return (block[:, ::-1].copy() for block in self.model.decode_every(run))


@pytest.fixture(scope="module")
def trio() -> Iterator[tuple[EnsembleSpec, dict[str, LlamaModel]]]:
    spec = load_config(shipped("models.toml"), {}).ensemble("trio")
    with open_models(spec) as models:
        yield spec, dict(zip((member.name for member in spec.members), models, strict=True))


@pytest.mark.parametrize("broken", ["votes nonsense", "reads another prompt"])
def test_a_broken_member_costs_less_than_one_percent(trio, broken: str) -> None:
    spec, members = trio
    pivot = members[spec.pivot]
    method = spec.fusion.mapping
    mappings = {
        method: {
            name: find_or_build(method, model, pivot, mapping_folders())
            for name, model in members.items()
        }
    }
    (passage,) = passages([STORY.encode()], members, 40)
    worse = "qwen2.5-coder-0.5b"
    if broken == "votes nonsense":
        members = {**members, worse: Nonsense(members[worse])}
    else:
        wrong = PromptWriter(members[worse]).tokens([Message("user", "xq7; zzkw %% 0f ~~ " * 20)])
        passage = Passage({**passage.prompts, worse: wrong}, passage.text)
    running = replace(spec.fusion, weights="running", filter="off", candidates=0)
    equal = replace(running, weights="equal")
    found = bits_per_byte([passage], members, spec.pivot, [running, equal], mappings)
    best = min(bits[0] for bits in found.alone.values())
    assert found.fused[running][0] < 1.01 * best
    assert found.fused[running][0] < found.fused[equal][0]


def test_the_command(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [STORY[:100], STORY[100:180]]
    texts.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    chosen = ["--method", "surface", "--combine", "mean", "--weights", "2,1", "--filter", "off"]
    command = [sys.executable, "-m", "eva_local", "--config", str(shipped("models.toml")), "eval"]
    asked = [*command, "-e", "prose", "--bits-per-byte", str(texts), *chosen, "--json"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["bytes"] == [100, 80]
    (fused,) = found["fused"]
    assert fused["settings"]["weights"] == [2.0, 1.0]
    assert (fused["settings"]["mapping"], fused["settings"]["combine"]) == ("surface", "mean")
    for figures in (fused, *found["alone"].values()):
        assert sum(figures["bits"]) / 180 == pytest.approx(figures["bits_per_byte"])
        assert 0.3 < figures["bits_per_byte"] < 3
    wrong = subprocess.run(
        [*asked, "--combine", "sum"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "command line --combine: must be" in wrong.stderr
