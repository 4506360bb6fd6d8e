"""Bits per byte of texts: by hand, against the engine's steps, and under many settings at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from evaluations import alone, by_hand, spec
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.alignment.library import find_or_build, mapping_folders
from eva_local.config.specs import FusionSettings
from eva_local.errors import InputError
from eva_local.evaluate.contest import Contest, Entry
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import Results, Task, TaskRow, cut, pieces, read_tasks
from eva_local.evaluate.summary import summarize
from eva_local.fusion.votes import Fuser
from eva_local.llama.model import Logits, decode_every
from eva_local.llama.prompt import PromptWriter
from eva_local.spaces.base import Beginning
from eva_local.spaces.pivot import PivotSpace

TEXT = "the unbelievable Paris is the end"
SETTINGS = [
    FusionSettings(mapping=mapping, combine=how, weights=weights, filter=filtering, filter_n=n)
    for mapping, how, weights, (filtering, n) in product(
        ("surface", "surface-refined"),
        ("mean", "geometric"),
        ("equal", (3.0, 0.0, 1.0), "running", "prompt-perplexity"),
        (("off", 3), ("top-n", 1), ("top-n", 40)),
    )
]


def texts(*given: str) -> Task:
    return Task("texts", "bpb", tuple(TaskRow(str(i), text=text) for i, text in enumerate(given)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def measured(
    folder: Path,
    task: Task,
    models: Mapping[str, FakeModel],
    settings: Sequence[FusionSettings] = (),
    prompt_bytes: int = 0,
) -> dict[str | FusionSettings, Entry]:
    """What each member alone, and all under each setting, made of texts; the first is the pivot."""
    whole = spec("all", tuple(models))
    them = {one.name: alone(one) for one in whole.members}
    them |= {one: replace(whole, name=repr(one), fusion=one) for one in settings}
    with Results(folder / "results.jsonl") as results:
        contest = Contest(models, results, Conditions(prompt_bytes=prompt_bytes), parallel=2)
        entries = contest.run([contest.scorable(task)], list(them.values()))
    return dict(zip(them, entries, strict=True))


def bits(entry: Entry) -> list[float]:
    return [-result.log_likelihoods[0] / math.log(2) for result in entry.results]


def uniform(words: list[bytes]) -> FakeModel:
    model = FakeModel(words)
    model._logits = lambda _: np.zeros(len(model.vocabulary), dtype=np.float32)
    return model


def test_a_member_alone_by_hand(folder) -> None:
    model = uniform(WORDS_A)
    entry = measured(folder, texts(TEXT, "a"), {"m": model})["m"]
    tokens = len(model.tokenizer.encode(TEXT.encode()))
    each = math.log2(sum(model.vocabulary.speakable) + len(model.vocabulary.end_ids))
    assert bits(entry) == pytest.approx([tokens * each, each])
    assert [result.n_bytes for result in entry.results] == [(len(TEXT),), (1,)]
    score = summarize([entry]).standings[0].score.value
    assert score == pytest.approx((tokens + 1) * each / (len(TEXT) + 1))


def test_a_prompt_is_read_but_not_measured(folder) -> None:
    model = FakeModel()
    entry = measured(folder, texts(TEXT, "the"), {"m": model}, prompt_bytes=8)["m"]
    assert bits(entry) == pytest.approx([-by_hand(model, "the", TEXT[3:]) / math.log(2)])
    assert entry.results[0].n_bytes == (len(TEXT) - 3,)
    with pytest.raises(InputError, match="texts: no text is longer than its prompt"):
        measured(folder, texts("the"), {"m": model}, prompt_bytes=8)


def test_each_part_of_a_long_text_has_its_own_prompt(folder) -> None:
    model, long = FakeModel(), "the unbelievable end is " * 200
    entry = measured(folder, texts(long), {"m": model}, prompt_bytes=20)["m"]
    parts = [cut(part, 20) for part in pieces(long.encode())]
    assert len(parts) == 2
    by_parts = sum(by_hand(model, start.decode(), rest.decode()) for start, rest in parts)
    assert bits(entry) == pytest.approx([-by_parts / math.log(2)])


def test_another_prompt_is_another_result(folder) -> None:
    model = FakeModel()
    found = [
        bits(measured(folder, texts(TEXT), {"m": model}, prompt_bytes=size)["m"])
        for size in (0, 3, 16)
    ]
    assert len({one for (one,) in found}) == 3
    assert len((folder / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("how", ["mean", "geometric"])
def test_copies_of_one_model_predict_as_it_does(folder, how) -> None:
    setting = FusionSettings(mapping="surface", combine=how, sharpness=1.0)
    found = measured(folder, texts(TEXT), {"one": FakeModel(), "two": FakeModel()}, [setting])
    assert bits(found[setting]) == pytest.approx(bits(found["one"]))


def step_by_step(
    start: str, text: str, models: Mapping[str, FakeModel], setting: FusionSettings
) -> float:
    """The same measurement by the space, its votes and a fuser, symbol by symbol."""
    members = list(models.values())
    mappings = [
        find_or_build(setting.mapping, one, members[0], mapping_folders()) for one in members
    ]
    space = PivotSpace(members, mappings, n_candidates=0)
    fuser = Fuser(setting, len(members))
    states = space.states(7)
    judged = setting.evidence_bytes(conversation=False)
    for model, state in zip(members, states, strict=True):
        model.remove(7, 0)
        state.start(Beginning(PromptWriter(model).read(start)[0], judged))
        while not state.ready:
            (run,) = state.pending()
            if run.every:
                state.take(run, state.cache.likelihood.read(run, decode_every(model, run)))
            else:
                state.take(run, model.decode([run])[0])
    if judged:
        fuser.begin([state.cache.likelihood.per_byte() for state in states])
    found = 0.0
    for symbol in members[0].tokenizer.encode(text.encode()):
        for model, state in zip(members, states, strict=True):
            for run in () if state.ready else state.pending():
                state.take(run, model.decode([run])[0])
        decision = fuser.decide(space.symbols(states).votes)
        found -= math.log2(decision.fused.at_least(symbol))
        fuser.learn(decision, symbol, len(space.piece(symbol)))
        for state in states:
            state.commit(symbol)
    return found


def test_every_setting_is_measured_as_the_steps_would_fuse(folder) -> None:
    members = {
        "a": FakeModel(WORDS_A),
        "b": FakeModel(WORDS_B, missing=[0x04]),
        "again": FakeModel(WORDS_A),
    }
    members["again"]._logits = lambda tokens: members["a"]._hashed([*tokens, 7])
    found = measured(folder, texts(TEXT, "able\x04 there a"), members, SETTINGS, prompt_bytes=6)
    assert len({round(sum(bits(found[one])), 6) for one in SETTINGS}) > len(SETTINGS) / 2
    # No member may be asked for a character that another cannot spell.
    parts = [("the", TEXT[3:]), ("able", " there a")]
    for setting in SETTINGS:
        assert bits(found[setting]) == pytest.approx(
            [step_by_step(*part, members, setting) for part in parts], rel=1e-6
        )


STORY = "the unbelievable thing is there, the man is in Paris and the end is able. " * 36


def reader_of(words: list[bytes], text: bytes, sure: float) -> FakeModel:
    """A model that has read `text` and knows it, the better the higher `sure`."""
    model = FakeModel(words)

    def logits(tokens: Sequence[int]) -> Logits:
        row = model._hashed(tokens) / 4
        start = len(model.vocabulary.join(tokens))
        row[model.tokenizer.encode(text[start : start + 16])[0]] += sure
        return row

    model._logits = logits
    return model


@pytest.mark.parametrize("how", ["mean", "geometric"])
def test_a_member_that_votes_nonsense_does_not_drag_down_who_follows_the_text(folder, how) -> None:
    members = {
        "good": reader_of(WORDS_A, STORY.encode(), 6),
        "fair": reader_of(WORDS_B, STORY.encode(), 4),
        "nonsense": FakeModel(WORDS_A),
    }
    running = FusionSettings(combine=how, weights="running", filter="off")
    equal = replace(running, weights="equal")
    entries = measured(folder, texts(STORY), members, [running, equal])
    found = {name: sum(bits(entry)) for name, entry in entries.items()}
    best = min(found[name] for name in members)
    assert best == found["good"]
    assert found[running] < 1.01 * best
    assert found[equal] > 1.2 * best


def test_a_character_that_a_member_cannot_spell_is_left_out(folder) -> None:
    models = {"a": FakeModel(), "b": FakeModel(WORDS_B, missing=[0x04])}
    with Results(folder / "results.jsonl") as results:
        assert Contest(models, results).asked(texts("the\x04 end")) == [[("", "the end")]]


def test_texts_are_cut_between_words_else_between_characters() -> None:
    assert cut(b"one two", 5) == (b"one", b" two")
    assert cut(b"one two", 3) == (b"one", b" two")
    assert cut(b"one", 3) == (b"one", b"")
    assert cut(b" one", 2) == (b" o", b"ne")
    assert cut("ab中".encode(), 4) == (b"ab", "中".encode())
    assert cut(b"one", 0) == (b"", b"one")
    heading = f"题目 {'字' * 500}".encode()
    assert [len(part) for part in cut(heading, 1000)] == [1000, len(heading) - 1000]


@pytest.mark.parametrize("text", [b"word " * 2000, ("中" * 2000).encode()])
def test_long_texts_are_cut_into_parts(text) -> None:
    parts = list(pieces(text))
    assert b"".join(parts) == text
    assert max(map(len, parts)) <= 3000
    assert all(part.decode().startswith((" ", "中")) for part in parts[1:])


def test_texts_of_json_lines_and_plain_files(tmp_path) -> None:
    rows = [{"text": "one", "prompt": "no"}, {"question": "two?"}, {"id": "c", "prompt": "three"}]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n")
    plain = tmp_path / "plain.py"
    plain.write_bytes(b"one = 1\r\n\n")
    found, whole = read_tasks([lines, plain], "bpb", limit=3)
    assert [(row.name, row.text) for row in found.rows] == [
        ("1", "one"),
        ("2", "two?"),
        ("c", "three"),
    ]
    assert [(row.name, row.text) for row in whole.rows] == [("1", "one = 1\r\n\n")]
    assert (found.kind, whole.kind, whole.name) == ("bpb", "bpb", "plain")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"text": 1}\n', "line 1"),
        ("a.jsonl", b'{"text": "a"}\n{"other": 1}\n', "row 2: has no text"),
        ("a.jsonl", b"[]\n", "line 1"),
        ("a.jsonl", b"{no json\n", "no JSON"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.txt", b"", "no text"),
        ("absent", None, "cannot be read"),
    ],
)
def test_a_bad_file_is_a_clear_error(tmp_path, name, content, problem) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_tasks([tmp_path / name], "bpb")
