"""The command `check`: what is known of members, a short test, and a verdict."""

from __future__ import annotations

import html
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from evaluations import alone, spec, task

from eva_local.cli import main
from eva_local.cli.outputs import print_report
from eva_local.cli.setup import Additions
from eva_local.config.config import load_config
from eva_local.evaluate import check as checking
from eva_local.evaluate.contest import Entry
from eva_local.evaluate.evaluation import TOLD, Evaluation
from eva_local.evaluate.forms import PLAIN
from eva_local.evaluate.rows import BUILT_IN, Result, read_tasks
from eva_local.evaluate.summary import TaskSummary, summarize
from eva_local.opening import open_models, rooms


@pytest.fixture
def check(models, tmp_path, monkeypatch, capsys):
    """Runs `eva-local check`, and returns its exit code, stdout and stderr."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    # Two rows of each task are enough for models that know nothing.
    few = [one[:2] for one in (task.rows for task in read_tasks(BUILT_IN))]
    monkeypatch.setattr(
        checking,
        "read_tasks",
        lambda files: [
            checking.replace(each, rows=rows)
            for each, rows in zip(read_tasks(files), few, strict=True)
        ],
    )

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--config", str(models / "models.toml"), "check", *arguments])
        return code, *capsys.readouterr()

    return run


def test_members_pace_test_and_verdict_are_told(check, models: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "check.json", tmp_path / "check.html"
    code, shown, _ = check("-e", "pair", "--json", str(out), "--html", str(page))
    assert code == 0
    lines = shown.splitlines()
    assert lines[1].startswith("one ")
    assert "pivot: one; memory: " in shown
    assert "ms a token: one " in shown
    assert "questions: % right choices, 2 rows" in shown
    assert "text: bits per byte, 2 rows" in shown
    assert lines[-1].startswith("VERDICT: Use ")
    found = json.loads(out.read_text())
    assert [one["name"] for one in found["members"]] == ["one", "two"]
    assert found["members"][0]["shared"] == 1
    assert found["members"][0]["path"] == str(models / "one.gguf")
    assert found["verdict"] == lines[-1].removeprefix("VERDICT: ")
    names = [one["name"] for one in found["test"]["contestants"]]
    assert names == ["one", "two", "pair", "pair, bytes"]
    assert found["use"]["name"] in names
    assert page.read_text().count("<article>") == 4
    assert html.escape(found["verdict"]) in page.read_text()


def test_one_model_has_no_verdict(check) -> None:
    code, shown, _ = check("-e", "one")
    assert code == 0
    assert "VERDICT: one is one model; give several" in shown
    assert "ms a token" not in shown


def test_one_model_twice_is_one_contestant(check, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    path = str(models / "one.gguf")
    assert check("-m", path, "-m", path, "--json", str(out))[0] == 0
    found = json.loads(out.read_text())
    names = [one["name"] for one in found["test"]["contestants"]]
    assert names == ["one", "one+one-2", "one+one-2, bytes"]
    # Its weights are in memory once.
    assert [one["weights"] > 0 for one in found["members"]] == [True, False]
    assert found["use"]["name"] in names


def test_a_torn_file_is_one_line(check, models: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes((models / "one.gguf").read_bytes()[:100])
    code, shown, complaint = check("-m", str(torn), "-m", str(models / "two.gguf"))
    assert (code, shown) == (2, "")
    assert str(torn) in complaint.splitlines()[-1]


def test_members_that_memory_has_no_room_for(check, monkeypatch) -> None:
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: 1000)
    monkeypatch.setattr("eva_local.opening.free_on_gpus", list)
    code, shown, complaint = check("-e", "pair")
    assert (code, shown) == (2, "")
    assert "pair needs 0.0 GB of memory and 0.0 GB are free: lower --ctx-size" in complaint


def test_no_more_rows_go_side_by_side_than_memory_has_room_for(check, models, monkeypatch) -> None:
    pair = load_config(models / "models.toml", {}).ensemble("pair")
    bytewise = replace(pair, fusion=replace(pair.fusion, space="bytes"))
    opened = []

    def open_some(*given: object, parallel: int, **rest: object):
        opened.append(parallel)
        return open_models(*given, parallel=parallel, **rest)

    monkeypatch.setattr(checking, "open_models", open_some)
    monkeypatch.setattr("eva_local.opening.free_on_gpus", list)
    ((_, _, weights, caches),) = rooms(bytewise)
    for n_fit in (1, 2, 9):
        free = sum(weights.values()) + int((n_fit + 0.5) * caches / 0.75)
        monkeypatch.setattr("eva_local.opening.free_memory", lambda free=free: free)
        assert check("-e", "pair")[0] == 0
    assert opened == [1, 2, 4]


@pytest.mark.parametrize(("main_gpu", "where"), [(-1, "all GPUs"), (1, "GPU 1")])
def test_members_that_a_gpu_has_no_room_for(check, monkeypatch, main_gpu, where) -> None:
    monkeypatch.setenv("EVA_LOCAL_MAIN_GPU", str(main_gpu))
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: 2**40)
    free = [2**40 if main_gpu == 1 else 1000, 1000]
    monkeypatch.setattr("eva_local.opening.free_on_gpus", lambda: free)
    code, shown, complaint = check("-e", "pair")
    assert (code, shown) == (2, "")
    told = f"pair needs 0.0 GB of memory of {where} and 0.0 GB are free: lower --ctx-size"
    assert told in complaint


def test_the_rows_that_come_along_are_sound() -> None:
    questions, text = read_tasks(BUILT_IN)
    assert (questions.kind, text.kind) == ("choice", "bpb")
    assert len(questions.rows) + len(text.rows) == 60
    # The right one stands in each place.
    assert {row.label for row in questions.rows} == {0, 1, 2, 3}
    for row in questions.rows:
        assert len(set(row.choices)) == len(row.choices)
    assert all(100 < len(row.text.encode()) < 400 for row in text.rows)


@pytest.mark.parametrize(
    ("skills", "seconds", "expected"),
    [
        # The ensemble is better for sure.
        ({"a": 0.2, "b": 0.2, "trio": 0.95}, {}, "Use trio in the space pivot: on choice it is su"),
        # A member is, and the ensemble has nothing to add.
        ({"a": 0.95, "b": 0.3, "trio": 0.5}, {}, "Use a alone: on choice it is surely better th"),
        # As good, for three times the time.
        ({"a": 0.8, "b": 0.2, "trio": 0.81}, {"trio": 3.0}, "Use a alone: on choice it is not to"),
        # As good and quicker.
        ({"a": 0.8, "b": 0.2, "trio": 0.8}, {"a": 3.0, "b": 3.0}, "Use trio in the space"),
    ],
)
def test_ties_go_to_the_cheapest(skills, seconds, expected: str) -> None:
    of = task("choice", 200)
    whole = spec(members=("a", "b"))
    contestants = [*map(alone, whole.members), whole]
    entries = []
    for number, one in enumerate(contestants):
        chance = np.random.default_rng(number if seconds == {} else 1).random(200)
        results = [
            Result(
                1,
                (0,) * len(one.members),
                seconds.get(one.name, 1.0),
                log_likelihoods=tuple(
                    -1.0 if (at == row.label) == (chance[place] < skills[one.name]) else -9.0
                    for at in range(len(row.choices))
                ),
                n_bytes=(1,) * len(row.choices),
            )
            for place, row in enumerate(of.rows)
        ]
        entries.append(Entry(of, one, tuple(results)))
    summary = summarize(entries, n_members=2)
    evaluation = Evaluation("trio", "a", PLAIN, (summary,))
    winner, verdict = checking._best(evaluation)
    assert verdict.startswith(expected)
    assert winner.name == expected.split()[1]
    # What nobody else is left for says no more.
    again = checking._best(Evaluation("trio", "a", PLAIN, (summary, summary)))
    assert again[0] == winner
    assert again[1].startswith(expected)


def test_an_ensemble_is_held_against_the_best_member_of_each_task() -> None:
    whole = spec(members=("a", "b"))
    contestants = [*map(alone, whole.members), whole]

    def summary(name: str, kind: str, likelihoods: dict[str, tuple[float, ...]]) -> TaskSummary:
        of = task(kind, 40, name)
        entries = []
        for one in contestants:
            found = likelihoods[one.name]
            result = Result(1, (0,) * len(one.members), 1.0, "", found, (1,) * len(found))
            entries.append(Entry(of, one, (result,) * 40))
        return summarize(entries, n_members=2)

    # The first choice is the right one.
    knows, guesses = (-1.0, -9.0, -9.0), (-9.0, -1.0, -9.0)
    asked = summary("questions", "choice", {"a": knows, "b": guesses, "trio": knows})
    for together, told in (
        (-1.0, "surely better than b (+50.0%"),
        (-3.0, "surely worse than b (-5"),
    ):
        text = summary("text", "bpb", {"a": (-5.0,), "b": (-2.0,), "trio": (together,)})
        winner, verdict = checking._best(Evaluation("trio", "a", PLAIN, (asked, text)))
        assert winner.name == "trio"
        assert "on questions it is not to be told from a (" in verdict
        assert f"on text it is {told}" in verdict


def test_what_is_found_is_written_for_later(check, models: Path) -> None:
    config = models / "models.toml"
    before = config.read_text()
    # What the file's own defaults say is not what was asked for.
    config.write_text(before.replace("[defaults]\n", '[defaults]\nspace = "bytes"\nseed = 3\n'))
    asked = ("--weights", "2,1", "--mapping", "surface", "--combine", "geometric")
    code, shown, _ = check("-e", "pair", *asked, "--save", "found")
    assert code == 0
    assert shown.splitlines()[-1].endswith("run -e found 'Hello'")
    (space,) = re.findall(r"VERDICT: Use pair in the space (\w+)", shown) or [None]
    (alone,) = re.findall(r"VERDICT: Use (\w+) alone", shown) or [None]
    config.write_text(config.read_text().replace('space = "bytes"\nseed = 3\n', ""))
    saved, given = (load_config(config).ensemble(name) for name in ("found", "pair"))
    if alone:
        assert [member.name for member in saved.members] == [alone]
    else:
        fusion = replace(given.fusion, weights=(2.0, 1.0), combine="geometric", mapping="surface")
        assert saved.fusion == replace(fusion, space=space)
        assert saved.members == given.members
    # A name that is taken is refused before anything is opened, and so is what a table cannot hold.
    for name in ("found", "one", "a b"):
        code, _, error = check("-e", "pair", "--save", name)
        assert (code, error.count("\n")) == (2, 1)
        assert f"--save {name!r}: give a name that is not taken" in error
    config.write_text(before.replace("[ensembles.pair]\n", '[ensembles.pair]\nstop = ["."]\n'))
    code, _, error = check("-e", "pair", "--save", "other")
    assert (code, "pair has a stop, which stands elsewhere" in error) == (2, True)
    config.write_text(before.replace('"one", "two"', '"one", { model = "two", system = "Hi" }'))
    code, _, error = check("-e", "pair", "--save", "other")
    assert (code, "two has a role: copy the table of pair" in error) == (2, True)
    config.write_text(before)


def test_files_and_settings_are_written_as_they_are(
    models: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EVA_LOCAL_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    files = [str(models / "one.gguf"), str(models / "two.gguf")]
    given = load_config().ensemble([*files, files[0]])
    fusion = replace(given.fusion, space="bytes", weights=(2.0, 1.0, 3.0))
    given = replace(given, fusion=fusion, pivot="one-2")
    with click.Context(click.Command("eva-local")) as context:
        context.params["config_path"] = None
        # A file does not take the name of the ensemble.
        new = Additions(context, "two", "--save")
        new.tables["ensembles", "two"] = new.ensemble(given)
        assert "run -e two" in new.write("two")
    saved = load_config().ensemble("two")
    assert [one.source for one in saved.members] == [one.source for one in given.members]
    assert (saved.fusion, saved.sampling, saved.pivot) == (fusion, given.sampling, "one-2")


def test_a_file_that_cannot_be_written_down_is_told_before_the_test(
    check, models: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd\udcff.gguf"
    odd.write_bytes((models / "one.gguf").read_bytes())
    code, _, error = check("-m", str(odd), "-m", "two", "--save", "x")
    assert (code, "no UTF-8 text, which models.toml needs" in error) == (2, True)
    (models / "models.toml").chmod(0o444)
    try:
        if os.geteuid():
            code, _, error = check("-e", "pair", "--save", "x")
            assert (code, "cannot be written" in error) == (2, True)
    finally:
        (models / "models.toml").chmod(0o644)


def test_what_a_file_says_of_itself_is_one_harmless_cell(capsys) -> None:
    facts = [
        checking.Fact(
            name, Path("a.gguf"), kind, None, 9, 1.0, True, True, weights=10**9, cache=10**8
        )
        for name, kind in (("a", "\x1b[31mred\nline"), ("b", "llama"))
    ]
    one = alone(spec().members[0])
    found = checking.Check(one, tuple(facts), None, None, Evaluation("", "", PLAIN, ()), one, "No.")
    print_report("evaluate/check.txt", check=found, thinks=lambda _: False, **TOLD)
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert "\x1b" not in first
    assert first.index("red line  ?  ") + 10 == head.index("FORM") == second.index("?")
