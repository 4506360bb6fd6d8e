"""The command `bench` on two tiny models with random weights."""

from __future__ import annotations

import json

import pytest

from eva_local.cli import main

SMALL = ("--context", "20", "--parallel", "3", "--rounds", "4", "--questions", "2")


@pytest.fixture
def bench(models, tmp_path, monkeypatch, capsys):
    """Runs `eva-local bench`, and returns its exit code, stdout and stderr."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--config", str(models / "models.toml"), "bench", *arguments])
        return code, *capsys.readouterr()

    return run


def test_a_table_and_all_figures_as_json(bench, tmp_path) -> None:
    out, page = tmp_path / "bench.json", tmp_path / "bench.html"
    code, shown, _ = bench("-e", "pair", *SMALL, "--json", str(out), "--html", str(page))
    assert code == 0
    assert "20 tokens of context, one text" in shown
    assert "20 tokens of context, 3 texts" in shown
    assert "step / sum of the members, same tokens" in shown
    html = page.read_text()
    assert html.count("<svg ") == html.count("</svg>") == 6
    assert "<script" not in html
    found = json.loads(out.read_text())
    assert [(one["context"], one["texts"]) for one in found["trials"]] == [(20, 1), (20, 3)]
    for trial in found["trials"]:
        writing = trial["writing"]
        assert writing["over_sum"]["count"] == 4
        assert writing["over_sum"]["median"] > writing["inside_over_alone"]["median"] > 0
        assert writing["over_slowest"]["median"] > writing["over_sum"]["median"]
        assert 0 < writing["bookkeeping"]["median"] < 1
        assert [member["name"] for member in writing["members"]] == ["one", "two"]
        assert writing["members"][0]["n_tokens"] >= trial["texts"]
    assert found["trials"][0]["first_seconds"] > 0
    assert found["trials"][1]["first_seconds"] is None
    how = [("off", 0), ("auto", 0), ("off", 0.7), ("auto", 0.7)]
    assert [(one["drafter"], one["temperature"]) for one in found["answers"]] == how
    for one in found["answers"]:
        assert one["over_sum"]["count"] == 2
        assert one["by_kind"] == {"chat": pytest.approx(one["total"])}
        assert len(one["passes"]) == len(one["decoded"]) == 2
        assert one["accepted"] <= one["drafted"]
        assert sorted(one["elsewhere"]) == list(one["elsewhere"])
    assert found["answers"][0]["drafted"] == 0
    assert shown.count("passes a token one") == 2


@pytest.mark.parametrize(
    "settings",
    [
        ("-e", "pair", "--space", "bytes", "--combine", "geometric"),
        ("-e", "pair", "--gate", "0.01"),
        ("-e", "pair", "--weights", "prompt-perplexity"),
        ("-e", "one"),
    ],
)
def test_other_settings_can_be_measured_and_stdout_is_json_alone(bench, settings) -> None:
    code, shown, _ = bench(*settings, *SMALL, "--json")
    assert code == 0
    for trial in json.loads(shown)["trials"]:
        assert trial["writing"]["step"]["median"] > 0
        assert trial["writing"]["rate"]["median"] >= 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--context", "0"), "0 is not in the range"),
        (("--rounds", "none"), "'none' is not a valid integer"),
        (("--context", "120"), "120 tokens of context and 20 rounds do not fit: one needs"),
        (("--json", "no/where/out.json"), "cannot be written"),
        (("-e", "none"), "none"),
        (("--n-ctx", "many"), "--n-ctx: must be a whole number"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(bench, arguments, problem) -> None:
    ensemble = () if "-e" in arguments else ("-e", "pair")
    code, shown, told = bench(*ensemble, *arguments)
    assert (code, shown) == (2, "")
    assert problem in told
    assert told.count("\n") == 1
