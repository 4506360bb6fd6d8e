"""Each part of the campaign finds nothing in a few trials; its watchers notice what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from doomed import WAYS, Doomed

from tools.fire import __main__, hammer, kills
from tools.fire.campaign import Campaign, WrongError, make_models
from tools.fire.disks import clocks, disks, memory
from tools.fire.kills import Stage
from tools.fire.law import ByteLaw, PivotLaw
from tools.fire.load import ended, soak
from tools.fire.subjects import SUBJECTS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fire") / "models"
    make_models(folder)
    return folder


@pytest.fixture
def campaign(tmp_path: Path, tiny: Path) -> Campaign:
    (tmp_path / "models").symlink_to(tiny)
    return Campaign(tmp_path, n=1, workers=1)


def subject(
    maker: Callable[[Path, Path], hammer.Subject], campaign: Campaign, monkeypatch
) -> hammer.Subject:
    for name, value in campaign.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(campaign.folder)
    return maker(campaign.folder, campaign.models)


@pytest.mark.parametrize("what", SUBJECTS)
def test_what_is_damaged_is_refused_or_answered(what, campaign, monkeypatch) -> None:
    maker, _ = SUBJECTS[what]
    found = subject(maker, campaign, monkeypatch)
    assert all(map(found.judge, found.samples))
    outcomes = [
        hammer.tried(found, found.case(campaign.chance("damage", number))) for number in range(12)
    ]
    found.close()
    assert not [problem for _, problem in outcomes if problem]
    # What is damaged at random is mostly no good.
    assert not all(is_right for is_right, _ in outcomes)


@pytest.mark.parametrize("maker", [PivotLaw, ByteLaw])
def test_members_follow_random_texts(maker, campaign, monkeypatch) -> None:
    found = subject(maker, campaign, monkeypatch)
    assert found.judge(b"a seed")
    found.close()


def test_a_member_that_does_not_follow_is_noticed(campaign, monkeypatch) -> None:
    found = subject(PivotLaw, campaign, monkeypatch)
    for model in found.models:
        monkeypatch.setattr(model.tokenizer, "encode", lambda data: [300] * len(data))
    with pytest.raises(WrongError):
        found.judge(b"a seed")
    found.close()


def test_who_dies_hangs_or_takes_too_much_is_found_and_the_others_go_on(
    campaign, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(hammer, "LIMIT_S", 3.0)
    campaign.seed, n = 751, 8
    ways = [campaign.chance("damage/doomed", number).choice(WAYS) for number in range(n)]
    assert set(ways) == set(WAYS)
    hammer.hammer(campaign, "damage", "doomed", Doomed, n)
    (row,) = campaign.rows
    assert row.n == n
    numbers = {int(each.case.split("--first ")[1].split()[0]): each for each in campaign.findings}
    good = ("right", "refused")
    assert sorted(numbers) == [number for number, way in enumerate(ways) if way not in good]
    words = {
        "wrong": "it is wrong",
        "raised": "nobody says what",
        "silent": "an error says nothing",
        "killed": "died of -11",
        "hungry": "took ",
        "hangs": "hangs: not done in 3 s",
    }
    for number, finding in numbers.items():
        assert words[ways[number]] in finding.problem
        assert Path(finding.saved).read_text() == ways[number]
    assert "FOUND damage, doomed" in capsys.readouterr().err


def test_a_command_that_is_killed_comes_to_its_end(campaign) -> None:
    kills.kills(campaign, "run --trace")
    (row,) = campaign.rows
    assert (row.n, row.findings) == (1, 0)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (["a", "b"], None),
        (["a", "b", "a"], "a row is there twice"),
        (["a"], r"wrong rows: \['b'\]"),
        (["a", "x"], r"wrong rows: \['b'\]"),
    ],
)
def test_what_is_lost_or_there_twice_is_noticed(campaign, monkeypatch, written, problem) -> None:
    def attempt(_: Stage, *call: str) -> kills.Attempt:
        lines = (json.dumps({"id": name, "text": f"of {name}"}) for name in written)
        Path(call[2]).write_text("".join(f"{line}\n" for line in lines))
        return kills.Attempt(False, 0, "", "")

    stories = kills.Stories(campaign)
    stories._known["rows"] = {"a": "of a", "b": "of b"}, 1.0
    monkeypatch.setattr(Stage, "attempt", attempt)
    stage = Stage(campaign, kills.Kind(0), campaign.scratch("one"), campaign.chance(), 0)
    expected = pytest.raises(WrongError, match=problem) if problem else nullcontext()
    with expected:
        stories.batch(stage)


def test_disks_clocks_and_memory(campaign) -> None:
    disks(campaign, "mapping")
    clocks(campaign, "chat")
    memory(campaign)
    assert [(row.n, row.findings) for row in campaign.rows] == [(1, 0)] * 4


def test_load(campaign) -> None:
    campaign.seconds = 2
    campaign.n = 3
    soak(campaign)
    campaign.n = 1
    ended(campaign)
    assert [row.findings for row in campaign.rows] == [0, 0]


def test_the_table_and_the_figures_tell_of_all(tmp_path, capsys) -> None:
    out = tmp_path / "fire.json"
    how = [
        "--part",
        "damage",
        "--what",
        "chat logs",
        "--n",
        "20",
        "--workers",
        "1",
        "--folder",
        str(tmp_path),
    ]
    assert __main__.main([*how, "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["n"], row["findings"]) == (20, 0)
    assert "| damage | chat logs | 20 |" in capsys.readouterr().out
