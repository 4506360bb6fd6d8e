"""Write a tiny GGUF model with random weights: for the smoke test, and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

# Each ASCII character and some words, so that text becomes longer and shorter tokens.
WORDS = (" the", " and", " light", "ing", "er")
_SPECIAL = (
    ("<unk>", TokenType.UNKNOWN),
    ("<s>", TokenType.CONTROL),
    ("</s>", TokenType.CONTROL),
)
_FILE_TYPES = {
    "F16": LlamaFileType.MOSTLY_F16,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}


def write_tiny_gguf(
    path: Path,
    *,
    n_layers: int = 2,
    width: int = 64,
    n_heads: int = 4,
    n_ctx: int = 256,
    quantisation: str = "Q4_0",
    words: Sequence[str] = WORDS,
    chat_template: str | None = None,
    seed: int = 0,
) -> None:
    """Write a Llama model with a SentencePiece vocabulary to `path`.

    The vocabulary is <unk>, <s>, </s>, the 256 byte tokens, printable ASCII, and `words` with
    all their beginnings (SentencePiece can only merge to a word through these). `width` must be
    a multiple of 32 and of `n_heads`; `quantisation` is F16, Q4_0 or Q8_0. Equal arguments
    give equal weights.
    """
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(_FILE_TYPES[quantisation])
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_heads)
    writer.add_rope_dimension_count(width // n_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    n_vocab = _add_vocabulary(writer, words)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    _add_weights(writer, n_vocab, n_layers, width, GGMLQuantizationType[quantisation], seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter, words: Sequence[str]) -> int:
    """Add the tokens and return their number."""
    tokens = [(text, kind, 0.0) for text, kind in _SPECIAL]
    tokens += [(f"<0x{byte:02X}>", TokenType.BYTE, 0.0) for byte in range(256)]
    characters = [chr(code) for code in range(0x20, 0x7F)]
    beginnings = {word[:end] for word in words for end in range(2, len(word) + 1)}
    # SentencePiece merges the best score first: longer pieces win.
    for piece in [*characters, *sorted(beginnings, key=lambda text: (len(text), text))]:
        tokens.append((piece.replace(" ", "\u2581"), TokenType.NORMAL, float(len(piece))))
    texts, kinds, scores = zip(*tokens, strict=True)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_scores(scores)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return len(tokens)


def _add_weights(
    writer: GGUFWriter,
    n_vocab: int,
    n_layers: int,
    width: int,
    quantisation: GGMLQuantizationType,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        data = quantize(weights.astype(np.float32), quantisation)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=quantisation)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))

    matrix("token_embd", n_vocab, width)
    for layer in range(n_layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{part}", width, width)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", 2 * width, width)
        matrix(f"{block}.ffn_up", 2 * width, width)
        matrix(f"{block}.ffn_down", width, 2 * width)
    norm("output_norm")
    matrix("output", n_vocab, width)
