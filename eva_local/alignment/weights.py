"""A model's output layer: one embedding per token, out of its GGUF file."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.config.specs import part_names
from eva_local.errors import MappingError
from eva_local.llama.model import Model
from eva_local.llama.vocab import Vocabulary

_TOKENS = "tokenizer.ggml.tokens"
# Rows that are dequantised together.
_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class OutputLayer:
    """What the next-token logits of a vocabulary's model are made of, still quantised.

    `data: (n_vocab, bytes)`, a row per token in ggml's quantisation `kind`, mapped from the
    file. `spellings` are the tokens as the vocabulary in the file writes them, where a space is
    "▁" or "Ġ" and a byte may be "<0x0A>".
    """

    vocabulary: Vocabulary
    data: NDArray[Any]
    kind: int
    spellings: tuple[bytes, ...]

    def embeddings(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (len(token_ids), width); NotImplementedError where gguf cannot dequantise."""
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.kind)
        rows = np.empty((len(token_ids), dequantize(self.data[:1], kind).shape[1]), np.float32)
        for start in range(0, len(token_ids), _ROWS):
            part = slice(start, start + _ROWS)
            rows[part] = dequantize(self.data[token_ids[part]], kind)
        return rows


def output_layer(model: Model) -> OutputLayer:
    """Find the output layer in the GGUF file of a model, whatever its quantisation.

    Rows beyond the vocabulary (some models round its size up) are left out.
    Raises MappingError where the file holds no such matrix or one that cannot be read.
    """
    from gguf import GGUFReader  # slow to import, and only a mapping that is built needs it

    path = model.path
    try:
        readers = [GGUFReader(path.with_name(name)) for name in part_names(path.name)]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise MappingError(
            f"{path}: the gguf package cannot read it ({error}); use a file in another "
            "quantisation, or a surface mapping"
        ) from error
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    # Where a model keeps no output matrix of its own, it uses that of its input.
    tensor = tensors.get("output.weight", tensors.get("token_embd.weight"))
    tokens = readers[0].get_field(_TOKENS)
    if tensor is None or tokens is None:
        missing = "output.weight or token_embd.weight" if tensor is None else _TOKENS
        raise MappingError(f"{path}: has no {missing}; use a surface mapping")
    spellings = tuple(bytes(tokens.parts[index]) for index in tokens.data)
    if len(tensor.data) < len(spellings):
        raise MappingError(
            f"{path}: {tensor.name} has {len(tensor.data)} rows for {len(spellings)} tokens; "
            "convert the file again, or use a surface mapping"
        )
    data, kind = tensor.data[: len(spellings)], int(tensor.tensor_type)
    layer = OutputLayer(model.vocabulary, data, kind, spellings)
    try:
        layer.embeddings(np.arange(1))
    except NotImplementedError as error:
        raise MappingError(
            f"{path}: {tensor.name} is quantised as {tensor.tensor_type.name}, which the gguf "
            "package cannot read; use a file in another quantisation, or a surface mapping"
        ) from error
    return layer
