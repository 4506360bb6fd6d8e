"""A job in shards, and their outputs put together."""

from __future__ import annotations

import json

import pytest
from batches import do, errand, fake_spec, results, texts, write_rows

from eva_local.batch.merge import merge
from eva_local.cli import main
from eva_local.errors import InputError

N_ROWS, N_SHARDS = 13, 4


@pytest.fixture
def spec(tmp_path):
    return fake_spec(tmp_path)


@pytest.fixture
def rows(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", N_ROWS - 2)
    with path.open("a") as file:
        # One without an id, and one that cannot be read.
        file.write('{"prompt": "the"}\n{bad\n')
    return path


@pytest.fixture
def parts(spec, rows, tmp_path):
    found = [tmp_path / f"part-{number}.jsonl" for number in range(1, N_SHARDS + 1)]
    for number, path in enumerate(found, 1):
        do(errand(rows, path, spec, shard=(number, N_SHARDS)))
    return found


def test_merged_shards_are_what_one_process_writes(spec, rows, parts, tmp_path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    do(errand(rows, whole, spec))
    assert sorted(len(results(part)) for part in parts) == [3, 3, 3, 4]
    assert merge(out, parts) == (N_ROWS, 1)
    assert texts(out) == texts(whole)
    merged, written = (path.with_name(f"{path.name}.manifest.json") for path in (out, whole))
    assert json.loads(merged.read_text()) == json.loads(written.read_text())
    # The whole job is done: nothing is missing.
    assert do(errand(rows, out, spec)).n_rows == 0
    assert not list(tmp_path.glob(".*.part"))


def test_a_shard_goes_on(spec, rows, parts, tmp_path) -> None:
    lines = parts[0].read_bytes().splitlines(keepends=True)
    parts[0].write_bytes(b"".join(lines[:2]))
    out = tmp_path / "out.jsonl"
    merge(out, parts)
    # What a shard had not done yet, the job does.
    assert do(errand(rows, out, spec)).n_done == len(lines) - 2
    assert len(texts(out)) == N_ROWS
    assert do(errand(rows, parts[0], spec, shard=(1, N_SHARDS))).n_done == len(lines) - 2


def test_what_cannot_be_merged(spec, rows, parts, tmp_path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"part-1\.jsonl: row .* is in .*part-1\.jsonl too"):
        merge(out, [parts[0], parts[1], parts[0]])
    other = tmp_path / "other.jsonl"
    do(errand(rows, other, spec, wishes={"raw": True}, shard=(2, N_SHARDS)))
    with pytest.raises(InputError, match="raw was"):
        merge(out, [parts[0], other])
    with pytest.raises(InputError, match="cannot be read"):
        merge(out, [tmp_path / "nothing.jsonl"])
    with parts[1].open("ab") as file:
        file.write(b'{"id": "row-')
    with pytest.raises(InputError, match="torn"):
        merge(out, parts)
    assert not out.exists()
    out.write_text("mine")
    assert main(["merge", str(out), *map(str, parts)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["merge", str(out)]) == 2
    assert main(["merge", "-", str(parts[0])]) == 2
    assert "merge needs files" in capsys.readouterr().err


def test_more_shards_than_rows(spec, tmp_path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 2)
    parts = [tmp_path / f"part-{number}.jsonl" for number in (3, 1, 2)]
    for path in parts:
        do(errand(rows, path, spec, shard=(int(path.stem[-1]), 3)))
    out = tmp_path / "out.jsonl"
    assert merge(out, parts) == (2, 0)
    assert do(errand(rows, out, spec)).n_rows == 0
    # A shard without a row takes those that come later.
    write_rows(rows, 3)
    assert do(errand(rows, parts[0], spec, shard=(3, 3))).n_done == 1
    merge(tmp_path / "all.jsonl", parts)
    assert do(errand(rows, tmp_path / "all.jsonl", spec)).n_rows == 0


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_what_is_no_shard(shard, capsys) -> None:
    assert main(["batch", "in", "out", "--shard", shard]) == 2
    assert f"--shard '{shard}': give I/N" in capsys.readouterr().err
