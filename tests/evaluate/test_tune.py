"""Settings that fit rows: found without models, true with them, and written so that they load."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from evaluations import ensemble, spec
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from eva_local.config.config import load_config
from eva_local.config.specs import FusionSettings
from eva_local.errors import InputError
from eva_local.evaluate.contest import Contest, Heard, recording
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.metrics import metric_of
from eva_local.evaluate.rows import Results, Task, TaskRow
from eva_local.evaluate.tune import Example, Lesson, block, halves, listen, tune
from eva_local.types import Message

fusions = st.builds(
    FusionSettings,
    combine=st.sampled_from(["mean", "geometric"]),
    filter=st.sampled_from(["top-n", "off"]),
    filter_n=st.integers(1, 4),
    weights=st.sampled_from(["equal", "running", "prompt-perplexity", (0.3, 0.7), (1.0, 0.0)]),
    weight_temperature=st.sampled_from([0.05, 0.3]),
    weight_decay=st.sampled_from([0.9, 0.99]),
    gate=st.sampled_from([1.0, 0.9, 0.3]),
    prompt_evidence=st.sampled_from([0, 4]),
)


@given(
    fusion=fusions,
    text=st.text("the unbelivaPrs.,", min_size=1, max_size=15),
    prompt=st.sampled_from(["the end", [Message("user", "the end")]]),
)
@settings(max_examples=60, deadline=None)
def test_a_replay_gives_what_the_engine_gives(fusion, text, prompt) -> None:
    def models() -> list[FakeModel]:
        return [FakeModel(WORDS_A), FakeModel(WORDS_B)]

    heard: list[Heard] = []
    whole = ensemble(models(), recording(fusion))
    whole.score(prompt, text, observe=lambda *told: heard.append(told))
    lesson = Lesson((Example((heard,), 0),), 0, whole.n_symbols, not isinstance(prompt, str))
    expected = ensemble(models(), fusion).score(prompt, text).per_byte
    assert lesson.loss(fusion) == pytest.approx(-expected)


def knowing(words: list[bytes], text: bytes, strength: float) -> FakeModel:
    """A model that goes on with `text` as its own tokeniser cuts it, else says anything."""
    model = FakeModel(words)
    tokens = model.tokenizer.encode(text)

    def logits(before):
        row = model._hashed([0])
        for size in range(min(len(tokens), len(before)), -1, -1):
            if size < len(tokens) and list(before[-size:] if size else []) == tokens[:size]:
                row = row.copy()
                row[tokens[size]] += strength
                return row
        return row

    model._logits = logits
    return model


TEXT, OTHER = "the unbelievable end is there", "a thing that is never asked"


@pytest.fixture
def models(tmp_path, monkeypatch) -> dict[str, FakeModel]:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    return {
        "one": knowing(WORDS_A, TEXT.encode(), 12.0),
        "two": knowing(WORDS_B, OTHER.encode(), 12.0),
    }


TASK = Task("texts", "bpb", tuple(TaskRow(str(i), text=TEXT) for i in range(4)))
PICKS = Task(
    "picks",
    "choice",
    tuple(TaskRow(str(i), prompt="?", choices=(TEXT, OTHER), label=0) for i in range(4)),
)


def test_the_member_that_knows_gets_the_weight(tmp_path, models) -> None:
    own = spec("both", ("one", "two"), weights="equal", filter="off")
    with Results(tmp_path / "r.jsonl") as results:
        contest = Contest(models, results, parallel=2)
        found = tune(contest, [TASK], own)
    weights = found.fusion.weights
    assert weights != "equal"
    if isinstance(weights, tuple):
        assert weights[0] > weights[1]
    lessons = listen(contest, [TASK], own)
    before, after = (lessons[0].loss(each.fusion) for each in (own, found))
    assert after < before


def test_choices_are_listened_to_one_by_one(tmp_path, models) -> None:
    own = spec("both", ("one", "two"), weights="equal", filter="off")
    with Results(tmp_path / "r.jsonl") as results:
        (lesson,) = listen(Contest(models, results, Conditions(chat=True)), [PICKS], own)
    assert [len(example.texts) for example in lesson.examples] == [2] * 4
    alone = lesson.loss(replace(own.fusion, weights=(1.0, 0.0)))
    other = lesson.loss(replace(own.fusion, weights=(0.0, 1.0)))
    assert alone < other
    # With two equal choices the loss would be the log of 2.
    assert alone < np.log(2)


def test_settings_that_are_best_already_stay(tmp_path, models) -> None:
    own = spec("both", ("one", "two"), weights=(1.0, 0.0), filter="off")
    with Results(tmp_path / "r.jsonl") as results:
        found = tune(Contest(models, results, Conditions(chat=True)), [PICKS], own)
    assert found.fusion == own.fusion


def test_halves_are_every_second_row() -> None:
    fit, report = halves([TASK])
    assert [row.name for row in fit[0].rows] == ["0", "2"]
    assert [row.name for row in report[0].rows] == ["1", "3"]
    with pytest.raises(InputError, match="at least 2 rows of texts"):
        halves([replace(TASK, rows=TASK.rows[:1])])


def test_both_halves_count_as_the_whole_does() -> None:
    answers = ("1", "2", "3", "4", "5", "no number", "7", "8", "9", "10")
    rows = tuple(TaskRow(one, prompt="p", answers=(one,)) for one in answers)
    for half in halves([Task("t", "generate", rows)]):
        assert metric_of(half[0]) == metric_of(Task("t", "generate", rows)) == "number"


@given(fusion=fusions)
@settings(max_examples=30, deadline=None)
def test_the_block_loads_as_the_settings_that_were_found(tmp_path_factory, fusion) -> None:
    names = ("qwen2.5-coder-0.5b", "two")
    fit = [Task(name, "bpb", TASK.rows[:2]) for name in ("gsm8k", "nq 🌍")]
    text = block(spec("a.b-tuned", names, **_given(fusion)), fit)
    assert (
        "tuned on 4 rows of gsm8k, nq 🌍"
        in tomllib.loads(text)["ensembles"]["a.b-tuned"]["description"]
    )
    path = tmp_path_factory.mktemp("config") / "models.toml"
    tables = "".join(f'[models."{name}"]\npath = "{name}.gguf"\n' for name in names)
    others = "[defaults]\ngate = 0.5\nsharpness = 1.3\nfilter = 'top-n'\nweight_decay = 0.5\n"
    path.write_text(f"schema = 1\n{others}{tables}{text}", encoding="utf-8")
    loaded = load_config(path, {}).ensemble("a.b-tuned")
    assert loaded.fusion == fusion
    assert loaded.pivot == names[0]


def _given(fusion: FusionSettings) -> dict[str, object]:
    return {name: getattr(fusion, name) for name in FusionSettings.__dataclass_fields__}
