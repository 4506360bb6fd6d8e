"""One GGUF model in llama.cpp: decode batches of several sequences, read logits, roll back.

The only module that imports llama_cpp, and only when a model is opened.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eva_local.config.paths import part_names
from eva_local.config.specs import LoadSettings
from eva_local.errors import ModelError, RoomError
from eva_local.llama.calls import calling, hear
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Kind, Vocabulary
from eva_local.models.header import is_gguf

log = logging.getLogger("eva_local")

Logits = NDArray[np.float32]

# Stands for every sequence of a model, as llama.cpp has it.
ALL = -1
# Rows of logits that one call may ask for: few, since a row is n_vocab floats.
_LOGIT_ROWS = 32
SPARE_CELLS = 256
# Sequences that one context can have, in llama.cpp.
MOST_SEQUENCES = 256
# A run of more tokens than a step can add is (part of) a prompt.
_LONGEST_ANSWER = 8
_KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens to append to one sequence, of which the first has position `start`.

    `logits` says whether the distribution after the last token is wanted, `every` that it is
    after each of them.
    """

    seq_id: int
    start: int
    tokens: Sequence[int]
    logits: bool = True
    every: bool = False


def can_offload() -> bool:
    """Return whether this build of llama.cpp can use a device other than the CPU."""
    return bool(_library().llama_supports_gpu_offload())


class Model(Protocol):
    """What the rest of the program knows of a model; tests have a small one of their own."""

    path: Path
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    chat_template: str | None
    n_ctx: int
    n_batch: int
    can_roll_back: bool

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Decode all runs together; return views (n_vocab,), valid until the next call.

        Raises ModelError where that fails, RoomError where there is no room for all of them; any
        part of them may then have been decoded.
        """

    def decode_every(self, run: Run) -> Iterator[Logits]:
        """Decode one run; yield blocks (m, n_vocab) with the logits after each token."""

    def holds(self, seq_id: int, start: int) -> bool:
        """Return whether the cache has all that a token at position `start` may look back on."""

    def remove(self, seq_id: int, start: int) -> bool:
        """Forget positions from `start` on, of one sequence or of `ALL`.

        False, with nothing removed, where the past of `start` is gone; from 0 it always goes.
        """

    def copy(self, source: int, target: int, length: int = -1) -> bool:
        """Let `target` begin as a copy of the first `length` positions of `source` (-1: all).

        False, with an empty `target`, where `source` no longer holds them.
        """

    def close(self) -> None:
        """Free the memory."""


class LlamaModel:
    """A GGUF file opened by llama.cpp, with `n_sequences` independent texts."""

    def __init__(
        self,
        path: Path,
        settings: LoadSettings | None = None,
        *,
        n_sequences: int = 1,
        n_branches: int = 1,
        vocabulary_only: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Open `path`; raise ModelError where llama.cpp cannot.

        With `n_branches` above 1 every text has as many sequences, numbered one text after the
        other, which share one cache. With `vocabulary_only` no weights are read and nothing can
        be decoded. `progress` is told the share of the weights that is loaded.
        """
        settings = settings or LoadSettings()
        self._llama = _library()
        self._context: Any = None
        self._batch: Any = None
        self.path = path
        self.n_batch = max(settings.n_batch, n_sequences * n_branches)
        self.n_sequences = n_sequences
        self.n_branches = n_branches
        self.n_ctx = 0
        self.can_roll_back = True
        self._apart = False
        self._recurrent = False
        # Tokens that a layer with a window looks back on, itself among them; 0: no such layers.
        self._window = 0
        # The sequence that guards a cache with a window, and from which position on it must be
        # told again what there is to guard.
        self._guard: int | None = None
        self._unguarded = 0
        self._model: Any = None
        try:
            self._open(settings, vocabulary_only, progress or (lambda _share: None))
            self._vocab = self._llama.llama_model_get_vocab(self._model)
            self.vocabulary = _read_vocabulary(self._llama, self._vocab, path)
            self.tokenizer = Tokenizer(self.vocabulary, self._tokenize)
            self.chat_template = self._metadata("tokenizer.chat_template")
            if not vocabulary_only:
                self._start(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LlamaModel:
        """Return the open model."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the memory."""
        self.close()

    def close(self) -> None:
        """Free the memory; the model cannot be used afterwards."""
        with calling():
            if self._batch is not None:
                self._llama.llama_batch_free(self._batch)
            if self._context is not None:
                self._llama.llama_free(self._context)
            if self._model is not None:
                self._llama.llama_model_free(self._model)
            self._batch = self._context = self._model = None

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Decode all runs together, in as few batches as n_batch allows.

        Returns one entry per run: a read-only view (n_vocab,) of llama.cpp's own memory,
        valid until the next call, or None where no logits are wanted.
        Raises RoomError where the cache has no room, ModelError where llama.cpp fails otherwise,
        and for logits that are no numbers.
        """
        long = [run for run in runs if len(run.tokens) > _LONGEST_ANSWER]
        if not self._apart or not long or len(runs) == 1:
            return self._decode_together(runs)
        # Attention over many tokens of one text rounds otherwise than over single ones, so no
        # token of a prompt may fall among the answers.
        found = {id(run): _kept(self._decode_together([run])[0]) for run in long}
        short = [run for run in runs if len(run.tokens) <= _LONGEST_ANSWER]
        found |= zip(map(id, short), self._decode_together(short) if short else (), strict=True)
        return [found[id(run)] for run in runs]

    def _decode_together(self, runs: Sequence[Run]) -> list[Logits | None]:
        if sum(len(run.tokens) for run in runs) > self.n_batch:
            runs = [self._all_but_last(run) for run in runs]
        rows: dict[int, int] = {}
        at = 0
        # llama.cpp decodes sequences together only where their numbers ascend without a gap.
        for place in sorted(range(len(runs)), key=lambda place: runs[place].seq_id):
            at = self._fill(at, runs[place], every=False)
            rows[place] = at - 1
        self._decode_batch(at)
        return [self._row(rows[i]) if run.logits else None for i, run in enumerate(runs)]

    def decode_every(self, run: Run) -> Iterator[Logits]:
        """Decode one run and yield blocks (m, n_vocab): the logits after each of its tokens.

        A block is valid until the next one is asked for.
        """
        size = min(_LOGIT_ROWS, self.n_batch)
        for first in range(0, len(run.tokens), size):
            part = Run(run.seq_id, run.start + first, run.tokens[first : first + size])
            at = self._fill(0, part, every=True)
            self._decode_batch(at)
            pointer = self._llama.llama_get_logits(self._context)
            yield self._numbers(np.ctypeslib.as_array(pointer, shape=(at, len(self.vocabulary))))

    def holds(self, seq_id: int, start: int) -> bool:
        """Return whether the cache has all that a token at position `start` may look back on.

        llama.cpp agrees to forget the end of a sequence also where a cache with a window no
        longer has what comes before that end, and then computes other logits.
        """
        if start == 0:
            return True
        llama = self._llama
        newest = llama.llama_memory_seq_pos_max(self._memory, seq_id)
        if self._recurrent:
            return bool(newest == start - 1)
        oldest = llama.llama_memory_seq_pos_min(self._memory, seq_id)
        needed = max(0, start - self._window + 1) if self._window else 0
        return bool(0 <= oldest <= needed and newest >= start - 1)

    def remove(self, seq_id: int, start: int) -> bool:
        """Forget positions from `start` on, of one sequence or of `ALL`; see `Model.remove`.

        Raises ModelError where llama.cpp refuses to forget a whole sequence.
        """
        if seq_id == ALL:
            assert start == 0
            self._llama.llama_memory_clear(self._memory, False)
            return True
        if start and not self.holds(seq_id, start):
            return False
        # From 0 on, a recurrent model forgets only what it is told to forget as a whole.
        removed = bool(self._llama.llama_memory_seq_rm(self._memory, seq_id, start or -1, -1))
        if not start and not removed:
            raise ModelError(f"{self.path}: llama.cpp does not let go of a text; open it again")
        self._unguarded = min(self._unguarded, start)
        return removed

    def copy(self, source: int, target: int, length: int = -1) -> bool:
        """Let `target` begin as a copy of the first `length` positions of `source`.

        Between texts, llama.cpp copies whole sequences only; among the branches of one text the
        cache is shared and nothing is copied. See `Model.copy`.
        """
        self.remove(target, 0)
        if length >= 0 and not self.holds(source, length):
            return False
        # Of a recurrent model, llama.cpp would copy all there is of nothing.
        if length:
            self._llama.llama_memory_seq_cp(self._memory, source, target, -1, length)
        return True

    def _open(
        self,
        settings: LoadSettings,
        vocabulary_only: bool,
        progress: Callable[[float], None],
    ) -> None:
        llama = self._llama
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = vocabulary_only
        parameters.n_gpu_layers = settings.n_gpu_layers
        if settings.main_gpu >= 0 and can_offload():
            # Else llama.cpp shares the layers out among all there are.
            parameters.split_mode = llama.LLAMA_SPLIT_MODE_NONE
            parameters.main_gpu = settings.main_gpu
        if settings.batch_invariant:
            # Both round differently in larger batches. The variable is read once in a process.
            parameters.use_extra_bufts = False
            os.environ["GGML_CPU_TILED_MM"] = "0"
        if settings.tensor_split:
            shares = (ctypes.c_float * llama.llama_max_devices())(*settings.tensor_split)
            parameters.tensor_split = shares
        with calling() as call:
            # llama.cpp stops loading where the callback says False.
            told = llama.llama_progress_callback(lambda share, _: call.attempt(progress, share))
            parameters.progress_callback = told
            path = os.fsencode(self.path)
            self._model = llama.llama_model_load_from_file(path, parameters) or None
        if self._model is None:
            # Of several files llama.cpp need not name the one that is wrong.
            parts = map(self.path.with_name, part_names(self.path.name))
            wrong = next((part for part in parts if not is_gguf(part)), self.path)
            raise ModelError(f"{wrong}: {_reason(call.lines)}; pull or convert the file again")

    def _start(self, settings: LoadSettings) -> None:
        llama = self._llama
        self._refuse_unless_causal()
        parameters = llama.llama_context_default_params()
        trained = llama.llama_model_n_ctx_train(self._model)
        self.n_ctx = settings.context(trained)
        parameters.n_ctx = self.n_ctx * self.n_sequences
        if self.n_branches > 1:
            # Rows that are tried beside each other need a little more than one text.
            parameters.n_ctx += SPARE_CELLS * self.n_sequences
            parameters.kv_unified = True
        parameters.n_batch = self.n_batch
        parameters.n_ubatch = min(self.n_batch, parameters.n_ubatch)
        n_sequences = self._numbered(settings)
        if self._guard is not None:
            # What llama.cpp decodes first in a batch of several parts, nothing guards.
            self.n_batch = parameters.n_batch = parameters.n_ubatch
        parameters.n_seq_max = n_sequences
        # Without this llama.cpp reserves a row of n_vocab floats for each token of a batch.
        parameters.n_outputs_max = max(_LOGIT_ROWS, n_sequences)
        threads = settings.threads or cores()
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
        parameters.type_k = parameters.type_v = _KV_TYPES[settings.kv_type]
        parameters.swa_full = settings.swa_full
        parameters.no_perf = True
        with calling() as call:
            self._context = llama.llama_init_from_model(self._model, parameters) or None
        if self._context is None:
            raise ModelError(
                f"{self.path}: no context of {self.n_ctx} tokens: {_reason(call.lines)}; "
                "lower n_ctx or change kv_type"
            )
        # No more than a context holds; llama.cpp ends the process where a batch is larger.
        self.n_batch = llama.llama_n_batch(self._context)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
        self._apart = settings.batch_invariant and self.n_branches == 1
        self._recurrent = bool(
            llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
        )
        self.can_roll_back = not (self._recurrent or (self._window and not settings.swa_full))

    def _numbered(self, settings: LoadSettings) -> int:
        """Return how many sequences there are, the one that guards a window among them."""
        count = self.n_sequences * self.n_branches
        self._window = max(self._llama.llama_model_n_swa(self._model), 0)
        if self._window and self.n_branches > 1 and settings.swa_full:
            self._guard = count
            count += 1
        if count > MOST_SEQUENCES:
            raise ModelError(
                f"{self.path}: {self.n_sequences} texts side by side need {count} sequences, "
                f"and llama.cpp has {MOST_SEQUENCES}; use fewer (--parallel)"
            )
        return count

    def _refuse_unless_causal(self) -> None:
        llama = self._llama
        architecture = self._metadata("general.architecture")
        causal = self._metadata(f"{architecture}.attention.causal") != "false"
        if (
            not causal
            or llama.llama_model_has_encoder(self._model)
            or not llama.llama_model_has_decoder(self._model)
            or llama.llama_model_is_diffusion(self._model)
        ):
            raise ModelError(
                f"{self.path}: a '{architecture}' model predicts no next token; "
                "use a language model (decoder only)"
            )

    def _metadata(self, key: str) -> str | None:
        llama = self._llama
        size = llama.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        llama.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def _tokenize(self, text: bytes) -> list[int]:
        """Return llama.cpp's tokens of valid UTF-8: no BOS, control tokens not parsed."""
        # Its own each time: a thread may read a prompt while another one steps.
        buffer = np.empty(len(text) + 2, dtype=np.int32)
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = self._llama.llama_tokenize(
            self._vocab, text, len(text), pointer, len(buffer), False, False
        )
        if count < 0:
            raise ModelError(f"{self.path}: llama.cpp could not tokenise {len(text)} bytes")
        return buffer[:count].tolist()  # type: ignore[no-any-return]

    def _all_but_last(self, run: Run) -> Run:
        """Decode a run up to its last token, without logits; return what is left."""
        *head, last = run.tokens
        for first in range(0, len(head), self.n_batch):
            part = head[first : first + self.n_batch]
            at = self._fill(0, Run(run.seq_id, run.start + first, part, logits=False), every=False)
            self._decode_batch(at)
        return Run(run.seq_id, run.start + len(head), [last], run.logits)

    def _fill(self, at: int, run: Run, *, every: bool) -> int:
        """Write a run into the batch from row `at` on; return the row after it."""
        if at == 0:
            self._guard_all()
        self._unguarded = min(self._unguarded, run.start)
        batch = self._batch
        for offset, token_id in enumerate(run.tokens):
            batch.token[at] = token_id
            batch.pos[at] = run.start + offset
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = run.seq_id
            batch.logits[at] = every
            at += 1
        batch.logits[at - 1] = every or run.logits
        return at

    def _guard_all(self) -> None:
        """Let one more sequence hold all cells of a cache with a window that texts share.

        Of cells that one sequence alone holds, llama.cpp overwrites those outside its window,
        from which a text could then not go back. The guard lets go of what was removed.
        """
        if self._guard is None:
            return
        llama, since = self._llama, self._unguarded
        self._unguarded = sys.maxsize
        if since == sys.maxsize:
            return
        llama.llama_memory_seq_rm(self._memory, self._guard, since, -1)
        for seq_id in range(self._guard):
            if llama.llama_memory_seq_pos_max(self._memory, seq_id) >= since:
                llama.llama_memory_seq_cp(self._memory, seq_id, self._guard, since, -1)

    def _decode_batch(self, size: int) -> None:
        self._batch.n_tokens = size
        with calling() as call:
            status = self._llama.llama_decode(self._context, self._batch)
        if status == 1:
            raise RoomError(f"{self.path}: no room left in the context; raise n_ctx")
        if status:
            raise ModelError(f"{self.path}: llama.cpp failed to decode: {_reason(call.lines)}")

    def _row(self, row: int) -> Logits:
        pointer = self._llama.llama_get_logits_ith(self._context, row)
        view = self._numbers(np.ctypeslib.as_array(pointer, shape=(len(self.vocabulary),)))
        view.flags.writeable = False
        return view

    def _numbers(self, logits: Logits) -> Logits:
        """Return logits; raise ModelError where they are no numbers, which nobody would notice."""
        if not np.isfinite(logits.max()):
            raise ModelError(
                f"{self.path}: its logits are no numbers: the file is damaged, or the device "
                "computes wrongly; pull or convert it again, or set n_gpu_layers = 0"
            )
        return logits


def _kept(logits: Logits | None) -> Logits | None:
    """Copy what llama.cpp is going to write over."""
    return None if logits is None else logits.copy()


# llama.cpp keeps only the pointer: the object must live as long as the process.
_callbacks: list[Any] = []


@functools.cache
def _library() -> ModuleType:
    """Import llama_cpp once, with its messages sent to our log instead of stderr."""
    import llama_cpp.llama_cpp as llama

    callback = llama.llama_log_callback(_keep_line)
    _callbacks.append(callback)
    llama.llama_log_set(callback, None)
    with calling():
        llama.llama_backend_init()
    return llama


def _keep_line(_level: int, text: bytes, _data: object) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if line.strip("."):
        hear(_log_line, line)


def _log_line(line: str) -> None:
    log.debug("llama.cpp: %s", line)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reason(lines: Sequence[str]) -> str:
    """Return the first complaint among llama.cpp's messages, without its function names."""
    complaints = [
        line for line in lines if re.search(r"error|fail|invalid|corrupt", line, re.IGNORECASE)
    ]
    if not complaints:
        return "llama.cpp gave no reason"
    return re.sub(r"^(\w+: )+", "", complaints[0]).strip()


def _read_vocabulary(llama: ModuleType, vocab: Any, path: Path) -> Vocabulary:
    count = llama.llama_vocab_n_tokens(vocab)
    if count <= 0:
        raise ModelError(f"{path}: holds no vocabulary; use a language model")
    attributes = np.fromiter(
        (llama.llama_vocab_get_attr(vocab, i) for i in range(count)), dtype=np.int32, count=count
    )
    kinds = _kinds(llama, attributes)
    bos_id, eos_id = llama.llama_vocab_bos(vocab), llama.llama_vocab_eos(vocab)
    return Vocabulary.build(
        list(_pieces(llama, vocab, count)),
        kinds,
        [i for i in range(count) if llama.llama_vocab_is_eog(vocab, i)],
        bos_id=None if bos_id < 0 else bos_id,
        eos_id=None if eos_id < 0 else eos_id,
        add_bos=bool(llama.llama_vocab_get_add_bos(vocab)) and bos_id >= 0,
        markers={
            llama.llama_vocab_get_text(vocab, i).decode("utf-8", "replace"): i
            for i in np.flatnonzero((kinds == Kind.CONTROL) | (kinds == Kind.USER)).tolist()
        },
    )


def _kinds(llama: ModuleType, attributes: NDArray[np.int32]) -> NDArray[np.uint8]:
    kinds = np.full(len(attributes), Kind.NORMAL, dtype=np.uint8)
    # Later rows win where a token has several attributes.
    for flag, kind in (
        (llama.LLAMA_TOKEN_ATTR_USER_DEFINED, Kind.USER),
        (llama.LLAMA_TOKEN_ATTR_BYTE, Kind.BYTE),
        (llama.LLAMA_TOKEN_ATTR_UNUSED, Kind.UNUSED),
        (llama.LLAMA_TOKEN_ATTR_UNKNOWN, Kind.UNKNOWN),
        (llama.LLAMA_TOKEN_ATTR_CONTROL, Kind.CONTROL),
    ):
        kinds[attributes & flag != 0] = kind
    return kinds


def _pieces(llama: ModuleType, vocab: Any, count: int) -> Iterator[bytes]:
    """Yield what each token stands for, in the order of the ids."""
    size = 64
    buffer = ctypes.create_string_buffer(size)
    for token_id in range(count):
        written = llama.llama_token_to_piece(vocab, token_id, buffer, size, 0, False)
        if written < 0:
            size = -written
            buffer = ctypes.create_string_buffer(size)
            written = llama.llama_token_to_piece(vocab, token_id, buffer, size, 0, False)
        yield buffer.raw[:written]
