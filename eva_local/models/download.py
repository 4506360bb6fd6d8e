"""A file that is brought here: checksums, room on the disk, and what a pull is told of it."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from eva_local.errors import StoreError, refusing

# Told what is shown to the user, and which share of it is done; None is unknown.
Progress = Callable[[str, float | None], None]

#: Bytes that are read at once.
CHUNK = 1 << 20
_RESERVE = 64 << 20


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
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(f"{what}: checking", file.tell() / size)
    return digest.hexdigest()


def length(file: Path) -> int:
    """Return how many bytes of a file are here."""
    return file.stat().st_size if file.exists() else 0


def check_space(folder: Path, needed: int) -> None:
    """Raise StoreError where `folder` has no room for `needed` bytes more."""
    free = shutil.disk_usage(folder).free
    if free < needed + _RESERVE:
        raise StoreError(
            f"{folder.parent}: needs {needed / 1e9:.1f} GB, has {free / 1e9:.1f} GB free; make "
            "room, or set EVA_LOCAL_CACHE to a folder on a larger disk"
        )
