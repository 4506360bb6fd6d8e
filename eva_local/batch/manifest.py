"""What the answers of a file rest on, kept beside it, so that a later run can go on or refuse."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from eva_local.errors import InputError

SCHEMA = 1

# What the answers rest on, in groups: values that JSON can hold.
Grounds = Mapping[str, object]


class Manifest:
    """The manifest of one output file."""

    def __init__(self, output: Path) -> None:
        """Take the place beside `output`."""
        self.path = output.with_name(f"{output.name}.manifest.json")
        self._output = output

    def read(self) -> Grounds | None:
        """Return what was written, or None where there is no manifest."""
        try:
            content = json.loads(self.path.read_bytes())
            grounds = content["grounds"]
            if content["schema"] != SCHEMA or content["sha256"] != _sha256(grounds):
                raise ValueError
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.path}: is damaged; begin anew with --restart, or give another output"
            ) from error
        return dict(grounds)

    def refuse_changes(self, earlier: Grounds, now: Grounds) -> None:
        """Raise InputError where a group of `now` is not what it was."""
        for group, value in now.items():
            changes = _changes(group, earlier.get(group), value)
            if changes:
                raise InputError(
                    f"{self._output} was begun otherwise: {'; '.join(changes[:3])}; begin anew "
                    "with --restart, or give another output"
                )

    def write(self, grounds: Grounds) -> None:
        """Keep what the answers rest on; all of it or nothing."""
        content = {"schema": SCHEMA, "sha256": _sha256(grounds), "grounds": grounds}
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from error


def plain(value: object) -> object:
    """Return a value as JSON gives it back, so that it can be compared with what was read."""
    return json.loads(json.dumps(value, default=str))


def _sha256(grounds: object) -> str:
    return hashlib.sha256(json.dumps(grounds, sort_keys=True).encode()).hexdigest()


def _changes(name: str, earlier: object, now: object) -> list[str]:
    """Word what is different, each value by its path."""
    if earlier == now:
        return []
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now})
        return [change for key in keys for change in _changes(key, earlier.get(key), now.get(key))]
    return [f"{name} was {_shown(earlier)} and is {_shown(now)}"]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
