"""A file that llama.cpp has loaded, and its vocabulary: what bytes and kind each token has."""

import ctypes
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.config.elsewhere import is_gguf
from eva_local.config.specs import LoadSettings, part_names
from eva_local.errors import ModelError
from eva_local.llama.backend import calling, can_offload, library, reason


class Kind(IntEnum):
    """What a token is for, from llama.cpp's token attributes."""

    NORMAL = 0
    USER = 1
    BYTE = 2
    CONTROL = 3
    UNKNOWN = 4
    UNUSED = 5


# Several ids may share bytes: a written-out token stands for them before a byte fallback does.
_SPEAKABLE = (Kind.NORMAL, Kind.USER, Kind.BYTE)
# llama.cpp finds these by their names in what a template writes.
_SPELLED = (Kind.CONTROL, Kind.USER, Kind.UNKNOWN)
# What to do where llama.cpp refuses a file for a reason with these words.
_REMEDIES = {
    "unknown model architecture": "it needs a newer llama.cpp than this version of eva-local has",
    "alloc": "lower n_gpu_layers, take a smaller quantisation, or another GPU (main_gpu)",
    "main_gpu": "main_gpu counts the GPUs from 0",
}


@dataclass(eq=False, repr=False)
class Vocabulary:
    """The tokens of one model.

    `pieces[token_id]` are the bytes of a token (empty for control and unknown tokens);
    `kinds: (n,) uint8`; `speakable: (n,) bool` marks tokens that may stand for text: not
    control, unknown, unused or END, and not empty. `ids` has the one that stands for each piece of
    theirs: a written-out token before a byte token. `markers` are the spelled forms of the
    tokens that only a chat template may write; llama.cpp takes white space away beside those of
    `strips_left` and `strips_right`. `eos_id` is the one of the END ids with which the
    model ends a text, where it has one. `fingerprint` is equal for equal vocabularies.
    """

    pieces: Sequence[bytes]
    kinds: NDArray[np.uint8]
    end_ids: Collection[int]
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    markers: Mapping[str, int] = field(default_factory=dict)
    strips_left: Collection[int] = ()
    strips_right: Collection[int] = ()

    def __post_init__(self) -> None:
        self.pieces = tuple(self.pieces)
        self.kinds = np.asarray(self.kinds, dtype=np.uint8)
        self.end_ids = frozenset(self.end_ids)
        filled = np.fromiter(map(bool, self.pieces), dtype=np.bool_, count=len(self.pieces))
        self.speakable = filled & (self.kinds <= Kind.BYTE)
        self.speakable[list(self.end_ids)] = False
        self.fingerprint = self._hashed()
        self.ids: Mapping[bytes, int] = self._ids_by_piece()

    def __len__(self) -> int:
        return len(self.pieces)

    def spelled(self, token_id: int | None) -> str:
        """Return how a token is written: a control token by its name; none, or without, is ""."""
        for spelling, marker_id in self.markers.items():
            if marker_id == token_id:
                return spelling
        return "" if token_id is None else self.pieces[token_id].decode("utf-8", "replace")

    def join(self, token_ids: Iterable[int]) -> bytes:
        """Return the bytes that a row of tokens stands for."""
        pieces = self.pieces
        return b"".join([pieces[token_id] for token_id in token_ids])

    def _hashed(self) -> str:
        lengths = np.fromiter(map(len, self.pieces), dtype="<u4", count=len(self.pieces))
        digest = hashlib.sha256(b"eva-local vocabulary 1\0")
        digest.update(lengths.tobytes())
        digest.update(b"".join(self.pieces))
        digest.update(self.kinds.tobytes())
        digest.update(np.asarray(sorted(self.end_ids), dtype="<u4").tobytes())
        return digest.hexdigest()

    def _ids_by_piece(self) -> dict[bytes, int]:
        ids: dict[bytes, int] = {}
        # Written last wins: byte tokens first, and within a kind the lowest id at the end.
        for kind in reversed(_SPEAKABLE):
            for token_id in np.flatnonzero(self.speakable & (self.kinds == kind))[::-1].tolist():
                ids[self.pieces[token_id]] = token_id
        return ids


class ModelFile:
    """A GGUF file that llama.cpp has loaded; `handle` and `vocab` are its pointers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle: Any = None
        self.vocab: Any = None
        self._llama = library()

    def load(
        self,
        settings: LoadSettings,
        progress: Callable[[float], None],
        *,
        vocabulary_only: bool = False,
        unfilled: bool = False,
    ) -> None:
        """Load it, or its vocabulary only, or all but its weights; ModelError if llama.cpp cannot.

        `progress` is told the share of the weights that is loaded.
        """
        llama = self._llama
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = vocabulary_only
        if unfilled:
            parameters.no_alloc, parameters.load_mode = True, llama.LLAMA_LOAD_MODE_NONE
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
            self.handle = llama.llama_model_load_from_file(path, parameters) or None
        if self.handle is None:
            # Of several files llama.cpp need not name the one that is wrong.
            parts = map(self.path.with_name, part_names(self.path.name))
            wrong = next((part for part in parts if not is_gguf(part)), self.path)
            why = reason(call.lines)
            told = (remedy for word, remedy in _REMEDIES.items() if word in why)
            raise ModelError(f"{wrong}: {why}; {next(told, 'pull or convert the file again')}")
        self.vocab = llama.llama_model_get_vocab(self.handle)

    def close(self) -> None:
        """Free the memory."""
        if self.handle is not None:
            self._llama.llama_model_free(self.handle)
        self.handle = None

    def metadata(self, key: str) -> str | None:
        """Return a value of the file, as text."""
        read, handle = self._llama.llama_model_meta_val_str, self.handle
        size = read(handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        read(handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def tokenize(self, text: bytes) -> list[int]:
        """Return llama.cpp's tokens of valid UTF-8: no BOS, control tokens not parsed."""
        # Its own each time: a thread may read a prompt while another one steps.
        buffer = np.empty(len(text) + 2, dtype=np.int32)
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = self._llama.llama_tokenize(
            self.vocab, text, len(text), pointer, len(buffer), False, False
        )
        if count < 0:
            raise ModelError(f"{self.path}: llama.cpp could not tokenise {len(text)} bytes")
        return buffer[:count].tolist()  # type: ignore[no-any-return]

    def refuse_unless_causal(self) -> None:
        """Raise ModelError for a model that predicts no next token."""
        llama = self._llama
        architecture = self.metadata("general.architecture")
        if (
            self.metadata(f"{architecture}.attention.causal") == "false"
            or llama.llama_model_has_encoder(self.handle)
            or not llama.llama_model_has_decoder(self.handle)
            or llama.llama_model_is_diffusion(self.handle)
        ):
            raise ModelError(
                f"{self.path}: a '{architecture}' model predicts no next token; "
                "use a language model (decoder only)"
            )


def read_vocabulary(llama: ModuleType, file: ModelFile) -> Vocabulary:
    """Read the vocabulary of a loaded file; raise ModelError where it has none."""
    vocab = file.vocab
    count = llama.llama_vocab_n_tokens(vocab)
    if count <= 0:
        raise ModelError(f"{file.path}: holds no vocabulary; use a language model")
    attributes = np.fromiter(
        (llama.llama_vocab_get_attr(vocab, i) for i in range(count)), dtype=np.int32, count=count
    )
    kinds = _kinds(llama, attributes)
    guess = llama.llama_vocab_eos(vocab)
    bos_id = _named(file, "bos", llama.llama_vocab_bos(vocab), kinds)
    eos_id = _named(file, "eos", guess, kinds)
    ends = {i for i in range(count) if llama.llama_vocab_is_eog(vocab, i)}
    if eos_id is None and guess >= 0 and kinds[guess] != Kind.CONTROL:
        ends.discard(guess)
    return Vocabulary(
        list(_pieces(llama, vocab, count)),
        kinds,
        ends,
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=bool(llama.llama_vocab_get_add_bos(vocab)) and bos_id is not None,
        markers={
            llama.llama_vocab_get_text(vocab, i).decode("utf-8", "replace"): i
            for i in np.flatnonzero(np.isin(kinds, _SPELLED)).tolist()
        },
        strips_left=np.flatnonzero(attributes & llama.LLAMA_TOKEN_ATTR_LSTRIP).tolist(),
        strips_right=np.flatnonzero(attributes & llama.LLAMA_TOKEN_ATTR_RSTRIP).tolist(),
    )


def _named(file: ModelFile, name: str, token_id: int, kinds: NDArray[np.uint8]) -> int | None:
    """Return a special token that the file names, or that llama.cpp rightly supposes.

    Of a file that names none it takes 1 and 2 for them, which is SentencePiece's custom, or, where
    tokens are byte-level, 11: that is a comma.
    """
    told = file.metadata(f"tokenizer.ggml.{name}_token_id") == str(token_id)
    return token_id if told or (token_id in (1, 2) and kinds[token_id] == Kind.CONTROL) else None


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
    write, buffer = llama.llama_token_to_piece, ctypes.create_string_buffer(64)
    for token_id in range(count):
        while (written := write(vocab, token_id, buffer, len(buffer), 0, False)) < 0:
            buffer = ctypes.create_string_buffer(-written)
        yield buffer.raw[:written]
