"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from eva_local.errors import ConfigError


def user_path(written: str | Path, where: str) -> Path:
    """Return the path that a user wrote, `~` at its beginning taken for a home folder.

    Raises ConfigError, naming `where` it was written, for what can be no path.
    """
    if "\0" in str(written):
        raise ConfigError(f"{where}: must be a path, not {str(written)!r}")
    try:
        return Path(written).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: {written}: there is no such home folder; write the path in full"
        ) from error
