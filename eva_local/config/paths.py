"""Paths as users write them, and the names of models in several files."""

from __future__ import annotations

import re
from pathlib import Path

from eva_local.errors import ConfigError

# llama.cpp opens the first part of a model, and finds the others by this ending.
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL)


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of all files of a model, whichever of them `name` is; mostly one."""
    found = _PART.fullmatch(name)
    if found is None or not 0 < int(found[2]) <= int(found[3]):
        return (name,)
    return tuple(
        f"{found[1]}-{place:05}-of-{found[3]}{found[4]}" for place in range(1, int(found[3]) + 1)
    )


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
