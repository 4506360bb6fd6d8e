"""GGUF files of a few tensors, whose header says known things."""

from pathlib import Path

import gguf
import numpy as np


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


def write_header(path: Path, architecture: str, values: dict[str, object]) -> Path:
    """Write a GGUF file that says how large a model is, and holds no weights."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(1024)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        else:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


PLAIN = {"block_count": 4, "embedding_length": 96, "attention.head_count": 6}
HEADS = {**PLAIN, "attention.key_length": 16, "attention.value_length": 16}
STATE = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 1}
ONE_STATE = 4 * (3 * (128 + 2 * 16) + 16 * 128)
WINDOW = {**HEADS, "attention.head_count_kv": 2, "attention.sliding_window": 8}
