"""Folders, and inputs and outputs at addresses, through the filesystems that fsspec has itself."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest
from batches import Stop, do, errand, fake_spec, texts, write_rows

from eva_local.batch import places
from eva_local.errors import InputError
from eva_local.models.store import cache_folder

N_ROWS = 12


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """An object store in memory; the cache of this test alone."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def spec(tmp_path):
    return fake_spec(tmp_path)


@pytest.fixture
def rows(tmp_path, memory) -> str:
    path = write_rows(tmp_path / "in.jsonl", N_ROWS)
    memory.put_file(str(path), "/bucket/in.jsonl")
    return "memory://bucket/in.jsonl"


def fetched(memory, tmp_path) -> Path:
    here = tmp_path / "fetched.jsonl"
    memory.get_file("/bucket/out.jsonl", str(here))
    return here


def copies() -> list[Path]:
    return [path for path in cache_folder().rglob("*") if path.is_file() and path.name != "lock"]


def test_an_address_is_read_and_written(spec, rows, memory, tmp_path) -> None:
    job = errand(rows, "memory://bucket/out.jsonl", spec)
    assert do(job).n_done == N_ROWS
    do(errand(tmp_path / "in.jsonl", tmp_path / "here.jsonl", spec))
    assert texts(fetched(memory, tmp_path)) == texts(tmp_path / "here.jsonl")
    assert memory.exists("/bucket/out.jsonl.manifest.json")
    assert not copies()
    assert do(job).before.n_rows == N_ROWS


def test_an_interrupted_job_goes_on_from_what_is_there(spec, rows, memory, tmp_path) -> None:
    job = errand(rows, "memory://bucket/out.jsonl", spec)
    first = do(job, stopped=Stop(9))
    assert 0 < first.n_done < N_ROWS
    # As on another machine, which has no copy.
    shutil.rmtree(cache_folder())
    rest = do(job)
    assert (rest.before.n_rows, rest.n_done) == (first.n_done, N_ROWS - first.n_done)
    assert len(texts(fetched(memory, tmp_path))) == N_ROWS


def test_rows_that_could_not_be_sent_are_kept_and_sent_next_time(
    spec, rows, memory, tmp_path, monkeypatch
) -> None:
    job = errand(rows, "memory://bucket/out.jsonl", spec)
    with monkeypatch.context() as patch:

        def refused(*_: object) -> None:
            raise PermissionError(13, "no leave to write")

        patch.setattr(type(memory), "put_file", refused)
        with pytest.raises(InputError, match=r"cannot be written; its rows wait in .*no leave"):
            do(job)
    assert not memory.exists("/bucket/out.jsonl")
    assert len(copies()) == 2
    assert do(job).before.n_rows == N_ROWS
    assert len(texts(fetched(memory, tmp_path))) == N_ROWS
    assert not copies()


def no_leave(*_: object, **__: object) -> None:
    raise PermissionError(13, "no leave to read")


def test_what_cannot_be_looked_at_is_not_written_over(spec, rows, memory, monkeypatch) -> None:
    memory.pipe_file("/bucket/out.jsonl", b"My diary.\n")
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "info", no_leave)
        with (
            pytest.raises(InputError, match=r"out\.jsonl: cannot be written: no leave"),
            places.kept("memory://bucket/out.jsonl"),
        ):
            pass
    assert memory.cat_file("/bucket/out.jsonl") == b"My diary.\n"


def test_an_output_that_came_in_part_is_fetched_again(
    spec, rows, memory, tmp_path, monkeypatch
) -> None:
    job = errand(rows, "memory://bucket/out.jsonl", spec)
    do(job)
    with monkeypatch.context() as patch:

        def torn(_: object, there: str, here: str) -> None:
            data = memory.cat_file(there)
            is_manifest = there.endswith(".json")
            Path(here).write_bytes(data if is_manifest else data[:40])
            if not is_manifest:
                raise ConnectionResetError(104, "the server went away")

        patch.setattr(type(memory), "get_file", torn)
        with pytest.raises(InputError, match="went away"):
            do(job)
    assert do(job).before.n_rows == N_ROWS
    assert len(texts(fetched(memory, tmp_path))) == N_ROWS


def test_an_input_that_breaks_while_it_is_read_is_one_error(spec, tmp_path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in.txt", "".join(f"the {n}\n" for n in range(2000)))
    data = bytearray(path.read_bytes())
    data[45:60] = bytes(15)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"in\.zip: cannot be read: "):
        do(errand(f"zip://in.txt::{path}", tmp_path / "out.jsonl", spec))


def test_a_copy_that_another_machine_has_gone_on_with_is_of_no_use(
    spec, rows, memory, tmp_path, monkeypatch
) -> None:
    job = errand(rows, "memory://bucket/out.jsonl", spec)
    here, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    do(job, stopped=Stop(9))
    with places.kept(job.target) as copy:
        # As if it had been killed now.
        shutil.copytree(here, tmp_path / "kept")
        assert Path(copy).exists()
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(elsewhere))
    assert do(job).finished
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "kept"))
    assert do(job, stopped=Stop(0)).before.n_rows == N_ROWS
    assert len(texts(fetched(memory, tmp_path))) == N_ROWS


def test_a_refusal_names_the_address_and_changes_nothing(spec, rows, memory) -> None:
    memory.pipe_file("/bucket/out.jsonl", b"My diary.\n")
    with pytest.raises(InputError, match=r"bucket/out\.jsonl is there already"):
        do(errand(rows, "memory://bucket/out.jsonl", spec))
    assert memory.cat_file("/bucket/out.jsonl") == b"My diary.\n"
    assert not copies()


def test_one_process_at_a_time_writes_an_address(spec, rows, memory) -> None:
    with places.kept("memory://bucket/out.jsonl") as copy:
        Path(copy).write_text("mine")
        Path(f"{copy}.manifest.json").write_text("{}")
        with pytest.raises(InputError, match="written by another process"):
            do(errand(rows, "memory://bucket/out.jsonl", spec))
        assert Path(copy).read_text() == "mine"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("memory://bucket/none.jsonl", "memory://bucket/none.jsonl: cannot be read"),
        ("nowhere://bucket/in.jsonl", "nowhere"),
        ("s3://bucket/in.jsonl", "Install s3fs"),
    ],
)
def test_what_cannot_be_reached(spec, address, told, tmp_path) -> None:
    with pytest.raises(InputError, match=told):
        do(errand(address, tmp_path / "out.jsonl", spec))


def test_the_files_of_a_folder_have_an_output_each(tmp_path) -> None:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for name in ("b.txt", "a.jsonl", ".hidden", "a.jsonl.manifest.json", "below/c.txt"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe")
    for name, end in (("link", "b.txt"), ("folder", "below"), ("nowhere", "none")):
        (folder / name).symlink_to(end)
    out = tmp_path / "out"
    for source, target in ((str(folder), f"{out}/"), (f"file://{folder}", f"file://{out}/")):
        assert places.pairs(source, target) == [
            (f"{folder}/a.jsonl", f"{out}/a.jsonl"),
            (f"{folder}/b.txt", f"{out}/b.txt.jsonl"),
            (f"{folder}/link", f"{out}/link.jsonl"),
        ]
        assert out.is_dir()
        out.rmdir()
    assert places.pairs("-", "-") == [("-", "-")]
    assert places.pairs("memory://in.jsonl", "x") == [("memory://in.jsonl", "x")]


def test_folders_that_are_refused(tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        places.pairs(str(folder), str(tmp_path / "out"))
    (folder / "a.txt").touch()
    for target in ("-", f"{folder}/", f"{tmp_path}/x/../in"):
        with pytest.raises(InputError, match="give another folder"):
            places.pairs(str(folder), target)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made: File exists"):
        places.pairs(str(folder), str(tmp_path / "file"))
    (folder / "a.txt.jsonl").touch()
    with pytest.raises(InputError, match="one output"):
        places.pairs(str(folder), str(tmp_path / "out"))
    for nowhere in ("nowhere://bucket/", "memory://bucket/none/"):
        with pytest.raises(InputError, match="cannot be read"):
            places.pairs(nowhere, "out")
    with pytest.raises(InputError, match="out/ is a folder, and"):
        places.pairs("in.txt", "memory://bucket/out/")


def test_a_folder_at_an_address(memory, tmp_path) -> None:
    memory.pipe({"/bucket/in/a.txt": b"the", "/bucket/in/b.txt": b"one"})
    found = places.pairs("memory://bucket/in/", "memory://bucket/out/")
    assert found == [
        (f"memory://bucket/in/{name}", f"memory://bucket/out/{name}.jsonl")
        for name in ("a.txt", "b.txt")
    ]
