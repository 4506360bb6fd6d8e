"""The mapping of a member's tokens onto the pivot's symbols: a sparse matrix and its file.

And those that are made of bytes alone: no embeddings, seconds to build.
"""

import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.errors import MappingError
from eva_local.jsonl import replace_file
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Vocabulary

# Told the share that is done, from 0 to 1.
Progress = Callable[[float], None]

# Raised when the file or what any method puts into it changes: older files are then stale.
FORMAT = 1
# What to do with a file that cannot be used.
REMEDY = "remove it, and it is built again"
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OverflowError),
)
_ARRAYS = {"indptr": "int64", "indices": "int32", "weights": "float32", "first": "int32"}
_HEADER = {"method": str, "member": str, "pivot": str, "n_symbols": int, "parameters": dict}
# Tokens between two calls of a progress function.
_STRIDE = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Mapping:
    """Where the probability of each of a member's tokens goes in the pivot's space.

    A sparse matrix (member tokens x symbols) in CSR form: row i holds symbols
    `indices[indptr[i]:indptr[i+1]]` (int32, ascending) with `weights` (float32), which are
    non-negative and sum to 1, or the row is empty. The symbols are the pivot's tokens and,
    last, END.

    `first` is empty, or (symbols,) int32: the member's token that its own tokenisation of
    each symbol begins with, -1 for none. Where it is given, the mass of a token is split
    among the symbols that it begins, in proportion to the pivot's own probabilities.
    """

    method: str
    member: str
    pivot: str
    n_symbols: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    weights: NDArray[np.float32]
    first: NDArray[np.int32]
    parameters: Table[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the mapping; the same mapping always gives the same bytes."""
        header = {"format": FORMAT, **{name: getattr(self, name) for name in _HEADER}}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        text = json.dumps(header, sort_keys=True).encode()
        file = io.BytesIO()
        np.savez_compressed(file, header=np.frombuffer(text, dtype=np.uint8), **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Mapping":
        """Read a mapping; raise MappingError where the file is damaged or no mapping."""
        try:
            with path.open("rb") as data, np.load(data, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                header = json.loads(file["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}, this program reads {FORMAT}")
            mapping = cls(**arrays, **{key: kind(header[key]) for key, kind in _HEADER.items()})
            mapping.check()
        except _UNREADABLE as error:
            raise MappingError(f"{path}: not a usable mapping ({error}); {REMEDY}") from error
        return mapping

    def check(self) -> None:
        """Raise ValueError where the arrays make no valid matrix."""
        for name, kind in _ARRAYS.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != np.dtype(kind):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
        indptr, indices, first = self.indptr, self.indices, self.first
        if len(indptr) < 1 or indptr[0] != 0 or indptr[-1] != len(indices):
            raise ValueError("rows do not cover the entries")
        if np.any(np.diff(indptr) < 0) or len(self.weights) != len(indices):
            raise ValueError("rows are out of order")
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.n_symbols:
            raise ValueError("a symbol is out of range")
        if len(first) not in (0, self.n_symbols):
            raise ValueError("first does not match the symbols")
        if len(first) and not -1 <= first.min() <= first.max() < len(indptr) - 1:
            raise ValueError("a first token is out of range")
        self._check_rows(np.diff(indptr))

    def _check_rows(self, counts: NDArray[np.int64]) -> None:
        rows, weights = np.repeat(np.arange(len(counts)), counts), self.weights
        if np.any(np.diff(rows * self.n_symbols + self.indices) <= 0):
            raise ValueError("symbols of a row do not ascend")
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError("a weight is no probability")
        if not np.allclose(np.bincount(rows, weights, len(counts))[counts > 0], 1, atol=1e-4):
            raise ValueError("a row does not sum to 1")


def from_entries(
    method: str,
    member: Vocabulary,
    pivot: Vocabulary,
    rows: NDArray[np.int64],
    symbols: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    parameters: Table[str, Any] | None = None,
) -> Mapping:
    """Make a mapping from (row, symbol, weight) entries for ordinary tokens.

    END ids map to END here. Weights that are not positive are dropped and each row is scaled
    to sum 1. Entries of tokens that may not speak, or to such symbols, are dropped.
    """
    may = member.speakable[rows] & pivot.speakable[symbols] & (weights > 0)
    ends = np.asarray(sorted(member.end_ids), dtype=np.int64)
    rows = np.concatenate([rows[may], ends])
    symbols = np.concatenate([symbols[may], np.full(len(ends), len(pivot), dtype=np.int64)])
    weights = np.concatenate([weights[may], np.ones(len(ends))])
    # Sorts the entries by row, then symbol, and adds up those that are given twice.
    cells, cell = np.unique(rows * (len(pivot) + 1) + symbols, return_inverse=True)
    rows, symbols = np.divmod(cells, len(pivot) + 1)
    summed = np.bincount(cell, weights, minlength=len(cells))
    sums = np.bincount(rows, summed, minlength=len(member))
    counts = np.bincount(rows, minlength=len(member))
    return Mapping(
        method=method,
        member=member.fingerprint,
        pivot=pivot.fingerprint,
        n_symbols=len(pivot) + 1,
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices=symbols.astype(np.int32),
        weights=(summed / sums[rows]).astype(np.float32),
        first=np.empty(0, dtype=np.int32),
        parameters=dict(parameters or {}),
    )


def twins(member: Vocabulary, pivot: Vocabulary) -> NDArray[np.int64]:
    """Return (member tokens,): the pivot's token with the same bytes, or -1."""
    if member.fingerprint == pivot.fingerprint:
        return np.where(member.speakable, np.arange(len(member)), -1)
    twin = np.full(len(member), -1, dtype=np.int64)
    ids, spoken = pivot.ids, np.flatnonzero(member.speakable).tolist()
    twin[spoken] = [ids.get(member.pieces[token_id], -1) for token_id in spoken]
    return twin


def surface(member: Tokenizer, pivot: Tokenizer, progress: Progress | None = None) -> Mapping:
    """Map each token to its twin, else to the first symbol of the pivot's tokens of its bytes."""
    vocabulary = member.vocabulary
    symbols = twins(vocabulary, pivot.vocabulary)
    alone = np.flatnonzero(vocabulary.speakable & (symbols < 0)).tolist()
    symbols[alone] = _first_ids(pivot, vocabulary.pieces, alone, progress)
    rows = np.flatnonzero(symbols >= 0)
    return from_entries(
        "surface", vocabulary, pivot.vocabulary, rows, symbols[rows], np.ones(len(rows))
    )


def surface_refined(
    member: Tokenizer, pivot: Tokenizer, progress: Progress | None = None
) -> Mapping:
    """Map as `surface` does, and record which of the member's tokens each symbol begins with."""
    mapping = surface(member, pivot, progress)
    first = np.full(mapping.n_symbols, -1, dtype=np.int32)
    spoken = np.flatnonzero(pivot.vocabulary.speakable).tolist()
    same = mapping.member == mapping.pivot
    pieces = pivot.vocabulary.pieces
    first[spoken] = spoken if same else _first_ids(member, pieces, spoken, progress)
    return replace(mapping, method="surface-refined", first=first)


def _first_ids(
    tokenizer: Tokenizer, pieces: Sequence[bytes], chosen: list[int], progress: Progress | None
) -> list[int]:
    """Return the first token of each chosen piece, -1 where the vocabulary cannot spell it."""
    ids = []
    for position, token_id in enumerate(chosen):
        if progress is not None and position % _STRIDE == 0:
            progress(position / len(chosen))
        piece = pieces[token_id]
        ids.append(tokenizer.encode(piece)[0] if tokenizer.missing_bytes.isdisjoint(piece) else -1)
    return ids
