"""Tiny GGUF files of many architectures, with random weights: made in a moment, for tests.

llama.cpp itself says which tensors an architecture wants: `llama_model_init_from_user` makes a
model from metadata alone and asks for the numbers of each tensor. They are drawn here, kept, and
written behind the same metadata. The sizes follow llama.cpp's own test of its architectures.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

# Each ASCII character and some words, so that text becomes longer and shorter tokens.
WORDS = (" the", " and", " light", "ing", "er")
_SPECIAL = (("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL))
_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}

_STATE_1 = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
}
_STATE_2 = {**_STATE_1, "ssm.time_step_rank": 8, "ssm.group_count": 1}
_DELTA_NET = {
    **_STATE_1,
    "ssm.inner_size": 64,
    "ssm.group_count": 2,
    "full_attention_interval": 2,
    "rope.dimension_sections": [2, 2, 2, 2],
}
_EXPERTS = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 32,
    "expert_shared_count": 1,
}
_HEADS = {"attention.key_length": 16, "attention.value_length": 16}
_NO_ATTENTION = {"attention.head_count": 0, "feed_forward_length": 0}
_WINDOW = {**_HEADS, "attention.sliding_window": 32}

#: What each architecture wants beside, or instead of, what all of them want.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mamba": {**_STATE_1, **_NO_ATTENTION},
    "mamba2": {**_STATE_2, **_NO_ATTENTION},
    # With smaller heads, a CPU computes batches otherwise than single tokens.
    "rwkv7": {
        "wkv.head_size": 64,
        "embedding_length": 128,
        "attention.decay_lora_rank": 16,
        "attention.iclr_lora_rank": 16,
        "attention.value_residual_mix_lora_rank": 16,
        "attention.gate_lora_rank": 16,
        "token_shift_count": 2,
        "attention.head_count": 0,
    },
    "lfm2": {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0, 2]},
    "qwen35": {**_DELTA_NET, **_HEADS},
    "qwen3next": {**_DELTA_NET, **_HEADS, **_EXPERTS},
    "granitehybrid": {**_STATE_2, "attention.head_count_kv": [0, 2, 0, 2]},
    "falcon-h1": _STATE_2,
    "nemotron_h": {
        **_STATE_2,
        "attention.head_count_kv": [0, 0, 2, 0],
        "feed_forward_length": [0, 128, 0, 0],
    },
    "jamba": {**_STATE_1, "attention.head_count_kv": [0, 2, 0, 2]},
    "gemma3": {**_WINDOW, "block_count": 6},
    "gemma4": {
        **_WINDOW,
        "block_count": 6,
        "attention.sliding_window_pattern": [True, True, False, True, True, False],
        "attention.key_length_swa": 16,
        "attention.value_length_swa": 16,
        "rope.freq_base_swa": 10000.0,
        "embedding_length_per_layer_input": 32,
        "attention.shared_kv_layers": 3,
    },
    "gpt-oss": {**_WINDOW, **_EXPERTS},
}
#: Those whose layers, or some of them, look back over a window of 32 tokens.
WINDOWED = ("gemma3", "gemma4", "gpt-oss")

_COMMON: dict[str, Any] = {
    "block_count": 4,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}


def write_tiny_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    n_layers: int | None = None,
    width: int = 64,
    n_ctx: int = 512,
    quantisation: str = "F32",
    words: Sequence[str] = WORDS,
    chat_template: str | None = None,
    special: Mapping[str, TokenType] | None = None,
    seed: int = 0,
) -> Path:
    """Write a model with a SentencePiece vocabulary to `path`, and return it.

    The vocabulary is <unk>, <s>, </s>, the 256 byte tokens, printable ASCII, and `words` with
    all their beginnings (SentencePiece can only merge to a word through these), then what is
    `special`, with its kind. `width` must be
    a multiple of 64; `quantisation` of the matrices is F32, Q4_0 or Q8_0. Equal arguments
    give equal files.
    """
    sizes = {
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "rope.dimension_count": width // 4,
    }
    values = {**_COMMON, **sizes, **ARCHITECTURES[architecture]}
    if n_layers is not None:
        values["block_count"] = n_layers

    def header(target: Path) -> GGUFWriter:
        writer = GGUFWriter(target, architecture)
        writer.add_name("tiny")
        writer.add_context_length(n_ctx)
        writer.add_file_type(_FILE_TYPES[quantisation])
        _add_vocabulary(writer, words, special or {})
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        for key, value in values.items():
            _add(writer, f"{architecture}.{key}", value)
        return writer

    bare = path.with_suffix(".metadata")
    writer = header(bare)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tensors = _drawn(bare, seed)
    bare.unlink()
    writer = header(path)
    kind = GGMLQuantizationType[quantisation]
    for name, numbers in tensors.items():
        if quantisation != "F32" and numbers.ndim == 2:
            writer.add_tensor(name, quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _drawn(metadata: Path, seed: int) -> dict[str, np.ndarray]:
    """Return random numbers for every tensor that llama.cpp wants for this metadata."""
    import llama_cpp
    import llama_cpp.llama_cpp as llama

    ggml, library = _libraries(Path(llama_cpp.__file__).parent / "lib")
    tensors: dict[str, np.ndarray] = {}

    def fill(tensor: int, _data: int) -> None:
        name = ggml.ggml_get_name(tensor).decode()
        if name.endswith("scale"):
            return
        # The beginning of a ggml_tensor: its type, then, behind a pointer, its sizes.
        kind = ctypes.c_int32.from_address(tensor).value
        sizes = list((ctypes.c_int64 * 4).from_address(tensor + 16))
        generator = np.random.default_rng([zlib.crc32(name.encode()), seed])
        numbers = _numbers(name, sizes, generator).astype(np.float16 if kind else np.float32)
        assert numbers.nbytes == ggml.ggml_nbytes(tensor)
        ggml.ggml_backend_tensor_set(tensor, numbers.ctypes.data, 0, numbers.nbytes)
        while len(sizes) > 1 and sizes[-1] == 1:
            sizes.pop()
        tensors[name] = numbers.reshape(sizes[::-1])

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(fill)
    header = ggml.gguf_init_from_file(os.fsencode(metadata), _InitParameters(True, None))
    assert header
    model = library.llama_model_init_from_user(
        header, ctypes.cast(callback, ctypes.c_void_p), None, llama.llama_model_default_params()
    )
    assert model, f"llama.cpp cannot make {metadata.stem}"
    llama.llama_model_free(model)
    ggml.gguf_free(header)
    return tensors


class _InitParameters(ctypes.Structure):
    """ggml's `gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def _libraries(folder: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    import llama_cpp.llama_cpp as llama

    suffix = "dylib" if (folder / "libggml-base.dylib").exists() else "so"
    ggml = ctypes.CDLL(str(folder / f"libggml-base.{suffix}"))
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParameters]
    ggml.gguf_free.argtypes = [ctypes.c_void_p]
    ggml.ggml_get_name.restype = ctypes.c_char_p
    ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_nbytes.restype = ctypes.c_size_t
    ggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_tensor_set.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    ]
    library = ctypes.CDLL(str(folder / f"libllama.{suffix}"))
    library.llama_model_init_from_user.restype = ctypes.c_void_p
    library.llama_model_init_from_user.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, llama.llama_model_params)
    ]
    return ggml, library


def _numbers(name: str, sizes: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Draw numbers for a tensor so that all layers matter and nothing grows without bound."""
    drawn = generator.standard_normal(int(np.prod(sizes)))
    if "ssm_a" in name:
        return -np.abs(drawn) - 0.05
    if "ssm_d" in name and "dt" not in name:
        return np.ones_like(drawn)
    if name.endswith("weight") and ("norm" in name or "ln" in name):
        return 1 + 0.05 * drawn
    if "conv" in name and name.endswith("weight"):
        return 0.5 * drawn
    if name.endswith("bias"):
        return 0.1 * drawn
    if sum(size > 1 for size in sizes) < 2:
        return 0.3 * drawn
    if "token_embd" in name:
        return drawn
    scaled: np.ndarray = drawn / np.sqrt(sizes[0]) * (3.0 if "output.weight" in name else 1.5)
    return scaled


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_vocabulary(
    writer: GGUFWriter, words: Sequence[str], special: Mapping[str, TokenType]
) -> None:
    tokens = [(text, kind, 0.0) for text, kind in _SPECIAL]
    tokens += [(f"<0x{byte:02X}>", TokenType.BYTE, 0.0) for byte in range(256)]
    characters = [chr(code) for code in range(0x20, 0x7F)]
    beginnings = {word[:end] for word in words for end in range(2, len(word) + 1)}
    # SentencePiece merges the best score first: longer pieces win.
    for piece in [*characters, *sorted(beginnings, key=lambda text: (len(text), text))]:
        tokens.append((piece.replace(" ", "\u2581"), TokenType.NORMAL, float(len(piece))))
    tokens += [(text, kind, 0.0) for text, kind in special.items()]
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
