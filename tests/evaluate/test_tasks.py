"""Contests between fake models: what is done, kept, and not done again."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from evaluations import ANSWER, ASKED, SHOT, alone, spec, write
from fakes import WORDS_A, WORDS_B, FakeModel, vocabulary
from msgspec import structs

from eva_local.cli import main
from eva_local.cli.evaluate import variant
from eva_local.cli.options import Load
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import ContextError, InputError
from eva_local.evaluate.contest import Contest, Entry
from eva_local.evaluate.evaluation import hold
from eva_local.evaluate.forms import Conditions, prompt_of, scored_of, with_shots
from eva_local.evaluate.rows import Result, Results, Task, TaskRow, key_of, votes_filtered
from eva_local.evaluate.summary import summarize
from eva_local.opening import ensemble_of
from tools.tiny_gguf import write_tiny_gguf

MEMBERS = ("one", "two")


@pytest.fixture
def models(tmp_path, monkeypatch) -> dict[str, FakeModel]:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    return {"one": FakeModel(WORDS_A), "two": FakeModel(WORDS_B)}


def players() -> list[EnsembleSpec]:
    both = spec("both", MEMBERS)
    return [*map(alone, both.members), both]


TASKS = [
    Task("sums", "generate", tuple(structs.replace(ASKED, name=str(i)) for i in range(3)), (SHOT,)),
    Task(
        "picks",
        "choice",
        tuple(
            TaskRow(f"{i}", prompt=f"the {i}", choices=(" un", "the end"), label=1) for i in (1, 2)
        ),
    ),
    Task("texts", "bpb", (TaskRow("t", text="the unbelievable Paris is there, " * 3),)),
]


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_contest_is_gone_on_with(tmp_path, models, parallel) -> None:
    path = tmp_path / "kept" / "results.jsonl"
    told: list[float] = []
    with Results(path) as results:
        contest = Contest(
            models, results, Conditions(max_tokens=4), parallel, lambda _, share: told.append(share)
        )
        first = contest.run(TASKS, players())
    assert [len(one.results) for one in first] == [3, 2, 1] * 3
    assert told == sorted(told)
    assert told[-1] == 1
    lines = path.read_text().splitlines()
    assert len(lines) == 18
    # A run that was cut off inside a line does that row again, and no other.
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    decoded = [model.decoded for model in models.values()]
    with Results(path) as results:
        again = Contest(models, results, Conditions(max_tokens=4), parallel).run(TASKS, players())
    assert [without_time(one.results) for one in again] == [
        without_time(one.results) for one in first
    ]
    assert len(path.read_text().splitlines()) == 18
    before = sum(decoded)
    assert sum(model.decoded for model in models.values()) - before < before / 4
    with Results(path) as results:
        Contest(models, results, Conditions(max_tokens=5), parallel).run(TASKS, players())
    # Another length is another answer, but the same scores.
    assert len(path.read_text().splitlines()) == 18 + 9
    with Results(path, fresh=True) as results:
        Contest(models, results, Conditions(max_tokens=5), parallel).run(TASKS, players())
    assert len(path.read_text().splitlines()) == 18 + 9 + 18


def without_time(results: tuple[Result, ...]) -> list[Result]:
    return [replace(result, seconds=0.0) for result in results]


def test_contestants_of_one_name_are_told_apart(tmp_path, models) -> None:
    def written(*specs: EnsembleSpec) -> list[list[Result]]:
        with Results(tmp_path / "results.jsonl", fresh=True) as results:
            contest = Contest(models, results, Conditions(max_tokens=6))
            entries = contest.run(TASKS, specs)
        return [without_time(entry.results) for entry in entries]

    other = spec("both", MEMBERS, combine="geometric", weights="equal")
    assert written(spec("both", MEMBERS), other) == [
        *written(spec("both", MEMBERS)),
        *written(other),
    ]
    with Results(tmp_path / "results.jsonl") as results:
        contest = Contest(models, results, Conditions(max_tokens=6))
        found = hold(contest, [other, other, spec("trio", MEMBERS), other], TASKS[:1])
    assert [*found.ensembles] == ["both", "both (2)", "trio", "both (3)"]


@pytest.mark.parametrize("space", ["pivot", "bytes"])
def test_a_member_that_is_always_dropped_is_a_third_of_three_votes(tmp_path, space) -> None:
    def liking(piece: bytes) -> FakeModel:
        liked = vocabulary(WORDS_A).pieces.index(piece)
        logits = np.full(len(vocabulary(WORDS_A)), -9, dtype=np.float32)
        logits[liked] = 9
        return FakeModel(WORDS_A, logits=lambda _: logits)

    models = {"one": liking(b" Paris"), "two": liking(b" Paris"), "three": liking(b"ing")}
    odd = spec("odd", tuple(models), space=space, filter="top-n", filter_n=1, weights="equal")
    task = Task("t", "generate", (TaskRow("1", prompt="the", answers=("x",)),))
    with Results(tmp_path / "results.jsonl") as results:
        (entry,) = Contest(models, results, Conditions(max_tokens=8)).run([task], [odd])
    assert votes_filtered(entry.results) == pytest.approx(1 / 3)


def test_a_choice_that_cannot_be_spelled_is_named(tmp_path) -> None:
    models = {"one": FakeModel(WORDS_A), "two": FakeModel(WORDS_B, missing=[0xF0])}
    row = TaskRow("7", prompt="the", choices=("end", "😀"), label=0)
    with (
        Results(tmp_path / "results.jsonl") as results,
        pytest.raises(InputError, match="picks, row 7: some member cannot spell"),
    ):
        Contest(models, results).scorable(Task("picks", "choice", (row,)))


def test_side_by_side_gives_what_one_after_the_other_gives(tmp_path, models) -> None:
    found = []
    for parallel in (1, 4):
        with Results(tmp_path / f"{parallel}.jsonl") as results:
            entries = Contest(models, results, Conditions(max_tokens=6), parallel).run(
                TASKS, players()
            )
        found.append([without_time(one.results) for one in entries])
    for one, many in zip(*found, strict=True):
        for a, b in zip(one, many, strict=True):
            assert replace(a, log_likelihoods=()) == replace(b, log_likelihoods=())
            assert a.log_likelihoods == pytest.approx(b.log_likelihoods)


def test_texts_that_are_heard_once_score_as_if_each_contestant_had_heard_them(
    tmp_path, models
) -> None:
    settings = [
        {"combine": combine, "weights": weights, "filter": filter_, "gate": gate}
        for combine in ("mean", "geometric")
        for weights in ("equal", "running", "prompt-perplexity", (0.3, 0.7))
        for filter_, gate in (("off", 1.0), ("top-n", 1.0), ("off", 0.5))
    ] + [{"mapping": "surface"}]
    them = [spec(str(n), MEMBERS, **one) for n, one in enumerate(settings)]
    decoded = sum(model.decoded for model in models.values())
    with Results(tmp_path / "r.jsonl") as results:
        entries = Contest(models, results).run(TASKS[1:], them[:1])
        once = sum(model.decoded for model in models.values()) - decoded
        entries = Contest(models, results).run(TASKS[1:], them)
    assert sum(model.decoded for model in models.values()) - decoded < 5 * once
    for one in entries:
        fusion = replace(one.spec.fusion, candidates=0)
        alone_ = replace(one.spec, fusion=fusion)
        with ensemble_of(alone_, [models[name] for name in MEMBERS]) as ensemble:
            for row, result in zip(one.task.rows, one.results, strict=True):
                asked = scored_of(row, one.task, ensemble.missing_bytes)
                scores = [ensemble.score(prompt, text) for prompt, text in asked]
                likelihoods = [score.log_likelihood for score in scores]
                if one.task.kind == "bpb":
                    likelihoods = [sum(likelihoods)]
                assert result.log_likelihoods == pytest.approx(likelihoods)
                filtered = zip(*(score.filtered for score in scores), strict=True)
                assert result.filtered == tuple(map(sum, filtered))


def test_a_prompt_that_does_not_fit_says_whose_it_is(tmp_path, models) -> None:
    models["two"].n_ctx = 8
    problem = pytest.raises(ContextError, match="two: sums: the prompt does not fit")
    with Results(tmp_path / "r.jsonl") as results, problem:
        Contest(models, results).run(TASKS[:1], players())
    # What was done before is kept.
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3


def test_of_several_samples_the_answer_that_most_give_counts(tmp_path, models) -> None:
    path = tmp_path / "r.jsonl"
    one = alone(spec("both", MEMBERS).members[0])
    with Results(path) as results:
        contest = Contest(models, results, Conditions(max_tokens=4), 2)
        (entry,) = contest.run(TASKS[:1], [one], 3)
        assert [len(drawn) for drawn in entry.samples] == [3, 3, 3]
        assert len({each.text for each in entry.samples[0]}) > 1
        decoded = models["one"].decoded
        # Fewer of them are known already.
        (fewer,) = contest.run(TASKS[:1], [one], 2)
        assert fewer.samples == tuple(drawn[:2] for drawn in entry.samples)
        assert models["one"].decoded == decoded
    row = structs.replace(ASKED, answers=("7",))
    task = Task("sums", "generate", (row,))
    said = [Result(3, (0,), 0.5, text) for text in (" 8", " so 7", " 7.", " 8, no 9", " it is 7")]
    summary = summarize(
        [Entry(task, one, tuple(said[:1])), Entry(task, one, (said[0],), (tuple(said),))],
        n_members=1,
    )
    assert [standing.score.value for standing in summary.standings] == [0, 100]
    assert len(summary.members) == 1
    assert [standing.seconds for standing in summary.standings] == [0.5, 2.5]
    assert summary.best == "one"


def test_members_have_examples_of_their_own(tmp_path, models) -> None:
    shots = tuple(TaskRow(str(n), prompt=f"the {n}?", answers=(f"{n}",)) for n in range(4))
    task = replace(TASKS[0], shots=shots)
    conditions = Conditions(max_tokens=4, own_shots=2)
    mine = with_shots(spec("both", MEMBERS), task, conditions)
    assert [member.prefix for member in mine.members] == [
        "the 0? 0\n\nthe 2? 2\n\n",
        "the 1? 1\n\nthe 3? 3\n\n",
    ]
    assert prompt_of(task.rows[0], task, conditions) == task.rows[0].prompt.rstrip()
    assert conditions.shots_of(task) == 2
    with Results(tmp_path / "r.jsonl") as results:
        entries = Contest(models, results, conditions).run([task], players())
        shared = Contest(models, results, Conditions(max_tokens=4)).run([task], players())
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 18
    assert len(entries) == len(shared) == 3


def test_what_the_same_time_buys_is_told(tmp_path, load, monkeypatch, capsys) -> None:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("one", "two", "three")):
        write_tiny_gguf(tmp_path / f"{name}.gguf", n_layers=1, seed=seed)
    rows = write(
        tmp_path / "rows.jsonl", *({"prompt": f"Q: {n}\nA:", "answers": ["1"]} for n in range(3))
    )
    shots = write(
        tmp_path / "shots.jsonl",
        *({"prompt": f"Q: {n}\nA:", "answers": [str(n)]} for n in range(4)),
    )
    out = tmp_path / "out.json"
    arguments = [str(rows), "-e", "both", "--few-shot", str(shots), "--shots", "2", "--own-shots"]
    arguments += ["--samples", "3", "--compare", "three", "--compare", "other", "--max-tokens", "4"]
    command = ["--config", str(load.args[0]), "eval", *arguments, "--json", str(out)]
    assert main(command) == 0
    (task,) = json.loads(out.read_text())["tasks"]
    names = [one["name"] for one in task["standings"]]
    assert names[:4] == ["one", "two", "both", "three"]
    assert names[4] == "other"
    assert names[5] in ("one, vote of 3", "two, vote of 3")
    assert task["bought"]
    assert task["bought"] in capsys.readouterr().out
    assert main([*command[:-2], "--compare", "turned", "--html", str(tmp_path / "p.html")]) == 0
    assert "vote of 3" in (tmp_path / "p.html").read_text()


def test_a_file_of_something_else_is_no_file_of_results(tmp_path) -> None:
    path = write(tmp_path / "r.jsonl", ANSWER)
    before = path.read_bytes()
    with pytest.raises(InputError, match="key is missing"):
        Results(path)
    assert path.read_bytes() == before


def test_keys_tell_everything_apart() -> None:
    assert key_of("a", ["b"]) == key_of("a", ["b"])
    assert len({key_of("a", "b"), key_of("ab"), key_of("a", ["b"]), key_of("b", "a")}) == 4


CONFIG = """
schema = 1
[models.one]
path = "one.gguf"
[models.two]
path = "two.gguf"
[models.three]
path = "three.gguf"
[ensembles.both]
members = ["one", "two"]
pivot = "one"
[ensembles.turned]
members = ["two", "one"]
weights = [2, 1]
[ensembles.other]
members = ["one", "three"]
"""


@pytest.fixture
def load(tmp_path) -> Load:
    (tmp_path / "models.toml").write_text(CONFIG)
    return partial(load_config, tmp_path / "models.toml", os.environ)


def test_other_settings_to_compare(load) -> None:
    given = {"ensemble": "both", "combine": "geometric"}
    own = load(given).ensemble()
    other = variant(load, given, own, "weights=2,1,filter=top-n, filter-n=5")
    assert other.fusion == replace(own.fusion, weights=(2.0, 1.0), filter="top-n", filter_n=5)
    assert other.fusion.combine == "geometric"
    assert variant(load, given, own, "pivot=two").pivot == "two"
    turned = variant(load, given, own, "turned")
    assert [member.name for member in turned.members] == ["two", "one"]
    assert turned.fusion.weights == (2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pivot=three", "is no member"),
        ("wieghts=equal", "did you mean weights"),
        ("weights=1,2,3", "must be one for each of one, two"),
        ("combine=sum", "mean"),
        ("nobody", "no ensemble"),
        ("two", "is one model; members are measured alone anyway"),
    ],
)
def test_settings_that_cannot_be_compared(load, text, problem) -> None:
    own = load({"ensemble": "both"}).ensemble()
    with pytest.raises(Exception, match=problem) as error:
        variant(load, {"ensemble": "both"}, own, text)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{rows}", "--json", "{rows}"], "is a file of rows"),
        (["--json", "{rows}"], "there is no FILE of rows; name it before --json"),
        (["{rows}", "--html", "{folder}"], "cannot be written"),
        (["{rows}", "--results", "{folder}/absent/r.jsonl"], "cannot be written"),
        (["{rows}", "-e", "one", "--tune"], "--tune needs an ensemble, and one is one model"),
        (["{rows}", "-e", "one", "--compare", "gate=0.9"], "--compare needs an ensemble"),
        (["{rows}", "-e", "one", "--no-members"], "--no-members needs an ensemble"),
        (["{rows}", "--task", "choice"], "has no choices"),
        (["{rows}", "--few-shot", "{rows}"], "4 examples are wanted"),
        (["{rows}"], "one.gguf"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(
    tmp_path, load, capsys, monkeypatch, arguments, problem
) -> None:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    rows = write(tmp_path / "rows.jsonl", ANSWER)
    before = rows.read_bytes()
    filled = [one.format(rows=rows, folder=tmp_path) for one in arguments]
    assert main(["--config", str(load.args[0]), "eval", *filled]) == 2
    complaint = capsys.readouterr().err
    assert problem in complaint
    assert complaint.count("\n") == 1
    assert rows.read_bytes() == before
