"""Where rows and answers lie: files, folders, and what fsspec reaches (`s3://…`, `https://…`)."""

import contextlib
import fcntl
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from eva_local.batch.results import MANIFEST, manifest_of
from eva_local.errors import InputError
from eva_local.models.store import cache_folder

#: What addresses have, and files of this machine have not.
ELSEWHERE = "://"


def pairs(source: str, target: str) -> list[tuple[str, str]]:
    """Return the input with its output; of a folder, each of its files with one in `target`.

    An address is a folder where it ends with a slash. What is no file, hidden files and manifests
    are left out. Raises InputError for a folder without a file, or outputs that cannot be.
    """
    source, target = source.removeprefix("file://"), target.removeprefix("file://")
    if not (source.endswith("/") if ELSEWHERE in source else Path(source).is_dir()):
        if ELSEWHERE in target and target.endswith("/"):
            raise InputError(f"{target} is a folder, and {source} is none: name the output's file")
        return [(source, target)]
    with _reached(source, "cannot be read") as (files, folder):
        paths = filter(files.isfile, files.ls(folder, detail=False))
        names = sorted(PurePosixPath(path).name for path in paths)
    inputs = [name for name in names if name[:1] != "." and not name.endswith(MANIFEST)]
    outputs = [name if name.endswith(".jsonl") else f"{name}.jsonl" for name in inputs]
    if not inputs:
        raise InputError(f"{source}: holds no file")
    if len({*outputs}) < len(outputs):
        raise InputError(f"{source}: two files would have one output; rename a file")
    if target == "-" or Path(source).resolve() == Path(target).resolve():
        raise InputError(f"{source} is a folder: give another folder for the outputs")
    if ELSEWHERE not in target:
        with _reached(target, "cannot be made") as (files, folder):
            files.makedirs(folder, exist_ok=True)
    return [
        (f"{source.rstrip('/')}/{one}", f"{target.rstrip('/')}/{other}")
        for one, other in zip(inputs, outputs, strict=True)
    ]


def opened(name: str) -> BinaryIO:
    """Open a file, or a copy of standard input (`-`), a pipe or an address, to be read twice."""
    if ELSEWHERE in name:
        with _reached(name, "cannot be read") as (files, path), files.open(path, "rb") as file:
            return _copied(file)
    file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
    return file if name != "-" and file.seekable() else _copied(file)


def _copied(source: BinaryIO) -> BinaryIO:
    with source, contextlib.ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(source, copy)
        stack.pop_all()
    return copy


@contextlib.contextmanager
def kept(target: str) -> Iterator[str]:
    """Yield where to write the answers for `target`: beside the caches, if it lies elsewhere.

    What is there is fetched before, and sent in the end if it has changed, the manifest first. A
    copy that could not be sent stays, and is gone on with. Raises InputError, for that too.
    """
    if ELSEWHERE not in target:
        yield target
        return
    folder = cache_folder() / "batch" / hashlib.sha256(target.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{target} is being written by another process") from error
        with _reached(target, "cannot be written") as (files, path):
            copy = folder / PurePosixPath(path).name
            both = {manifest_of(copy): f"{path}{MANIFEST}", copy: path}
            before = None
            with contextlib.suppress(FileNotFoundError):
                # Another machine may have gone on with it.
                if copy.exists() and files.info(path)["size"] > copy.stat().st_size:
                    copy.unlink()
            for here, there in both.items() if not copy.exists() else ():
                with contextlib.suppress(FileNotFoundError):
                    files.info(there)  # `exists` says no, too, where there is no leave to look.
                    files.get_file(there, str(folder / "part"))
                    (folder / "part").replace(here)
                    before = here.stat().st_mtime_ns
        try:
            yield str(copy)
        except InputError as error:
            raise InputError(str(error).replace(str(copy), target)) from error
        finally:
            if copy.exists() and copy.stat().st_size and copy.stat().st_mtime_ns != before:
                with _reached(target, f"cannot be written; its rows wait in {copy}"):
                    for here, there in both.items():
                        files.put_file(str(here), there)
            for here in both:
                here.unlink(missing_ok=True)


@contextlib.contextmanager
def _reached(name: str, refusal: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a name, and its path there; what either raises is an InputError."""
    import fsspec

    try:
        yield fsspec.url_to_fs(name) if ELSEWHERE in name else (fsspec.filesystem("file"), name)
    except Exception as error:
        absent = "No such file" if isinstance(error, FileNotFoundError) else error
        told = " ".join(str(getattr(error, "strerror", None) or absent).split())
        raise InputError(f"{name}: {refusal}: {told or type(error).__name__}") from error
