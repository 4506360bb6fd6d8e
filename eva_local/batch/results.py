"""The output: rows are appended whole, and what is there already is known again.

Beside a file, a manifest keeps what its answers rest on, so that a later run can go on or refuse.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eva_local.batch.forms import Form, Row, Wishes
from eva_local.config.settings import CALL_KEYS
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError, refusing
from eva_local.jsonl import JsonlFile, is_torn, replace_file
from eva_local.models.store import checksum

SCHEMA = 1
# How the name of a manifest ends, behind that of its output.
MANIFEST = ".manifest.json"
# How the rows of all forms begin.
_BEGINNING = b'{"id": '
# What the JSON of another program raises where a row of output is looked for in it.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError)
_ANEW = "begin anew with --restart, or give another output"

# What the answers rest on, in groups: values that JSON can hold.
Grounds = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """What an earlier run has written: rows in all, rows that failed, and the keys of all.

    Of a row without an id, `line:` and its line is there beside its key.
    """

    n_rows: int = 0
    n_failed: int = 0
    known: frozenset[str] = frozenset()

    def has(self, row: Row) -> bool:
        """Return whether a row needs no answer; InputError where one without an id has changed."""
        if (row.key if not row.mark else f"{row.mark}:{row.line}") in self.known:
            return True
        if row.mark and f"line:{row.line}" in self.known:
            raise InputError(
                f"line {row.line} of the input is not what was answered before: rows without an "
                "id are known by their line; give them ids, or begin anew with --restart"
            )
        return False


class FileResults(JsonlFile):
    """A file of results, which one process at a time may write; an earlier run may have begun it.

    Nothing that is there is changed before the models are open. Standard output (`-`), a pipe or
    a device keeps nothing: every run begins anew.
    """

    def __init__(self, target: str | Path, form: Form) -> None:
        path, busy = Path(target), f"{target} is being written by another process"
        stdout = sys.stdout.fileno() if target == "-" else None
        refusal = f"{target if stdout is None else 'standard output'}: cannot be written"
        super().__init__(path, refusal, busy=busy, descriptor=stdout)
        self._form = form
        self._manifest = manifest_of(path)
        self._grounds: Grounds = {}
        self._earlier: Grounds | None = None
        self._retry = False

    def begin(self, grounds: Grounds, *, restart: bool = False, retry: bool = False) -> Done:
        """Return what is done; with `retry`, rows that failed are not.

        Raises InputError where another job was begun, or a line is no row of output.
        """
        self._grounds, self._retry = grounds, retry
        if retry and not self.is_regular:
            raise InputError("--retry-errors needs an output that is a file")
        if restart or not self.is_regular or not any(self.lines()):
            return Done()
        if not self._manifest.exists():
            raise InputError(
                f"{self.path} is there already, and no batch wrote it; give another "
                "output, or throw it away with --restart"
            )
        self._earlier = read_manifest(self._manifest)
        self._refuse_changes(self._earlier, grounds)
        return self._read()

    def opened(self, mappings: Mapping[str, str] | None = None) -> None:
        """Make ready for rows, now that nothing can go wrong any more; None if there are none.

        A row that was not written whole is taken out, and failed rows that are tried again.
        """
        now = {} if mappings is None else {"mappings": mappings}
        if self._earlier is not None:
            self._refuse_changes(self._earlier, now)
            self.mend()
            if self._retry:
                self.keep(lambda line: not self._parsed(line)[2])
        elif self.is_regular:
            self.restart()
            write_manifest(self._manifest, {**self._grounds, **now})

    def append(self, *records: Mapping[str, object]) -> None:
        """Write rows. Raises BrokenPipeError where nobody reads any more."""
        try:
            super().append(*records)
        except InputError as error:
            if isinstance(error.__cause__, BrokenPipeError):
                raise error.__cause__ from None
            raise

    def _refuse_changes(self, earlier: Grounds, now: Grounds) -> None:
        for group, value in now.items():
            if changes := _changes(group, earlier.get(group), value):
                raise InputError(
                    f"{self.path} was begun otherwise: {'; '.join(changes[:3])}; {_ANEW}"
                )

    def _read(self) -> Done:
        keys: set[str] = set()
        n_rows = n_failed = 0
        for number, line in enumerate(self.lines(), 1):
            if is_torn(line) and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                break
            try:
                row_id, mark, failed = self._parsed(line)
            except _MALFORMED as error:
                raise InputError(
                    f"{self.path}, line {number}: is no row of a batch of the form "
                    f"{self._form.name}; mend the line, or begin anew with --restart"
                ) from error
            if not (failed and self._retry):
                keys.update(f"{each}:{row_id}" for each in (("line", mark) if mark else ("",)))
                n_rows += 1
                n_failed += failed
        return Done(n_rows, n_failed, frozenset(keys))

    def _parsed(self, line: bytes) -> tuple[str | int, str, bool]:
        result = json.loads(line)
        return *self._form.identity(result), bool(result.get("error"))


def manifest_of(target: Path) -> Path:
    """Return where the manifest of an output lies."""
    return target.with_name(f"{target.name}{MANIFEST}")


def read_manifest(path: Path) -> Grounds:
    """Return what an output's answers rest on; raise InputError for a damaged manifest."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        with refusing(f"{path}: cannot be read"):
            content = json.loads(path.read_bytes())
        grounds = dict(content["grounds"])
        if content["schema"] == SCHEMA and content["sha256"] == _sha256(grounds):
            return grounds
    raise InputError(f"{path}: is damaged; {_ANEW}")


def write_manifest(path: Path, grounds: Grounds) -> None:
    """Write what an output's answers rest on."""
    content = {"schema": SCHEMA, "sha256": _sha256(grounds), "grounds": grounds}
    with refusing(f"{path}: cannot be written"):
        replace_file(path, json.dumps(content, indent=1).encode() + b"\n")


def grounds_of(spec: EnsembleSpec, wishes: Wishes, form: str) -> Grounds:
    """Return what the answers rest on, as far as it is known before a model is opened."""
    members = {
        f"{place}: {member.name}": {
            "sha256": checksum(member),
            **{key: getattr(member.load, key) for key in ("n_ctx", "kv_type", "swa_full")},
            "role": [str(each) for each in member.role],
        }
        for place, member in enumerate(spec.members)
    }
    grounds = {
        "members": members,
        "pivot": spec.pivot,
        "fusion": asdict(spec.fusion),
        "sampling": {k: v for k, v in asdict(wishes.sampling).items() if k not in CALL_KEYS},
        "rows": {
            "format": form,
            "prompt_template": None if wishes.template is None else wishes.template.text,
            "system": wishes.system,
            "raw": wishes.raw,
            "logprobs": wishes.n_top,
        },
    }
    # As JSON gives it back, so that it can be compared with what was read.
    return dict(json.loads(json.dumps(grounds, default=str)))


def _changes(name: str, earlier: object, now: object) -> list[str]:
    if earlier == now:
        return []
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now})
        return [change for key in keys for change in _changes(key, earlier.get(key), now.get(key))]
    texts = [json.dumps(value, ensure_ascii=False) for value in (earlier, now)]
    was, is_now = (text if len(text) <= 40 else f"{text[:40]}…" for text in texts)
    return [f"{name} was {was} and is {is_now}"]


def _sha256(grounds: object) -> str:
    return hashlib.sha256(json.dumps(grounds, sort_keys=True).encode()).hexdigest()
