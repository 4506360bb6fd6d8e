"""The trace file: what is written is read again, an interrupted one too, and nothing else."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cut
from traces import MEMBERS, PROMPT, TEXT, dissenters, made_steps, pieces, thinking_steps

from eva_local import cli
from eva_local.errors import InputError
from eva_local.trace import TraceFile, TraceWriter, read_trace, summarize
from eva_local.types import Ballot, Candidate, Step, Trace

HEADER = {
    "ensemble": "trio",
    "members": MEMBERS,
    "pivot": MEMBERS[0],
    "prompt": PROMPT,
    "settings": {"filter": "top-n", "n_ctx": 4096, "weights": [1, 0.5], "path": Path("a/b")},
}


def written(path: Path, steps: list[Step], **header: object) -> Path:
    with TraceWriter(path, TraceFile(**{**HEADER, **header})) as writer:
        for step in steps:
            writer.write(step)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "run.jsonl", made_steps(pieces(TEXT)[:12]))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewritten(path: Path, number: int, line: object) -> Path:
    found = path.read_bytes().split(b"\n")
    found[number - 1] = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(b"\n".join(found))
    return path


def about(step: Step) -> tuple:
    """Return what must come back exactly; of numbers six digits do."""
    assert step.trace is not None
    ballots = [(b.member, b.stayed, b.reason, len(b.top)) for b in step.trace.ballots]
    return step.piece, step.text, step.stayed, [c.piece for c in step.trace.top], ballots


def test_what_is_written_is_read_again(path) -> None:
    steps = made_steps(pieces(TEXT)[:12])
    found = read_trace(path)
    assert (found.ensemble, found.members, found.pivot) == ("trio", MEMBERS, MEMBERS[0])
    assert found.prompt == PROMPT
    assert found.settings == {**HEADER["settings"], "path": str(Path("a/b"))}
    assert (found.finish_reason, found.usage) == ("stop", steps[-1].usage)
    assert found.notes == ()
    assert [about(step) for step in found.steps] == [about(step) for step in steps]
    for was, now in zip(steps, found.steps, strict=True):
        assert now.probability == pytest.approx(was.probability, rel=1e-5)
        assert now.trace.carrier == was.trace.carrier
        assert now.trace.top[0].probability == pytest.approx(was.trace.top[0].probability, rel=1e-5)


def test_the_file_is_what_the_documentation_says(path) -> None:
    head, first, *_, last = lines(path)
    assert list(head) == [*("schema", "kind", "ensemble", "members", "pivot", "prompt", "settings")]
    assert list(first) == [
        *("kind", "piece", "hex", "text", "reasoning", "probability"),
        *("disagreement", "dissenters", "carrier", "top", "ballots"),
    ]
    assert list(first["top"][0]) == ["piece", "hex", "probability"]
    assert list(first["ballots"][0]) == [
        *("member", "top", "chosen", "stayed", "reason", "weight", "seconds")
    ]
    assert list(last) == ["kind", "finish_reason", "usage"]
    assert [line["kind"] for line in lines(path)] == ["trace", *["step"] * 13, "end"]
    assert bytes.fromhex(first["hex"]) == b"The"


def test_a_thought_is_told_apart_and_older_files_know_none(path) -> None:
    steps = thinking_steps("Let me see. 🌊", "It is salt.")
    found = read_trace(written(path, steps))
    assert [(step.reasoning, step.text) for step in found.steps] == [
        (step.reasoning, step.text) for step in steps
    ]
    assert found.usage.reasoning_steps == sum(step.reasoning is not None for step in steps) > 0
    older = [{k: v for k, v in line.items() if k != "reasoning"} for line in lines(path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    assert all(step.reasoning is None for step in read_trace(path).steps)


@given(cut())
def test_any_bytes_come_back_exactly(tmp_path_factory, cut_text) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    steps = made_steps(cut_text)
    found = read_trace(written(path, steps))
    assert [about(step) for step in found.steps] == [about(step) for step in steps]


@given(st.text(max_size=20).map(lambda text: text + "\udc80\u2028\x85\n\x9b"))
def test_any_prompt_comes_back_and_every_line_is_one_line(tmp_path_factory, prompt) -> None:
    path = written(tmp_path_factory.mktemp("trace") / "t.jsonl", [], prompt=prompt)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
    assert read_trace(path).prompt == prompt


def test_each_step_is_in_the_file_before_the_next(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, TraceFile(**HEADER)) as writer:
        assert read_trace(path).steps == ()
        for number, step in enumerate(made_steps(pieces(TEXT)[:3]), 1):
            writer.write(step)
            assert len(read_trace(path).steps) == number


def test_a_step_without_a_trace_is_kept(tmp_path) -> None:
    step = Step(b"a", "a", 1.0, (True,), finish_reason="length")
    found = read_trace(written(tmp_path / "t.jsonl", [step]))
    assert found.steps == (replace(step, stayed=(), finish_reason=None),)
    assert (found.finish_reason, found.usage) == ("length", None)
    assert summarize(found.members, found.steps).tokens == 1


@pytest.mark.parametrize("lost", [1, 2, 40, 500])
def test_an_interrupted_file_is_read_up_to_its_end(path, lost) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    found = read_trace(path)
    if lost == 1:
        # Only the line end is missing.
        assert (found.finish_reason, found.notes) == ("stop", ())
        return
    assert found.finish_reason is None
    assert any("incomplete" in note for note in found.notes)
    assert any("interrupted" in note for note in found.notes)
    assert len(found.steps) in (12, 13)


def test_a_file_that_ends_between_two_steps_says_so(path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    found = read_trace(path)
    assert len(found.steps) == 4
    assert found.notes == ("the run was interrupted: the end of the answer is missing",)


def changed(**values: object):
    return lambda line: {**line, **values}


def without(key: str):
    return lambda line: {k: v for k, v in line.items() if k != key}


def in_ballot(**values: object):
    return lambda line: {**line, "ballots": [{**line["ballots"][0], **values}]}


@pytest.mark.parametrize(
    ("number", "change", "problem"),
    [
        (1, changed(schema=2), "schema 2"),
        (1, changed(kind="log"), "kind 'log'"),
        (1, changed(settings={"gate": math.nan}), "line 1 holds what no trace says: Out of range"),
        (1, changed(settings={"gate": math.inf}), "line 1 holds what no trace says"),
        (1, changed(pivot="other"), "names 'other', which is no member"),
        (1, changed(members="trio"), "members must be a list of texts, not 'trio'"),
        (
            1,
            changed(prompt=[{"role": "cook", "content": ""}]),
            'line 1: prompt[0].role must be "assistant" or',
        ),
        (1, without("settings"), "settings is missing"),
        (3, without("hex"), "line 3: hex is missing"),
        (3, changed(hex="0"), "hex must be bytes in hexadecimal, not '0'"),
        (3, changed(probability="high"), "probability must be a number, not 'high'"),
        (3, changed(probability=1.5), "probability must be from 0 to 1, not 1.5"),
        (3, changed(probability=True), "probability must be a number, not true"),
        (3, changed(probability=float("nan")), "probability must be a number, not nan"),
        (3, changed(probability=10**400), "probability must be a number, not 1000"),
        (3, changed(kind="note"), "kind 'note'"),
        (3, changed(top={}), "top must be a list of objects, not {}"),
        (3, changed(top=[1]), "line 3: top[0] is no JSON object"),
        (3, in_ballot(member="stranger"), "line 3 names 'stranger', which is no member"),
        (3, in_ballot(stayed=1), "line 3: ballots[0].stayed must be true or false, not 1"),
        (3, lambda _: [], "line 3 is no JSON object"),
        (3, lambda _: b"{", "line 3 is no JSON"),
        (3, lambda _: b'{"a": "\xff"}', "line 3 is no JSON"),
        (3, lambda _: b"", "line 3 is no JSON"),
        (3, lambda _: b"[" * 100_000, "line 3 is no JSON"),
        (
            15,
            changed(finish_reason="tired"),
            'finish_reason must be "cancelled" or "length" or "stop" or "tool_calls"',
        ),
        (
            15,
            lambda line: {**line, "usage": {**line["usage"], "steps": -1}},
            "line 15: usage.steps must be at least 0, not -1",
        ),
        (15, lambda line: {**line, "usage": {**line["usage"], "members": []}}, "other members"),
        (14, lambda _: {"kind": "end", "finish_reason": "stop", "usage": None}, "after the end"),
    ],
)
def test_anything_else_is_an_error_that_names_the_line(path, number, change, problem) -> None:
    rewritten(path, number, change(lines(path)[number - 1]))
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert problem in str(caught.value)
    assert f"line {15 if number == 14 else number}" in str(caught.value)


def test_a_file_without_a_header_is_no_trace(tmp_path) -> None:
    for data in (b"", b'{"schema": 1, "ki'):
        (tmp_path / "t.jsonl").write_bytes(data)
        with pytest.raises(InputError, match="holds no trace"):
            read_trace(tmp_path / "t.jsonl")


def test_files_that_cannot_be_opened_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        TraceWriter(tmp_path / "no" / "folder.jsonl", TraceFile(**HEADER))


def test_two_runs_do_not_write_one_trace(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, TraceFile(**HEADER)) as writer:
        with pytest.raises(InputError, match="is being written by another process"):
            TraceWriter(path, TraceFile(**HEADER))
        writer.write(made_steps(pieces(TEXT)[:1])[0])
    assert len(read_trace(path).steps) == 1


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match="/dev/full cannot be written"):
        TraceWriter(full, TraceFile(**HEADER))


def by_hand(*votes: tuple[str, float, bool, float, float], chosen: bytes = b"a") -> Step:
    """Return a step from (first choice, share of the chosen, stayed, weight, seconds)."""
    ballots = tuple(
        Ballot(name, (Candidate(top.encode(), 0.6),) if top else (), share, stays, "", weight, s)
        for name, (top, share, stays, weight, s) in zip(MEMBERS, votes, strict=False)
    )
    stayed = tuple(ballot.stayed for ballot in ballots)
    others = dissenters(chosen, ballots)
    return Step(chosen, "", 0.5, stayed, trace=Trace((), ballots), dissenters=others)


def test_the_numbers_of_a_trace_by_hand() -> None:
    steps = (
        # Agreed; the second gives the larger part. The first step reads the prompt.
        by_hand(("a", 0.6, True, 0.5, 9.0), ("a", 0.8, True, 0.5, 5.0)),
        # The second would have chosen otherwise, and was filtered.
        by_hand(("a", 0.6, True, 1.0, 0.010), ("b", 0.1, False, 0.0, 0.004)),
        # The second was not asked: nothing is disputed.
        by_hand(("a", 0.6, True, 1.0, 0.030), ("", 0.0, False, 0.0, 0.0)),
        # Nobody was filtered, but the second would have gone on.
        by_hand(("", 0.6, True, 0.7, 0.020), ("b", 0.1, True, 0.3, 0.002), chosen=b""),
    )
    found = summarize(MEMBERS[:2], steps)
    assert (found.tokens, found.disputed, found.probability) == (3, 2, 0.5)
    first, second = found.members
    assert (first.carried, first.filtered) == (3, 0)
    assert (second.carried, second.filtered) == (1, 1)
    assert first.weight == pytest.approx((0.5 + 1 + 1 + 0.7) / 4)
    assert second.weight == pytest.approx((0.5 + 0 + 0.3) / 3)
    assert first.decode_ms == pytest.approx(20)
    assert second.decode_ms == pytest.approx(3)


def test_the_command_writes_the_page_beside_the_trace(path, capsysbinary) -> None:
    assert cli.main(["trace", str(path)]) == 0
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert b"run.html: 12 tokens" in err
    other = path.with_name("other.html")
    assert cli.main(["trace", str(path), "-o", str(other)]) == 0
    assert other.read_text(encoding="utf-8") == page
    capsysbinary.readouterr()
    assert cli.main(["trace", str(path), "-o", "-"]) == 0
    assert capsysbinary.readouterr() == (page.encode(), b"")


def test_the_command_says_what_is_missing_and_never_writes_over_the_trace(path, capsys) -> None:
    path.write_bytes(path.read_bytes()[:-9])
    assert cli.main(["trace", str(path)]) == 0
    assert "was interrupted" in capsys.readouterr().err
    before = path.read_bytes()
    assert cli.main(["trace", str(path), "-o", str(path)]) == 2
    assert path.read_bytes() == before
    assert cli.main(["trace", str(path), "-o", str(path / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert cli.main(["trace", "missing.jsonl"]) == 2
