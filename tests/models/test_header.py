"""The header of a GGUF file, against files that the gguf package writes."""

import contextlib
from pathlib import Path

import gguf
import pytest
from headers import write_gguf
from hypothesis import given
from hypothesis import strategies as st

from eva_local.errors import StoreError
from eva_local.models.header import Header, read_header


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
