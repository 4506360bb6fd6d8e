"""Folders that the user alone can read."""

from __future__ import annotations

from pathlib import Path


def private_folder(folder: Path) -> None:
    """Make a folder and what it lies in for the user alone; close one that is there to others.

    Raises OSError where that is not possible.
    """
    _make(folder)
    folder.chmod(0o700)


def _make(folder: Path) -> None:
    # mkdir gives its mode to the last folder only.
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
