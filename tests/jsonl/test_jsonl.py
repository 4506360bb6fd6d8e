"""Files of records: whole or not at all, whatever comes between."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import awkward_text

from eva_local import jsonl
from eva_local.engine.detokenizer import harmless
from eva_local.errors import InputError
from eva_local.jsonl import JsonlFile, is_torn, json_line, replace_file

WRITER = Path(__file__).parents[1] / "jsonl_writer.py"

records = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.one_of(awkward_text, st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=4,
)


def opened(path: Path, *, busy: str | None = "is busy", create: bool = True) -> JsonlFile:
    return JsonlFile(path, f"{path} refuses", busy=busy, create=create)


def found(path: Path) -> list[dict]:
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


@given(records)
def test_a_record_is_one_line_to_any_reader(record) -> None:
    line = json_line(record)
    assert json.loads(line) == record
    assert len(line.decode().splitlines()) == 1


def test_a_line_is_harmless_to_print() -> None:
    record = {"text": "\x1b\x7f\x9b2J\u2028\u202e\u2066é中", "half": "\udc80"}
    line = json_line(record)
    assert json.loads(line) == record
    assert harmless(line.decode()) == line.decode()
    assert "é中" in line.decode()


def test_what_json_has_no_number_for_is_no_record() -> None:
    with pytest.raises(ValueError):
        json_line({"a": float("nan")})


@given(records)
def test_every_beginning_of_a_record_is_torn_and_a_whole_one_is_not(record) -> None:
    line = json_line(record)
    assert all(is_torn(line[:size]) for size in range(1, len(line) - 1))
    assert not is_torn(line)
    assert not is_torn(line[:-1])


@pytest.mark.parametrize(
    ("line", "torn"),
    [
        (b"", False),
        (b"notes", False),
        (b"[1", False),
        (b"{a", False),
        (b"{}", False),
        (b'{"a": 1', True),
        (b'{"a": "\xc3', True),
        (b'{"a": ' + b"[" * 100_000, True),
        # A power cut may leave zeros.
        (b"\0\0\0", True),
        (b'{"a": \0\0', True),
    ],
)
def test_what_no_record_begins_like_is_not_torn(line, torn) -> None:
    assert is_torn(line) is torn


@settings(max_examples=60)
@given(st.lists(records, min_size=1, max_size=5), st.floats(0, 1), st.booleans())
def test_wherever_a_file_is_cut_it_goes_on_behind_its_last_whole_record(
    tmp_path_factory, several, cut, alone
) -> None:
    path = tmp_path_factory.mktemp("cut") / "r.jsonl"
    file = opened(path)
    file.append(*several)
    file.close()
    data = path.read_bytes()
    place = round(cut * len(data))
    path.write_bytes(data[:place])
    # A record without its line end is whole.
    whole = data[: place + 1].count(b"\n")
    file = opened(path, busy="is busy" if alone else None)
    if alone:
        file.mend()
    file.append({"later": 1})
    file.close()
    assert found(path) == [*several[:whole], {"later": 1}]


def writer(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(WRITER), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def told(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the records that a writer says are written."""
    return [int(line) for line in process.communicate()[0].splitlines()]


def test_nothing_is_lost_to_a_writer_that_is_killed_at_any_moment(tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    moments = random.Random(7)
    kept: list[tuple[str, int]] = []
    torn = 0
    for run in range(16):
        after = moments.randrange(100, 4000)
        process = writer(path, run, 100, 3, after, "alone")
        kept += [(str(run), number) for number in told(process)]
        assert process.returncode == -signal.SIGKILL
        # Until it is mended, at most the last line is torn.
        *lines, last = path.read_bytes().split(b"\n")
        there = [json.loads(line) for line in lines]
        assert not last or is_torn(last) or json.loads(last)
        torn += is_torn(last)
        # It may be killed before it can say so.
        assert set(kept) <= {(line["writer"], line["number"]) for line in there}
    assert torn
    file = opened(path)
    file.mend()
    file.close()
    assert len(found(path)) >= len(kept) > 50


def test_processes_take_turns_and_mend_what_one_left_that_was_killed(tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"torn')
    calls = {"a": 0, "b": 900, "c": 0, "d": 1500}
    writers = {name: writer(path, name, 100, 3, after, "turns") for name, after in calls.items()}
    for process in writers.values():
        process.stdin.close()
        process.stdin = None
    kept = {(name, number) for name, process in writers.items() for number in told(process)}
    codes = {name: process.returncode for name, process in writers.items()}
    assert codes == {"a": 0, "b": -signal.SIGKILL, "c": 0, "d": -signal.SIGKILL}
    file = opened(path)
    file.mend()
    file.close()
    there = [(line["writer"], line["number"]) for line in found(path)]
    assert len(set(there)) == len(there)
    assert kept <= set(there)
    assert {("a", 99), ("c", 99)} <= kept


def test_one_process_at_a_time(tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    file = opened(path)
    before = descriptors()
    with pytest.raises(InputError, match="is busy"):
        opened(path)
    assert descriptors() == before
    file.append({"a": 1})
    file.close()
    file.close()
    opened(path).close()
    assert found(path) == [{"a": 1}]


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def is_even(line: bytes) -> bool:
    return json.loads(line)["n"] % 2 == 0


def test_lines_are_taken_out_of_a_file_that_stays_what_it_is(tmp_path) -> None:
    path, link = tmp_path / "r.jsonl", tmp_path / "link.jsonl"
    path.touch()
    path.chmod(0o640)
    link.symlink_to(path)
    file = opened(link)
    file.append(*({"n": n} for n in range(5)))
    file.keep(is_even)
    file.append({"n": 6})
    assert [line["n"] for line in found(path)] == [0, 2, 4, 6]
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    # It is still ours.
    with pytest.raises(InputError, match="is busy"):
        opened(path)
    file.close()
    opened(path).close()
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_who_opened_a_file_before_it_was_exchanged_does_not_write_it(tmp_path, monkeypatch) -> None:
    path, other = tmp_path / "r.jsonl", tmp_path / "other.jsonl"
    path.write_bytes(b'{"n": 1}\n')
    other.write_bytes(b'{"n": 2}\n')
    lock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if other.exists():
            other.replace(path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    before = descriptors()
    with pytest.raises(InputError, match="is busy"):
        opened(path)
    assert descriptors() == before
    assert found(path) == [{"n": 2}]


@contextlib.contextmanager
def full_at(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk does.

    The log of the tests may be a file, too: meanwhile nothing may be written there.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("busy", ["is busy", None])
def test_a_full_disk_leaves_whole_records(tmp_path, busy) -> None:
    path = tmp_path / "r.jsonl"
    file = opened(path, busy=busy)
    file.append({"n": 0})
    for _ in range(2):
        with full_at(30), pytest.raises(InputError, match="refuses: File too large"):
            file.append({"n": 1}, {"n": 2}, {"n": 3}, {"n": 4})
        assert found(path) == [{"n": 0}]
    file.append({"n": 5})
    file.close()
    assert found(path) == [{"n": 0}, {"n": 5}]


def test_what_does_not_fit_twice_is_not_exchanged(tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    file = opened(path)
    file.append(*({"n": n} for n in range(8)))
    before = descriptors()
    with full_at(20), pytest.raises(InputError, match="refuses: File too large"):
        file.keep(is_even)
    assert descriptors() == before
    assert len(found(path)) == 8
    file.keep(is_even)
    file.close()
    assert len(found(path)) == 4


def test_an_interrupted_record_is_taken_back(tmp_path, monkeypatch) -> None:
    path = tmp_path / "r.jsonl"
    file = opened(path)
    file.append({"n": 0})

    def interrupted(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "write_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.append({"n": 1})
    file.append({"n": 2})
    file.close()
    assert found(path) == [{"n": 0}, {"n": 2}]


def test_what_cannot_be_opened_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="refuses: Is a directory"):
        opened(tmp_path)
    with pytest.raises(InputError, match="refuses: No such file or directory"):
        opened(tmp_path / "no" / "r.jsonl")
    with pytest.raises(InputError, match="refuses: No such file or directory"):
        opened(tmp_path / "r.jsonl", create=False)
    assert list(tmp_path.iterdir()) == []


def test_devices_and_pipes_are_written_by_anyone(tmp_path) -> None:
    for busy in ("is busy", None):
        files = [opened(Path(os.devnull), busy=busy) for _ in range(2)]
        for file in files:
            file.restart()
            file.append({"n": 1})
            file.close()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        file = opened(pipe)
        file.append({"n": 1})
        file.append({"n": 2})
        file.close()
        assert reader.communicate()[0] == b'{"n": 1}\n{"n": 2}\n'


def test_a_device_that_is_full_is_an_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    file = opened(full)
    with pytest.raises(InputError, match="/dev/full refuses: No space left on device"):
        file.append({"n": 1})
    file.close()


def test_a_file_is_replaced_whole_or_stays(tmp_path) -> None:
    path = tmp_path / "page"
    replace_file(path, b"old")
    with full_at(5), pytest.raises(OSError, match="File too large"):
        replace_file(path, b"something new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"something new")
    assert path.read_bytes() == b"something new"
    assert list(tmp_path.iterdir()) == [path]
