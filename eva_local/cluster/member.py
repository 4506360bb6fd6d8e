"""A member of an ensemble whose model is open in a process elsewhere.

Its vocabulary is opened here, from the head of its file: text becomes tokens without a call.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eva_local.cluster.worker import LostError, Worker, installed, joined, nodes, result
from eva_local.config.specs import MemberSpec, ModelSpec
from eva_local.errors import EvaError, ModelError
from eva_local.fusion.votes import highest
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Logits, Run
from eva_local.models.header import vocabulary_of

log = logging.getLogger("eva_local")

# How long a model may take to open, and a call: a batch of a prompt, on a slow machine.
_OPENING_S = _CALL_S = 600.0

# What a cache is told to do: what that must return, the method of `Model`, and its arguments.
Change = tuple[object, str, tuple[Any, ...], Mapping[str, Any]]


class ModelHost:
    """A model in a process of its own; what it is asked goes to a `LlamaModel`."""

    def open(
        self, versions: str, spec: ModelSpec, n_sequences: int, n_branches: int
    ) -> tuple[tuple[Path, int, int, int, int, bool], bytes]:
        """Open it with room for texts; return what it tells of itself, and its vocabulary."""
        path = joined(versions, spec, None)
        self._model = LlamaModel(path, spec.load, n_sequences=n_sequences, n_branches=n_branches)
        model = self._model
        sizes = model.n_ctx, model.n_batch, model.n_branches, model.n_snapshots
        return (path, *sizes, model.can_roll_back), vocabulary_of(path)

    def do(self, changes: Sequence[Change], name: str, *arguments: Any) -> Any:
        """Change the cache, and then return what a method returns; raise ModelError."""
        for expected, change, given, options in changes:
            if getattr(self._model, change)(*given, **options) != expected:
                raise ModelError(f"{self._model.path}: its cache is not as it was left: {change}")
        found = getattr(self._model, name)(*arguments)
        return list(map(packed, found, *arguments)) if name == "decode" else found


class RemoteModel:
    """A `Model` that is open in a process elsewhere, with what that must not be asked for.

    How many positions each sequence has is known here: so what is removed and copied goes along
    with the next call, and each answer is held there against what was expected. A process that
    dies is lost with all it held; its texts end, and the next one has it opened again.
    """

    def __init__(self, member: MemberSpec, *, n_sequences: int, n_branches: int) -> None:
        """Open the model of `member`, as `LlamaModel` is."""
        self._member, self._room = member, (n_sequences, n_branches)
        self._name = f"{member.name} on {member.on}"
        self._changes: list[Change] = []
        # Positions of each sequence, none if it is not here; None where that is not known.
        self._lengths: dict[int, int | None] = {}
        opened = self._opened()
        self._worker: Worker | None = opened[0]
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(opened[1])
            file.flush()
            self._tokens = model = LlamaModel(Path(file.name), vocabulary_only=True)
        self.vocabulary, self.tokenizer = model.vocabulary, model.tokenizer
        self.chat_template = model.chat_template

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.end()
        self._tokens.close()

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        for run in runs:
            if self._lengths.get(run.seq_id, 0) not in (None, run.start):
                raise ModelError(f"{self._name}: it was opened again, and its text is lost")
        # Until it is answered, any part of it may have been done.
        self._lengths |= {run.seq_id: None for run in runs}
        rows = self._ask("decode", runs)
        self._lengths |= {run.seq_id: run.start + len(run.tokens) for run in runs}
        return [self._unpacked(row, run) for row, run in zip(rows, runs, strict=True)]

    def holds(self, seq_id: int, start: int) -> int:
        known = self._known(seq_id, start)
        return int(self._ask("holds", seq_id, start)) if known is None else known

    def remove(self, seq_id: int, start: int) -> int:
        if seq_id == ALL:
            self._lengths.clear()
            return self._change(0, "remove", seq_id, start)
        known = self._known(seq_id, start)
        self._lengths[seq_id] = kept = self._change(known, "remove", seq_id, start)
        return kept

    def copy(self, source: int, target: int, length: int = -1) -> int:
        known = self._known(source, length)
        self._lengths[target] = kept = self._change(known, "copy", source, target, length)
        return kept

    def snapshot(self, seq_id: int, *, lasting: bool) -> None:
        if self.n_snapshots:
            self._changes.append((None, "snapshot", (seq_id,), {"lasting": lasting}))

    def _known(self, seq_id: int, start: int) -> int | None:
        """Return what the model `holds` of a sequence, -1: in all; None where it must be asked."""
        length = self._lengths.get(seq_id, 0)
        if not self.can_roll_back or length is None:
            return None
        return length if start < 0 else start if start <= length else 0

    def _change(self, expected: int | None, change: str, *arguments: Any) -> int:
        """Note a change that goes along with the next call; without what it returns, ask now."""
        if expected is None:
            return int(self._ask(change, *arguments))
        self._changes.append((expected, change, arguments, {}))
        return expected

    def _opened(self) -> tuple[Worker, bytes]:
        """Open the model in a new process; return that, and the vocabulary."""
        load, on = self._member.load, self._member.on
        # Where all machines have any; else a label says which.
        offloads = load.n_gpu_layers and all(gpus for _, gpus in nodes(on))
        gpus = max(len(load.tensor_split), 1) if offloads else 0
        worker = Worker(on, ModelHost, cpus=load.threads or 1, gpus=gpus)
        try:
            asked = worker.ask("open", installed(), self._member, *self._room)
            told, head = result(asked, _OPENING_S)
        except BaseException as error:
            worker.end()
            if not isinstance(error, EvaError):
                raise
            raise ModelError(f"{self._name}: {error}") from error
        self.path, self.n_ctx, self.n_batch, self.n_branches, self.n_snapshots = told[:-1]
        self.can_roll_back: bool = told[-1]
        return worker, head

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the model, after the changes that were noted."""
        if self._worker is None:
            log.warning("%s is opened again", self._name)
            self._worker, _ = self._opened()
        made, self._changes = self._changes, []
        try:
            return result(self._worker.ask("do", made, name, *arguments), _CALL_S)
        except LostError as error:
            self._worker.end()
            self._worker = None
            self._lengths.clear()
            raise ModelError(f"{self._name}: {error}") from error
        except EvaError:
            self._lengths = dict.fromkeys(self._lengths)
            raise

    def _unpacked(self, rows: Any, run: Run) -> Logits | None:
        if rows is None or not run.top:
            return rows  # type: ignore[no-any-return]
        whole = np.full((len(rows), len(self.vocabulary)), -np.inf, np.float32)
        for row, (token_ids, logits) in zip(whole, rows, strict=True):
            row[token_ids] = logits
        return whole if run.logits > 1 else whole[0]


def packed(rows: Logits | None, run: Run) -> object:
    """Return the rows of logits, or of each row the highest alone: their tokens and values."""
    if rows is None or not run.top:
        return rows
    found = [(highest(row, run.top), row) for row in np.atleast_2d(rows)]
    return [(token_ids.astype(np.int32), row[token_ids]) for token_ids, row in found]
