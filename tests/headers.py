"""GGUF files of a few tensors, whose header says known things."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

Tensor = tuple[np.ndarray, gguf.GGMLQuantizationType | None]


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "tiny")
    writer.add_name("Tiny")
    writer.add_license("mit")
    writer.add_context_length(77)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "\N{SNOWMAN}", "c"])
    writer.add_token_scores([0.5, 1.5, 2.5])
    writer.add_array("tiny.nested", [[1, 2], [3]])
    writer.add_bool("tiny.yes", True)
    writer.add_float64("tiny.wide", 1.5)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("one", np.zeros((2, 3), dtype=np.float32))
    writer.add_tensor("two", np.zeros(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_vocabulary(
    path: Path, special: dict[str, gguf.TokenType], model: str = "gpt2", **named: object
) -> Path:
    """Write a vocabulary without weights: 32 letters, and then `special` tokens."""
    kinds = {**dict.fromkeys(map(chr, range(96, 128)), gguf.TokenType.NORMAL), **special}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(list(kinds))
    writer.add_token_types(list(kinds.values()))
    writer.add_token_merges(["a b"])
    for name, value in named.items():
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_other(path: Path, architecture: str, values: dict[str, object], tensors: int = 1) -> Path:
    """Write a GGUF file in the order of llama.cpp's converter: a vocabulary comes last."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32}
        writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.STRING))
    if architecture != "clip":
        writer.add_token_list(["a", "b"])
    for number in range(tensors):
        writer.add_tensor(f"t{number}", np.zeros((2, 3), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewritten(
    source: Path, target: Path, change: Callable[[str, np.ndarray], Tensor | None], **split: int
) -> Path:
    """Write a model again, with each tensor as `change` makes it: its data and its type."""
    reader = gguf.GGUFReader(source)
    fields = {field.name: field for field in reader.fields.values()}
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture").contents(), **split)
    for name, field in fields.items():
        if not name.startswith("GGUF."):
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        made = change(tensor.name, tensor.data)
        if made is not None:
            writer.add_tensor(tensor.name, made[0], raw_dtype=made[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
