"""A member's vocabulary: which bytes each token stands for, and what kind of token it is."""

import ctypes
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.errors import ModelError
from eva_local.llama.model_file import ModelFile


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
