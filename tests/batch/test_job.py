"""Whole jobs on fake models: nothing is lost, nothing is done twice, nothing is mixed up."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from batches import Stop, do, errand, fake_ensemble, fake_spec, results, texts, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from eva_local.batch.forms import JsonLines, Wishes
from eva_local.batch.job import carry_out
from eva_local.batch.results import FileResults
from eva_local.errors import InputError, ModelError
from eva_local.types import Sampling

N_KILLS = 20


@pytest.fixture
def spec(tmp_path):
    return fake_spec(tmp_path)


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "in.jsonl", 12)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def test_every_row_is_answered_once_and_as_alone(spec, rows, out, tmp_path) -> None:
    outcome = do(errand(rows, out, spec))
    assert outcome.finished
    assert (outcome.n_done, outcome.n_failed) == (12, 0)
    assert set(texts(out)) == {f"row-{number}" for number in range(12)}
    one = tmp_path / "one.jsonl"
    do(errand(rows, one, spec), parallel=1)
    assert texts(one) == texts(out)
    assert outcome.n_tokens == sum(row["usage"]["steps"] for row in results(out))


def test_options_of_a_row_win(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    lines = [{"prompt": "the", "max_tokens": n, "logit_bias": {"the": 100}} for n in (1, 2, 3)]
    rows.write_text("\n".join(map(json.dumps, lines)))
    do(errand(rows, out, spec))
    assert texts(out) == {f"line {n}": n * "the" for n in (1, 2, 3)}


def test_bad_rows_are_rows_with_an_error_and_the_others_go_on(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    good = '{"id": "good", "prompt": "the"}'
    long = json.dumps({"id": "long", "prompt": "z" * 5000})
    bias = json.dumps({"id": "bias", "prompt": "a", "logit_bias": {"no such symbol": 1}})
    schema = json.dumps({"id": "schema", "prompt": "a", "json_schema": {"type": "nonsense"}})
    cyclic = json.dumps({"id": "cyclic", "prompt": "a", "json_schema": {"$ref": "#"}})
    half = json.dumps({"id": "half", "prompt": "a", "logit_bias": {"\ud800": 1}})
    endless = json.dumps({"id": "endless", "prompt": "a", "logit_bias": {"the": 10**400}})
    rows.write_text(
        "\n".join([good, "{bad", long, bias, schema, '{"prompt": "un"}', half, endless, cyclic])
    )
    outcome = do(errand(rows, out, spec))
    assert outcome.finished
    assert outcome.n_failed == 7
    errors = {row["id"]: row["error"]["message"] for row in results(out) if "error" in row}
    assert set(errors) == {"line 2", "long", "bias", "schema", "half", "endless", "cyclic"}
    assert errors["line 2"].startswith("line 2: is no JSON")
    assert "does not fit" in errors["long"]
    assert "no symbol of the shared space" in errors["bias"]
    assert errors["schema"].startswith("line 5: json_schema")
    assert errors["cyclic"].startswith("line 9: json_schema: the grammar asks for")
    assert texts(out)["good"]
    assert texts(out)["line 6"]


def test_logprobs_on_request(spec, rows, out) -> None:
    do(errand(rows, out, spec, wishes={"n_top": 2}))
    for row in results(out):
        assert len(row["logprobs"]) <= row["usage"]["steps"]
        for token in row["logprobs"]:
            assert token["logprob"] <= 0
            assert len(token["top_logprobs"]) == 2
            assert token["top_logprobs"][0]["logprob"] == token["logprob"]
    plain = out.with_name("plain.jsonl")
    do(errand(rows, plain, spec))
    assert "logprobs" not in results(plain)[0]
    assert texts(plain) == texts(out)


def test_an_interrupted_job_goes_on(spec, rows, out, tmp_path) -> None:
    whole = tmp_path / "whole.jsonl"
    do(errand(rows, whole, spec))
    n_done = 0
    for _ in range(40):
        outcome = do(errand(rows, out, spec), stopped=Stop(8))
        assert outcome.before.n_rows == n_done
        n_done += outcome.n_done
        assert len(texts(out)) == n_done
        if outcome.finished:
            break
    assert 1 < n_done == 12
    assert texts(out) == texts(whole)
    again = do(errand(rows, out, spec))
    assert again.finished
    assert again.n_rows == 0


def test_new_rows_may_be_added_to_the_input(spec, rows, out) -> None:
    do(errand(rows, out, spec))
    with rows.open("a") as file:
        file.write('{"id": "more", "prompt": "the"}\n')
    outcome = do(errand(rows, out, spec))
    assert (outcome.before.n_rows, outcome.n_done) == (12, 1)
    assert len(texts(out)) == 13


def test_rows_may_be_added_and_removed_while_the_job_runs(spec, out, tmp_path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 6)
    added = []

    def add(_progress) -> None:
        if not added:
            with rows.open("a") as file:
                added.append(file.write('{"id": "late", "prompt": "the"}\n'))

    outcome = do(errand(rows, out, spec), told=add)
    assert outcome.finished
    assert (outcome.n_done, outcome.n_rows) == (7, 7)
    assert "late" in texts(out)
    # More than is read of a file at once.
    rows = write_rows(tmp_path / "many.jsonl", 300)
    size = sum(map(len, rows.read_bytes().splitlines(keepends=True)[:250]))
    job = errand(rows, tmp_path / "many.out", spec, sampling=Sampling(max_tokens=1))
    outcome = do(job, told=lambda _: os.truncate(rows, size))
    assert outcome.finished
    assert (outcome.n_done, outcome.n_failed) == (250, 0)


@pytest.mark.parametrize("late", [["row-1"], ["late", "late"], ["late", "row-5"]])
def test_a_row_that_comes_while_the_job_runs_doubles_no_id(spec, out, tmp_path, late) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 6)
    added = []

    def add(_progress) -> None:
        if not added:
            with rows.open("a") as file:
                added.extend(file.write(f'{{"id": "{id_}", "prompt": "the"}}\n') for id_ in late)

    with pytest.raises(InputError, match=f"line {6 + len(late)} has '{late[-1]}', as a row before"):
        do(errand(rows, out, spec), told=add)
    # An id that is there twice fails here.
    assert set(texts(out)) <= {*(f"row-{number}" for number in range(6)), "late"}
    with pytest.raises(InputError, match=f"'{late[-1]}' in lines"):
        do(errand(rows, out, spec))


def test_a_signal_during_the_last_step_interrupts_nothing(spec, rows, out) -> None:
    done = []
    outcome = do(
        errand(rows, out, spec),
        told=lambda progress: done.append(progress.n_done),
        stopped=lambda: done[-1:] == [12],
    )
    assert outcome.finished
    assert outcome.n_done == 12


def test_rows_known_by_their_line_must_not_change(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.txt"
    rows.write_text("the\nun\n")
    do(errand(rows, out, spec))
    before = out.read_bytes()
    rows.write_text("the\nun\ning\n")
    assert do(errand(rows, out, spec)).n_done == 1
    rows.write_text("a new first line\nthe\nun\ning\n")
    with pytest.raises(InputError, match="line 1 of the input is not what was answered before"):
        do(errand(rows, out, spec))
    assert out.read_bytes().startswith(before)
    assert do(errand(rows, out, spec, restart=True)).n_done == 4
    assert len(texts(out)) == 4


def test_failed_rows_are_tried_again_on_request(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"id": "a", "prompt": "the"}\n{"id": "b", "prompt": 5}\n{bad\n')
    do(errand(rows, out, spec))
    assert do(errand(rows, out, spec)).n_failed == 2
    rows.write_text('{"id": "a", "prompt": "the"}\n{"id": "b", "prompt": "un"}\n{"prompt": "a"}\n')
    # Without an id of its own, the third line is not known by what it says now.
    with pytest.raises(InputError, match="line 3"):
        do(errand(rows, out, spec))
    outcome = do(errand(rows, out, spec, retry_errors=True))
    assert (outcome.before.n_rows, outcome.n_done, outcome.n_failed) == (1, 2, 0)
    assert None not in texts(out).values()
    assert set(texts(out)) == {"a", "b", "line 3"}
    assert not list(out.parent.glob("*.part"))


def test_a_link_to_the_output_stays_one(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    out.symlink_to(folder / "real.jsonl")
    rows.write_text('{"id": "a", "prompt": "the"}\n{"id": "b", "prompt": 5}\n')
    assert do(errand(rows, out, spec)).n_failed == 1
    rows.write_text('{"id": "a", "prompt": "the"}\n{"id": "b", "prompt": "un"}\n')
    assert do(errand(rows, out, spec, retry_errors=True)).n_failed == 0
    assert out.is_symlink()
    assert set(texts(folder / "real.jsonl")) == {"a", "b"}
    assert [path.name for path in folder.iterdir()] == ["real.jsonl"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampling": Sampling(max_tokens=7)}, "max_tokens was 6 and is 7"),
        ({"wishes": {"system": "Be kind."}}, 'system was null and is "Be kind."'),
        ({"wishes": {"raw": True}}, "raw was false and is true"),
        ({"form": "text"}, 'format was "jsonl" and is "text"'),
    ],
)
def test_another_job_is_refused_until_restart(spec, rows, out, change, named) -> None:
    do(errand(rows, out, spec), stopped=Stop(9))
    before = out.read_bytes()
    assert before
    with pytest.raises(InputError, match="was begun otherwise") as raised:
        do(errand(rows, out, spec, **change))
    assert named in str(raised.value)
    assert out.read_bytes() == before
    assert do(errand(rows, out, spec, restart=True, **change)).finished
    assert len(texts(out)) == 12


def test_other_models_settings_and_mappings_are_refused(spec, rows, out, tmp_path) -> None:
    do(errand(rows, out, spec), stopped=Stop(9))
    fusion = replace(spec, fusion=replace(spec.fusion, combine="geometric"))
    with pytest.raises(InputError, match='combine was "mean" and is "geometric"'):
        do(errand(rows, out, fusion))
    member = spec.members[0]
    longer = replace(member, load=replace(member.load, n_ctx=99))
    with pytest.raises(InputError, match="n_ctx was 4096 and is 99"):
        do(errand(rows, out, replace(spec, members=(longer, *spec.members[1:]))))
    threads = replace(member, load=replace(member.load, threads=1))
    do(errand(rows, out, replace(spec, members=(threads, *spec.members[1:]))), stopped=Stop(1))
    mapping = tmp_path / "some.npz"
    mapping.write_bytes(b"another mapping")
    sums = {mapping.name: sha256(mapping.read_bytes()).hexdigest()}

    class Mapped:
        """The ensemble, with a mapping that was not there before."""

        def __new__(cls, _count):
            ensemble = fake_ensemble(spec)
            ensemble.mapping_files = lambda: sums
            return ensemble

    with pytest.raises(InputError, match=r"was begun otherwise: some\.npz was null"):
        carry_out(errand(rows, out, spec), Mapped)
    member.source.path.write_bytes(b"other weights")
    with pytest.raises(InputError, match="sha256 was"):
        do(errand(rows, out, spec))


def test_a_file_that_no_batch_wrote_is_left_alone(spec, rows, out) -> None:
    out.write_text("My diary.\n")
    with pytest.raises(InputError, match="no batch wrote it"):
        do(errand(rows, out, spec))
    assert out.read_text() == "My diary.\n"
    do(errand(rows, out, spec, restart=True))
    assert len(texts(out)) == 12


@pytest.mark.parametrize("notes", ["notes without an end", '{"prompt": "mine"}', "\0\0"])
def test_a_line_without_an_end_that_no_batch_began_is_left_alone(spec, rows, out, notes) -> None:
    do(errand(rows, out, spec))
    answered = out.read_text()
    for content in (notes, answered + notes):
        out.write_text(content)
        with pytest.raises(InputError, match="is no row of a batch"):
            do(errand(rows, out, spec))
        assert out.read_text() == content


def test_a_torn_line_is_taken_out_once_the_models_are_open(spec, rows, out) -> None:
    do(errand(rows, out, spec))
    torn = out.read_bytes()[:-5]
    out.write_bytes(torn)

    def broken(_count):
        raise ModelError("no memory")

    with pytest.raises(ModelError):
        carry_out(errand(rows, out, spec), broken)
    assert out.read_bytes() == torn
    assert do(errand(rows, out, spec)).n_done == 1
    assert len(texts(out)) == 12
    # Of a row that is wanted no more, nothing is left either.
    out.write_bytes(out.read_bytes() + b'{"id": "row-99", "te')
    assert do(errand(rows, out, spec)).n_rows == 0
    assert len(texts(out)) == 12


def test_nothing_is_thrown_away_where_the_restart_fails(spec, rows, out) -> None:
    do(errand(rows, out, spec))
    before = out.read_bytes()

    def broken(_count):
        raise ModelError("no memory")

    with pytest.raises(ModelError):
        carry_out(errand(rows, out, spec, restart=True), broken)
    rows.write_text('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n')
    with pytest.raises(InputError, match="ids must differ"):
        do(errand(rows, out, spec, restart=True))
    assert out.read_bytes() == before


def test_repeated_ids_name_their_lines(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text(
        '{"id": "x", "prompt": "a"}\n\n{"id": "x", "prompt": "b"}\n'
        '{"id": 5, "prompt": "c"}\n{"id": 5, "prompt": "d"}\n'
    )
    with pytest.raises(InputError, match=r"'x' in lines 1, 3; '5' in lines 4, 5"):
        do(errand(rows, out, spec))
    assert out.read_bytes() == b""


def test_an_empty_input_is_refused(spec, out, tmp_path) -> None:
    (tmp_path / "in.txt").write_text("\n \n")
    with pytest.raises(InputError, match="holds no row"):
        do(errand(tmp_path / "in.txt", out, spec))


def test_the_input_is_not_the_output(spec, rows) -> None:
    with pytest.raises(InputError, match="is the input itself"):
        do(errand(rows, rows, spec))


def test_two_jobs_do_not_write_one_file(spec, rows, out) -> None:
    other = FileResults(out, JsonLines(Wishes(Sampling())))
    with pytest.raises(InputError, match="being written by another process"):
        do(errand(rows, out, spec))
    other.close()
    do(errand(rows, out, spec))


@pytest.mark.parametrize("broken", ["{}", "not json", '{"id": 1}', "[]", '{"id": {}, "text": ""}'])
def test_a_broken_line_amid_the_output_is_named(spec, rows, out, broken) -> None:
    do(errand(rows, out, spec), stopped=Stop(9))
    first, *rest = out.read_text().splitlines()
    out.write_text("\n".join([first, broken, *rest]) + "\n")
    with pytest.raises(InputError, match=r"out.jsonl, line 2: is no row of a batch"):
        do(errand(rows, out, spec))


def test_a_damaged_manifest_is_refused(spec, rows, out) -> None:
    do(errand(rows, out, spec), stopped=Stop(9))
    manifest = out.with_name("out.jsonl.manifest.json")
    for content in ("", "{}", manifest.read_text().replace('"max_tokens": 6', '"max_tokens": 7')):
        manifest.write_text(content)
        with pytest.raises(InputError, match="is damaged"):
            do(errand(rows, out, spec))
    assert do(errand(rows, out, spec, restart=True)).finished


@given(cut=st.integers(0, 10**6))
@settings(max_examples=30)
def test_wherever_the_last_line_is_torn_it_is_mended(tmp_path_factory, cut) -> None:
    folder = tmp_path_factory.mktemp("torn")
    spec, rows, out = fake_spec(folder), write_rows(folder / "in.jsonl", 5), folder / "out.jsonl"
    do(errand(rows, out, spec))
    whole, data = texts(out), out.read_bytes()
    out.write_bytes(data[: cut % (len(data) + 1)])
    do(errand(rows, out, spec))
    assert texts(out) == whole


def test_a_job_killed_at_any_moment_is_finished_by_later_runs(spec, out, tmp_path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 200)
    whole = tmp_path / "whole.jsonl"
    do(errand(rows, whole, spec))
    command = [sys.executable, str(Path(__file__).parents[1] / "batches.py")]
    moments = random.Random(7)
    for _ in range(N_KILLS):
        # In calls of functions: some 100,000 open the models, and 4,000 write a row.
        since, most = ("beginning", 120_000) if moments.random() < 0.3 else ("step", 40_000)
        asked = map(str, (tmp_path, rows, out, since, moments.randrange(most)))
        run = subprocess.run([*command, *asked], check=False, capture_output=True)
        assert run.returncode == -signal.SIGKILL
    n_before = len(out.read_bytes().split(b"\n")) - 1
    assert 0 < n_before < 200
    assert do(errand(rows, out, spec)).finished
    assert texts(out) == texts(whole)


def test_rows_in_the_order_of_the_input(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    lengths = [40, 1, 5, 2, 30, 1, 1, 3]
    lines = [{"id": n, "prompt": "the", "max_tokens": size} for n, size in enumerate(lengths)]
    rows.write_text("\n".join(map(json.dumps, lines)) + "\n{bad")
    do(errand(rows, out, spec, ordered=True), stopped=Stop(12))
    do(errand(rows, out, spec, ordered=True))
    assert [row["id"] for row in results(out)] == [*range(8), "line 9"]


def test_an_order_that_cannot_be_had_is_refused(spec, rows, out) -> None:
    do(errand(rows, out, spec), stopped=Stop(9))
    kept = results(out)[-1:]
    out.write_text("".join(json.dumps({**row, "id": "row-5"}) + "\n" for row in kept))
    with pytest.raises(InputError, match="line 6 is answered already, and one before it is not"):
        do(errand(rows, out, spec, ordered=True))


def test_a_row_that_takes_long_does_not_fill_memory_with_those_behind_it(spec, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    first = json.dumps({"prompt": "the", "max_tokens": 300, "logit_bias": {"the": 200}})
    rest = json.dumps({"prompt": "the", "max_tokens": 1})
    rows.write_text("\n".join([first, *[rest] * 400]))
    out = tmp_path / "out.jsonl"
    held = []

    def told(progress) -> None:
        held.append(progress.n_done - out.read_bytes().count(b"\n"))

    do(errand(rows, out, spec, ordered=True), 2, told=told)
    assert [row["id"] for row in results(out)] == [f"line {n}" for n in range(1, 402)]
    assert 64 <= max(held) <= 64 * 2 + 2


def limited(size: int):
    """Let files grow to `size` bytes only, as a full disk does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


# The manifest, which comes first, has room.
@pytest.mark.parametrize("size", [2345, 3210])
def test_a_disk_that_is_full_leaves_whole_rows(spec, rows, out, tmp_path, size) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "batches.py")]
    run = subprocess.run(
        [*command, str(tmp_path), str(rows), str(out)],
        preexec_fn=limited(size),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError" in run.stderr
    assert "out.jsonl: cannot be written: File too large" in run.stderr
    assert 0 < len(texts(out)) < 12
    assert out.stat().st_size <= size
    assert do(errand(rows, out, spec)).finished
    assert len(texts(out)) == 12


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB that can be made read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system(spec, tmp_path, small_disk) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 300)
    out = small_disk / "out.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 20_000)
    with pytest.raises(InputError, match="No space left on device"):
        do(errand(rows, out, spec))
    written = len(texts(out))
    assert 0 < written < 300
    with pytest.raises(InputError, match="No space left on device"):
        do(errand(rows, out, spec))
    ballast.unlink()
    assert len(texts(out)) >= written
    outcome = do(errand(write_rows(tmp_path / "in.jsonl", written + 5), out, spec))
    assert outcome.finished
    assert len(texts(out)) == written + 5


def test_a_read_only_output(spec, rows, out, small_disk) -> None:
    out = small_disk / "out.jsonl"
    do(errand(rows, out, spec), stopped=Stop(9))
    before = out.read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for target in (out, small_disk / "other.jsonl"):
        with pytest.raises(InputError, match=f"{target}: cannot be written: Read-only"):
            do(errand(rows, target, spec))
    assert out.read_bytes() == before


def test_an_output_that_is_no_file(spec, rows, tmp_path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        do(errand(rows, tmp_path, spec))
    with pytest.raises(InputError, match="No such file or directory"):
        do(errand(rows, tmp_path / "no" / "out.jsonl", spec))
    with pytest.raises(InputError, match="/dev/full: cannot be written: No space left"):
        do(errand(rows, "/dev/full", spec))
    with pytest.raises(InputError, match="No such file"):
        do(errand(tmp_path / "none.jsonl", tmp_path / "out.jsonl", spec))


def test_a_pipe_is_read_and_written(spec, out, tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rows = write_rows(tmp_path / "in.jsonl", 3)
    with subprocess.Popen(["cp", str(rows), str(pipe)]):
        do(errand(pipe, out, spec))
    assert set(texts(out)) == {"row-0", "row-1", "row-2"}


def test_a_row_without_an_id_is_not_the_row_whose_id_is_its_line(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text(
        '{"id": 3, "prompt": "the"}\n{"id": "4", "prompt": "un"}\n{"prompt": "ing"}\n{bad\n'
    )
    job = errand(rows, out, spec)
    assert do(job, stopped=Stop(1)).n_done < 4
    assert do(job).finished
    assert set(texts(out)) == {3, "4", "line 3", "line 4"}
    assert do(job).n_rows == 0
    # Gone on with, what an earlier version wrote is known, too.
    kept = [row | ({"id": int(row["id"][5:])} if "row_hash" in row else {}) for row in results(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert do(job).n_rows == 0


def test_an_own_id_may_be_the_name_of_a_line(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"id": "line 2", "prompt": "the"}\n{bad\n')
    job = errand(rows, out, spec)
    assert do(job).n_failed == 1
    assert sorted((row["id"], "row_hash" in row) for row in results(out)) == [
        ("line 2", False),
        ("line 2", True),
    ]
    assert do(job).n_rows == 0


def test_broken_rows_of_openais_format_have_no_id_to_collide(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    good = {"custom_id": "2", "url": "/v1/completions", "body": {"prompt": "the"}}
    rows.write_text(json.dumps(good) + "\n{bad\n")
    assert do(errand(rows, out, spec, form="openai")).n_failed == 1
    assert sorted(str(row["custom_id"]) for row in results(out)) == ["2", "None"]
    assert do(errand(rows, out, spec, form="openai")).n_rows == 0


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.txt"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(spec, out, tmp_path, name) -> None:
    rows = tmp_path / name
    text = {"csv": "prompt,n\nthe,1\n", "jsonl": '{"prompt": "the"}\n', "txt": "the\n"}[name[3:]]
    rows.write_text(text, encoding="utf-8")
    do(errand(rows, out, spec))
    marked = out.with_name("marked.jsonl")
    rows.write_text(text, encoding="utf-8-sig")
    do(errand(rows, marked, spec))
    assert [row["row_hash"] for row in results(marked)] == [row["row_hash"] for row in results(out)]
    assert texts(marked) == texts(out)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.txt"])
def test_utf_16_is_refused(spec, out, tmp_path, name, encoding) -> None:
    (tmp_path / name).write_text("prompt\nthe\n", encoding=encoding)
    form = None if name != "in.jsonl" else "jsonl"
    with pytest.raises(InputError, match=r"in\.\w+ is no UTF-8 text but perhaps UTF-16: convert"):
        do(errand(tmp_path / name, out, spec, form=form))
    assert not out.exists()


def test_a_table_may_be_left_in_the_middle(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text("prompt\n" + "the\n" * 40)
    strange = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", strange.append)
        assert not do(errand(rows, out, spec), stopped=Stop(3)).finished
        gc.collect()
    assert strange == []


def test_a_quote_that_is_not_closed_swallows_no_row(spec, out, tmp_path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text('id,prompt\na,the\nb,"un\nc,ing\nd,end\n')
    with pytest.raises(InputError, match=r"in\.csv: line 3: cannot be read as CSV"):
        do(errand(rows, out, spec))
    assert out.read_bytes() == b""
