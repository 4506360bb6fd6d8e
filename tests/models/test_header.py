"""The header of a GGUF file, against files that the gguf package writes."""

import contextlib
from pathlib import Path

import gguf
import pytest
from headers import write_gguf, write_other
from hypothesis import given
from hypothesis import strategies as st

from eva_local.errors import StoreError
from eva_local.models.header import Header, read_header, refusal
from tools.tiny_gguf import ARCHITECTURES, write_tiny_gguf


def test_header_says_what_was_written(tmp_path: Path) -> None:
    assert read_header(write_gguf(tmp_path / "tiny.gguf")) == Header(
        architecture="tiny",
        name="Tiny",
        licence="mit",
        parameters=11,
        n_ctx_train=77,
        n_vocab=3,
        tokenizer="gpt2",
        quantisation="Q4_K_M",
        has_chat_template=True,
        chat_template="{{ messages }}",
    )


def test_a_header_may_say_little(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "bare")
    writer.add_file_type(999)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = Header("bare", None, None, 0, None, None, None, None, False)
    assert read_header(tmp_path / "bare.gguf") == expected


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF\1\0\0\0", b"<html>" * 99, b"\0" * 99])
def test_what_is_no_gguf_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"x\.gguf: not a GGUF file, or a damaged one"):
        read_header(path)
    with pytest.raises(StoreError, match=r"y\.gguf: cannot be read: No such file"):
        read_header(tmp_path / "y.gguf")


@pytest.mark.parametrize(
    ("architecture", "values", "tensors", "told"),
    [
        ("llama", {"general.type": "adapter"}, 2, "a LoRA adapter; merge it into its model"),
        ("controlvector", {}, 1, "a control vector"),
        ("llama", {"general.type": "imatrix"}, 1, "an importance matrix"),
        ("clip", {"general.type": "mmproj"}, 1, "sees or hears; give the language model"),
        ("clip", {"general.type": "model"}, 1, "sees or hears"),
        ("llama", {"general.type": "model"}, 0, "a vocabulary without weights"),
        ("bert", {}, 1, "an embedding model"),
        ("nomic-bert-moe", {}, 1, "an embedding model"),
        ("gemma-embedding", {}, 1, "an embedding model"),
        ("llama", {"llama.attention.causal": False}, 1, "an embedding model"),
        ("qwen3", {"qwen3.pooling_type": 3}, 1, "an embedding model"),
        ("t5", {}, 1, "an encoder with a decoder"),
        ("dream", {"dream.attention.causal": False}, 1, "a diffusion model"),
        ("qwen3tts", {}, 1, "a speech model"),
        ("eagle3", {}, 1, "a drafter"),
    ],
)
def test_what_is_no_language_model_is_told_by_name(
    tmp_path: Path, architecture, values, tensors, told
) -> None:
    path = write_other(tmp_path / "m.gguf", architecture, values, tensors)
    assert told in refusal(path)
    assert "give" in refusal(path)
    assert "\n" not in refusal(path)


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("llama", {"general.type": "model"}),
        ("llama", {}),
        ("unheard-of", {}),
        ("qwen3", {"qwen3.pooling_type": 0, "qwen3.attention.causal": True}),
    ],
)
def test_what_may_be_a_language_model_is_left_to_llama_cpp(
    tmp_path: Path, architecture, values
) -> None:
    assert refusal(write_other(tmp_path / "m.gguf", architecture, values)) == ""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_language_models_are_not_refused(tmp_path: Path, architecture: str) -> None:
    assert refusal(write_tiny_gguf(tmp_path / "m.gguf", architecture)) == ""


def test_the_first_of_several_files_may_hold_no_weights(tmp_path: Path) -> None:
    path = write_other(tmp_path / "m-00001-of-00002.gguf", "llama", {}, 0)
    assert refusal(path) == ""
    assert refusal(tmp_path / "missing.gguf") == ""
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    assert refusal(tmp_path / "damaged.gguf") == ""


@given(at=st.integers(4, 400), byte=st.integers(0, 255), cut=st.integers(0, 500))
def test_damage_is_an_error_and_nothing_worse(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    data = bytearray(write_gguf(path).read_bytes())
    data[at] = byte
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(StoreError):
        read_header(path)
