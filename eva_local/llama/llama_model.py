"""One GGUF model in llama.cpp: decode batches of several sequences, read logits, roll back."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from eva_local.config.specs import LoadSettings
from eva_local.errors import ModelError, RoomError
from eva_local.llama.backend import calling, cores, library, reason
from eva_local.llama.memory import Memory
from eva_local.llama.model import LOGIT_ROWS, Logits, Run
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import ModelFile, read_vocabulary
from eva_local.models.header import TEMPLATES

SPARE_CELLS = 256
# Sequences that one context can have, in llama.cpp.
MOST_SEQUENCES = 256
# A run of more tokens than a step can add is (part of) a prompt.
_LONGEST_ANSWER = 8
_KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


class LlamaModel(AbstractContextManager["LlamaModel"]):
    """A GGUF file opened by llama.cpp, with `n_sequences` independent texts; see `Model`.

    With `n_branches` above 1 every text has as many of llama.cpp's sequences, numbered one text
    after the other, which share one cache; and some more for its snapshots, where it needs them.
    With `vocabulary_only` no weights are read and nothing can be decoded; `unfilled`, it has no
    vocabulary either, and is a plan. `progress` is told the share of the weights that is loaded.
    `text_bytes` is what a text takes in the caches, with its snapshots; `working_bytes` is what
    decoding takes, whatever the texts. Raises ModelError where llama.cpp cannot open `path`.
    """

    def __init__(
        self,
        path: Path,
        settings: LoadSettings | None = None,
        *,
        n_sequences: int = 1,
        n_branches: int = 1,
        vocabulary_only: bool = False,
        progress: Callable[[float], None] | None = None,
        unfilled: bool = False,
    ) -> None:
        settings = settings or LoadSettings()
        self._llama = library()
        self._context: Any = None
        self._batch: Any = None
        self.path = path
        self.n_batch = settings.n_batch
        self.n_sequences = n_sequences
        self.n_branches = n_branches
        self.n_ctx = self.n_snapshots = self.text_bytes = self.working_bytes = 0
        self.can_roll_back = True
        self._file = ModelFile(path)
        try:
            told = progress or (lambda _share: None)
            self._file.load(settings, told, vocabulary_only=vocabulary_only, unfilled=unfilled)
            if not vocabulary_only:
                self._start(settings)
            if not unfilled:
                self.vocabulary = read_vocabulary(self._llama, self._file)
                self.tokenizer = Tokenizer(self.vocabulary, self._file.tokenize)
                self.chat_template = next(filter(None, map(self._file.metadata, TEMPLATES)), None)
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with calling():
            if self._batch is not None:
                self._llama.llama_batch_free(self._batch)
            if self._context is not None:
                self._llama.llama_free(self._context)
            self._batch = self._context = None
            self._file.close()

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        long = [run for run in runs if len(run.tokens) > _LONGEST_ANSWER]
        if not self._apart or not long or len(runs) == 1:
            return self._decode_together(runs)
        # Attention over many tokens of one text rounds otherwise than over single ones, so no
        # token of a prompt may fall among the answers.
        found: dict[int, Logits | None] = {}
        for run in long:
            (row,) = self._decode_together([run])
            found[id(run)] = None if row is None else row.copy()
        short = [run for run in runs if len(run.tokens) <= _LONGEST_ANSWER]
        found |= zip(map(id, short), self._decode_together(short) if short else (), strict=True)
        return [found[id(run)] for run in runs]

    def _start(self, settings: LoadSettings) -> None:
        """Make room for the texts: a context, its memory and a batch."""
        llama, handle = self._llama, self._file.handle
        self._file.refuse_unless_causal()
        # Tokens that a layer with a window looks back on, itself among them; 0: no such layers.
        window = max(llama.llama_model_n_swa(handle), 0)
        recurrent = bool(
            llama.llama_model_is_recurrent(handle) or llama.llama_model_is_hybrid(handle)
        )
        # Texts that share a cache would write over each other's windows.
        swa_full = settings.swa_full or self.n_branches > 1
        self.can_roll_back = not (recurrent or (window and not swa_full))
        if recurrent:
            self.n_snapshots = settings.snapshots
            # There a snapshot is a sequence that nobody goes on in.
            self.n_branches += self.n_snapshots if self.n_branches > 1 else 0
        self.n_batch = max(self.n_batch, self.n_sequences * self.n_branches)
        parameters = llama.llama_context_default_params()
        # A file says it without a sign.
        self.n_ctx = settings.context(llama.llama_model_n_ctx_train(handle) % 2**32)
        parameters.n_ctx = self.n_ctx * self.n_sequences
        if self.n_branches > 1:
            # Rows that are tried beside each other need a little more than one text.
            parameters.n_ctx += SPARE_CELLS * self.n_sequences
            parameters.kv_unified = True
        parameters.n_batch = self.n_batch
        parameters.n_ubatch = min(self.n_batch, parameters.n_ubatch)
        guard, n_seq = self._numbered(guarded=window > 0)
        if guard is not None:
            # What llama.cpp decodes first in a batch of several parts, nothing guards.
            self.n_batch = parameters.n_batch = parameters.n_ubatch
        parameters.n_seq_max = n_seq
        # Without this llama.cpp reserves a row of n_vocab floats for each token of a batch.
        self._n_rows = parameters.n_outputs_max = max(LOGIT_ROWS, n_seq)
        parameters.n_threads = parameters.n_threads_batch = settings.threads or cores()
        parameters.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
        parameters.type_k = parameters.type_v = _KV_TYPES[settings.kv_type]
        parameters.swa_full = swa_full
        parameters.no_perf = True
        with calling() as call:
            self._context = llama.llama_init_from_model(handle, parameters) or None
        if self._context is None:
            raise ModelError(
                f"{self.path}: no context of {self.n_ctx} tokens: {reason(call.lines)}; "
                "lower n_ctx or change kv_type"
            )
        said = "\n".join(call.lines)
        told = re.findall(r"(recurrent)?: size = +([\d.]+) MiB \(", said)
        # Snapshots of a row alone lie beside its cache.
        copies = 1 + (self.n_snapshots if self.n_branches == 1 else 0)
        taken = sum(float(size) * (copies if of_states else 1) for of_states, size in told)
        self.text_bytes = round(taken * 2**20 / self.n_sequences)
        worked = re.findall(r"(?:compute|output) buffer size = +([\d.]+) MiB", said)
        self.working_bytes = round(sum(map(float, worked)) * 2**20)
        # No more than a context holds; llama.cpp ends the process where a batch is larger.
        self.n_batch = llama.llama_n_batch(self._context)
        self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
        self._apart = settings.batch_invariant and self.n_branches == 1
        held = window, recurrent, guard, self.n_snapshots
        self._memory = memory = Memory(self._context, self.path, *held)
        self.holds, self.remove = memory.holds, memory.remove
        self.copy, self.snapshot = memory.copy, memory.snapshot

    def _numbered(self, *, guarded: bool) -> tuple[int | None, int]:
        """Return the sequence that guards a window, if one must, and how many there are in all."""
        count = self.n_sequences * self.n_branches
        guard = count if guarded and self.n_branches > 1 else None
        count += guard is not None
        if count > MOST_SEQUENCES:
            raise ModelError(
                f"{self.path}: {self.n_sequences} texts side by side need {count} sequences, "
                f"and llama.cpp has {MOST_SEQUENCES}; use fewer (--parallel), members or snapshots"
            )
        return guard, count

    def _decode_together(self, runs: Sequence[Run]) -> list[Logits | None]:
        if len(runs) > 1 and sum(run.logits for run in runs) > self._n_rows:
            # llama.cpp would end the process.
            raise RoomError(f"{self.path}: more logits than {self._n_rows} rows have room for")
        if sum(len(run.tokens) for run in runs) > self.n_batch:
            runs = [self._all_but_last(run) for run in runs]
        rows: dict[int, int] = {}
        at = 0
        # llama.cpp decodes sequences together only where their numbers ascend without a gap.
        for index in sorted(range(len(runs)), key=lambda index: runs[index].seq_id):
            at = self._fill(at, runs[index])
            rows[index] = at - 1
        self._decode_batch(at)
        return [self._rows(rows[i], run.logits) for i, run in enumerate(runs)]

    def _all_but_last(self, run: Run) -> Run:
        """Decode a run up to its last tokens, without logits; return what is left."""
        last = max(1, run.logits)
        head = run.tokens[:-last]
        for first in range(0, len(head), self.n_batch):
            part = head[first : first + self.n_batch]
            at = self._fill(0, Run(run.seq_id, run.start + first, part, logits=0))
            self._decode_batch(at)
        return Run(run.seq_id, run.start + len(head), run.tokens[-last:], run.logits)

    def _fill(self, at: int, run: Run) -> int:
        """Write a run into the batch from row `at` on; return the row after it."""
        if at == 0:
            self._memory.guard()
        self._memory.touch(run.start)
        batch = self._batch
        for offset, token_id in enumerate(run.tokens):
            batch.token[at] = token_id
            batch.pos[at] = run.start + offset
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = run.seq_id
            batch.logits[at] = len(run.tokens) - offset <= run.logits
            at += 1
        return at

    def _decode_batch(self, size: int) -> None:
        self._batch.n_tokens = size
        with calling() as call:
            status = self._llama.llama_decode(self._context, self._batch)
            # Of a model on several GPUs, what is decoded next would overtake it.
            self._llama.llama_synchronize(self._context)
        if status == 1:
            raise RoomError(f"{self.path}: no room left in the context; raise n_ctx")
        if status:
            raise ModelError(f"{self.path}: llama.cpp failed to decode: {reason(call.lines)}")

    def _rows(self, last: int, count: int) -> Logits | None:
        if count > 1:
            return np.stack([self._row(row) for row in range(last - count + 1, last + 1)])
        return self._row(last) if count else None

    def _row(self, row: int) -> Logits:
        pointer = self._llama.llama_get_logits_ith(self._context, row)
        logits = np.ctypeslib.as_array(pointer, shape=(len(self.vocabulary),))
        logits.flags.writeable = False
        # Numbers that are none would go unnoticed.
        if not np.isfinite(logits.max()):
            raise ModelError(
                f"{self.path}: its logits are no numbers: the file is damaged, or the device "
                "computes wrongly; pull or convert it again, or set n_gpu_layers = 0"
            )
        return logits
