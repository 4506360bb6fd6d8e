"""The report of an evaluation: its numbers in JSON, its page in a real browser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CONTRAST, HOSTILE, Browser
from evaluations import outcome
from msgspec import structs

from eva_local.evaluate.evaluation import Evaluation, report_page
from eva_local.pages.frame import Line, template


@pytest.fixture
def page(browser: Browser, tmp_path: Path):
    def show(made: Evaluation, **how: object) -> Browser:
        path = tmp_path / "page.html"
        path.write_text(report_page(made), encoding="utf-8", errors="backslashreplace")
        browser.open(path.as_uri(), **how)
        assert browser.complaints() == []
        assert browser.requests() == [path.as_uri()]
        return browser

    return show


def test_json_has_all_figures_and_every_answer() -> None:
    made = outcome(tuned="[ensembles.x]")
    data = json.loads(json.dumps(made.as_json(), default=str))
    assert [one["task"] for one in data["tasks"]] == ["generate", "choice", "translate", "bpb"]
    first = data["tasks"][0]
    assert len(first["answers"]) == first["rows"] == 60
    assert {one["name"] for one in data["contestants"]} < {*first["answers"][0]}
    scores = {one["name"]: one["score"] for one in first["standings"]}
    values = [row["trio"]["value"] for row in first["answers"]]
    assert scores["trio"]["value"] == pytest.approx(sum(values) / 60)
    assert scores["trio"]["low"] <= scores["trio"]["value"] <= scores["trio"]["high"]
    assert first["advice"]["trio"]
    assert data["tuned"] == "[ensembles.x]"
    assert data["overall"]["trio"]["value"] == pytest.approx(
        sum(made.tasks[i].standing("trio").ahead.value for i in range(3)) / 3
    )


def test_the_page_shows_scores_plots_and_answers(page) -> None:
    made = outcome(tuned='[ensembles."trio-tuned"]')
    seen = page(made)
    text = seen.run("document.body.textContent")
    for summary in made.tasks:
        for standing in summary.standings:
            form = ".4f" if summary.metric == "bits" else ".1f"
            assert f"{standing.score.value:{form}}" in text
    assert "mean of tasks" in text
    assert '[ensembles."trio-tuned"]' in text
    # An overview in points and one in percent, then scores and rows of each of four tasks.
    assert seen.run("document.querySelectorAll('svg').length") == 2 + 2 * 4
    assert seen.run("document.querySelectorAll('article').length") > 20
    dots = seen.run("document.querySelector('section.task svg').querySelectorAll('circle').length")
    assert dots == len(made.tasks[0].standings)


def test_text_of_rows_and_models_stays_text(page) -> None:
    made = outcome(("translate",), 6)
    summary = made.tasks[0]
    hostile = b" ".join(HOSTILE).decode("utf-8", "replace") + "\ud800 onload=alert(1)"
    rows = tuple(
        structs.replace(row, prompt=hostile, answers=(hostile,)) for row in summary.task.rows
    )
    standings = tuple(
        replace(one, marks=tuple(replace(mark, said=hostile) for mark in one.marks))
        for one in summary.standings
    )
    changed = replace(summary, task=replace(summary.task, rows=rows), standings=standings)
    seen = page(replace(made, tasks=(changed,), tuned=hostile))
    assert seen.run("window.hacked") is None
    assert seen.run("document.querySelectorAll('script, img').length") == 0
    assert "onerror" in seen.run("document.querySelector('article').textContent")


def test_light_and_dark_differ_and_both_can_be_read(page) -> None:
    papers = []
    for dark in (False, True):
        seen = page(outcome(), dark=dark)
        seen.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        papers.append(seen.run("getComputedStyle(document.body).backgroundColor"))
        ratio, where = seen.run(CONTRAST)
        assert ratio >= 4.5, where
    assert papers[0] != papers[1]


@pytest.mark.parametrize("member", ["a", "gemma3-270m+smollm2-135m"])
def test_no_plot_and_no_label_runs_over_its_edge(page, member) -> None:
    seen = page(outcome(members=(member, "b")))
    outside = seen.run(
        "[...document.querySelectorAll('svg text, svg rect, svg circle')].filter(node => {"
        "const own = node.getBoundingClientRect();"
        "const svg = node.closest('svg').getBoundingClientRect();"
        "return own.left < svg.left - 1 || own.right > svg.right + 1"
        "|| own.top < svg.top - 1 || own.bottom > svg.bottom + 1;"
        "}).map(node => node.outerHTML)"
    )
    assert outside == []


def test_a_narrow_screen_shows_all_without_a_scroll_to_the_side(page) -> None:
    seen = page(outcome(), size=(380, 800))
    assert seen.run("document.documentElement.scrollWidth") <= 380


@pytest.mark.parametrize("members", [("a",), ("a", "b")])
def test_one_row_and_one_member_are_shown(page, members) -> None:
    made = outcome(("choice",), 1, members, ())
    if len(members) == 1:
        alone = replace(made.tasks[0], standings=made.tasks[0].standings[:1])
        made = replace(made, tasks=(alone,))
    seen = page(made)
    assert "choice" in seen.run("document.body.textContent")


def test_plots_are_drawn_to_scale() -> None:
    plots = template("pages/plots.html").module
    plot = plots.intervals([Line("a", "m0", 0, -10, 10, "0")], "t", "points", (0.0, "zero"))
    whisker = plot[plot.index('class="whisker"') :]
    left, right = (float(whisker.split(f'{end}="')[1].split('"')[0]) for end in ("x1", "x2"))
    middle = float(plot.split('cx="')[1].split('"')[0])
    assert middle - left == pytest.approx(right - middle)
    drawn = plots.bars([("a", "m0", 10, 5), ("b", "m1", 0, 0)], "t")
    whole, half = (float(part.split('"')[0]) for part in drawn.split('width="')[1:3])
    assert whole == pytest.approx(2 * half)
    assert plots.waterfall([1.0, -2.0, 0.0], "t", "u").count("<rect") == 3
    assert plots.intervals([Line("same", "m0", 3, 3, 3, "3")], "t", "u").count("circle") == 1
