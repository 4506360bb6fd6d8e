"""What the answers of a file rest on, kept beside it, so that a later run can go on or refuse."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from eva_local.batch.rows import Wishes
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError, refusing
from eva_local.jsonl import replace_file
from eva_local.models.store import checksum

SCHEMA = 1

# What the answers rest on, in groups: values that JSON can hold.
Grounds = Mapping[str, object]


def read_grounds(output: Path) -> Grounds | None:
    """Return what the answers of a file rest on, or None where there is no manifest of it."""
    path = _path_of(output)
    if not path.exists():
        return None
    try:
        with refusing(f"{path}: cannot be read"):
            content = json.loads(path.read_bytes())
        grounds = content["grounds"]
        if content["schema"] != SCHEMA or content["sha256"] != _sha256(grounds):
            raise ValueError
        return dict(grounds)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: is damaged; begin anew with --restart, or give another output"
        ) from error


def refuse_changes(output: Path, earlier: Grounds, now: Grounds) -> None:
    """Raise InputError where a group of `now` is not what it was."""
    for group, value in now.items():
        changes = _changes(group, earlier.get(group), value)
        if changes:
            raise InputError(
                f"{output} was begun otherwise: {'; '.join(changes[:3])}; begin anew "
                "with --restart, or give another output"
            )


def write_grounds(output: Path, grounds: Grounds) -> None:
    """Keep what the answers of a file rest on; all of it or nothing."""
    path = _path_of(output)
    content = {"schema": SCHEMA, "sha256": _sha256(grounds), "grounds": grounds}
    with refusing(f"{path}: cannot be written"):
        replace_file(path, json.dumps(content, indent=1).encode() + b"\n")


def grounds_of(spec: EnsembleSpec, wishes: Wishes, form: str) -> Grounds:
    """Return what the answers rest on, as far as it is known before a model is opened."""
    members = {
        f"{place}: {member.name}": {
            "sha256": checksum(member),
            "n_ctx": member.load.n_ctx,
            "kv_type": member.load.kv_type,
            "swa_full": member.load.swa_full,
        }
        for place, member in enumerate(spec.members)
    }
    grounds = {
        "members": members,
        "pivot": spec.pivot,
        "fusion": asdict(spec.fusion),
        "sampling": asdict(wishes.sampling),
        "rows": {
            "format": form,
            "prompt_template": None if wishes.template is None else wishes.template.text,
            "system": wishes.system,
            "raw": wishes.raw,
            "logprobs": wishes.n_top,
            "shares": wishes.shares,
        },
    }
    # As JSON gives it back, so that it can be compared with what was read.
    return dict(json.loads(json.dumps(grounds, default=str)))


def _path_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.manifest.json")


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
