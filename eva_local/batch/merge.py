"""The outputs of a job's shards, put together: one output, as one process would have written it."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from eva_local.batch.forms import FORMS, Wishes
from eva_local.batch.results import FileResults, manifest_of, read_manifest, write_manifest
from eva_local.errors import InputError, refusing
from eva_local.jsonl import is_torn
from eva_local.types import Sampling


def merge(target: Path, parts: Sequence[Path]) -> tuple[int, int]:
    """Write the rows of all `parts` to `target`; return how many there are, and failed ones.

    Raises InputError, with nothing written, where the parts rest on different things, a part is
    being written or torn, a row is in two of them, or `target` is there.
    """
    if target.exists():
        raise InputError(f"{target} is there already; give another name, or remove it")
    # A shard in which no row is has no mappings.
    grounds = max([read_manifest(manifest_of(path)) for path in parts], key=len)
    known: dict[str, Path] = {}
    n_rows = n_failed = 0
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    with contextlib.ExitStack() as files, refusing(f"{target}: cannot be written"):
        files.callback(draft.unlink, missing_ok=True)
        written = files.enter_context(draft.open("wb"))
        form = FORMS[grounds["rows"]["format"]](Wishes(Sampling()))
        for path in parts:
            with FileResults(path, form) as part:
                done = part.begin(grounds)
                if twice := next(filter(known.__contains__, done.known), None):
                    row = twice.partition(":")[2]
                    raise InputError(f"{path}: row {row!r} is in {known[twice]} too; leave one out")
                known |= dict.fromkeys(done.known, path)
                n_rows, n_failed = n_rows + done.n_rows, n_failed + done.n_failed
                for line in part.lines():
                    if is_torn(line):
                        raise InputError(f"{path}: its last row is torn; run its batch again")
                    written.write(line.rstrip(b"\n") + b"\n")
        written.flush()
        os.fsync(written.fileno())
        write_manifest(manifest_of(target), grounds)
        draft.rename(target)
    return n_rows, n_failed
