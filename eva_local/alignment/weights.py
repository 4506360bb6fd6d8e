"""A model's output layer: one embedding per token, out of its GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eva_local.errors import MappingError

# Where a model keeps no output matrix of its own, it uses that of its input.
_TENSORS = ("output.weight", "token_embd.weight")
_TOKENS = "tokenizer.ggml.tokens"
_SPLIT = "split.count"
# Rows that are dequantised together.
_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class OutputLayer:
    """What a model's next-token logits are made of.

    `embeddings: (n_vocab, width) float32`, one row per token. `spellings` are the tokens as the
    vocabulary file writes them, where a space is "▁" or "Ġ" and a byte may be "<0x0A>".
    """

    embeddings: NDArray[np.float32]
    spellings: tuple[bytes, ...]


def output_layer(path: Path) -> OutputLayer:
    """Read the output layer of the GGUF file at `path`, whatever its quantisation.

    Rows beyond the vocabulary (some models round its size up) are left out.
    Raises MappingError where the file is split, holds no such matrix or one that cannot be read.
    """
    from gguf import GGUFReader  # slow to import, and only a mapping that is built needs it

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise MappingError(f"{path}: no GGUF file that can be read ({error})") from error
    split = reader.get_field(_SPLIT)
    if split is not None and split.contents() > 1:
        raise MappingError(
            f"{path}: one of {split.contents()} parts; join them with llama-gguf-split --merge, "
            "or use a surface mapping"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tensor = next((tensors[name] for name in _TENSORS if name in tensors), None)
    tokens = reader.get_field(_TOKENS)
    if tensor is None or tokens is None:
        missing = " or ".join(_TENSORS) if tensor is None else _TOKENS
        raise MappingError(f"{path}: has no {missing}; use a surface mapping")
    spellings = tuple(bytes(tokens.parts[place]) for place in tokens.data)
    if len(tensor.data) < len(spellings):
        raise MappingError(
            f"{path}: {tensor.name} has {len(tensor.data)} rows for {len(spellings)} tokens; "
            "convert the file again, or use a surface mapping"
        )
    try:
        embeddings = dequantised(tensor.data[: len(spellings)], int(tensor.tensor_type))
    except NotImplementedError as error:
        raise MappingError(
            f"{path}: {tensor.name} is quantised as {tensor.tensor_type.name}, which the gguf "
            "package cannot read; use a file in another quantisation, or a surface mapping"
        ) from error
    return OutputLayer(embeddings, spellings)


def dequantised(
    data: NDArray[np.generic], tensor_type: int, rows: int = _ROWS
) -> NDArray[np.float32]:
    """Return a quantised matrix as float32, `rows` rows at a time.

    `data: (n, bytes of a row)`, or `(n, width)` of floats, as gguf gives it.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(tensor_type)
    first = dequantize(data[:rows], kind)
    whole = np.empty((len(data), first.shape[1]), dtype=np.float32)
    whole[:rows] = first
    for start in range(rows, len(data), rows):
        whole[start : start + rows] = dequantize(data[start : start + rows], kind)
    return whole
