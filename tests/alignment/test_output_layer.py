"""The output layer out of GGUF files: tied or not, in several files, in quantisations of today."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from headers import rewritten
from laws import check_law_3, dense

from eva_local.alignment.embedding import output_layer
from eva_local.alignment.library import eva, eva_paper
from eva_local.config.specs import LoadSettings
from eva_local.errors import MappingError
from eva_local.llama.llama_model import LlamaModel
from tools.tiny_gguf import write_tiny_gguf

# What files of today keep their embeddings in.
KINDS = (
    *(Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q6_K, Kind.Q5_K, Kind.Q5_0, Kind.Q4_0, Kind.Q4_1),
    *(Kind.Q4_K, Kind.Q3_K, Kind.Q2_K, Kind.IQ4_NL, Kind.IQ4_XS, Kind.IQ3_S, Kind.IQ3_XXS),
    *(Kind.MXFP4, Kind.NVFP4, Kind.TQ1_0, Kind.TQ2_0),
)


class Traits(ctypes.Structure):
    """The beginning of ggml's `ggml_type_traits`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("sizes", ctypes.c_int64 * 3),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def ggml() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    suffix = "dylib" if (folder / "libggml-base.dylib").exists() else "so"
    library = ctypes.CDLL(str(folder / f"libggml-base.{suffix}"))
    library.ggml_row_size.restype = library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library


def dequantised(data: np.ndarray, kind: Kind, width: int) -> np.ndarray:
    """Return the numbers that llama.cpp itself reads."""
    made = np.empty((len(data), width), np.float32)
    traits = ggml().ggml_get_type_traits(kind)[0]
    traits.to_float(data.ctypes.data, made.ctypes.data, made.size)
    return made


def quantised(data: np.ndarray, kind: Kind) -> np.ndarray:
    """Return rows as llama.cpp itself quantises them."""
    library = ggml()
    data = np.ascontiguousarray(data, dtype=np.float32)
    rows, width = data.shape
    made = np.empty((rows, library.ggml_row_size(kind, width)), np.uint8)
    weights = np.ones(width, np.float32)
    library.ggml_quantize_chunk(
        kind, data.ctypes.data, made.ctypes.data, 0, rows, width, weights.ctypes.data
    )
    return made


def opened(path: Path) -> LlamaModel:
    return LlamaModel(path, vocabulary_only=True)


def numbers(path: Path, name: str) -> np.ndarray:
    return next(t.data for t in gguf.GGUFReader(path).tensors if t.name == name).copy()


@pytest.mark.parametrize("architecture", ["qwen35", "gemma4", "llama"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_output_is_that_of_the_input_where_a_file_has_none_of_its_own(
    tmp_path, architecture, is_tied
) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf", architecture)

    def change(name: str, data: np.ndarray) -> tuple[np.ndarray, None] | None:
        return None if is_tied and name == "output.weight" else (data, None)

    path = rewritten(whole, tmp_path / "m.gguf", change)
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    with LlamaModel(path, LoadSettings(n_ctx=32, threads=1)) as model:
        layer = output_layer(model)
    assert ("output.weight" in names) != is_tied
    wanted = numbers(path, "token_embd.weight" if is_tied else "output.weight")
    assert np.array_equal(layer.embeddings(np.arange(len(wanted))), wanted)
    assert layer.spellings[2] == b"</s>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.gguf"
    return write_tiny_gguf(path, width=256, n_layers=1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_quantisations_of_today_are_read_as_llama_cpp_reads_them(tmp_path, whole, kind) -> None:
    small = quantised(numbers(whole, "output.weight"), kind)

    def change(name: str, data: np.ndarray) -> tuple[np.ndarray, Kind | None]:
        return (small, kind) if name == "output.weight" else (data, None)

    with opened(rewritten(whole, tmp_path / "small.gguf", change)) as model:
        found = output_layer(model).embeddings(np.arange(len(small)))
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, dequantised(small, kind, 256), rtol=1e-3, atol=1e-6)


def test_a_quantisation_that_cannot_be_read_is_named_with_what_to_do(tmp_path, whole) -> None:
    def change(name: str, data: np.ndarray) -> tuple[np.ndarray, Kind | None]:
        return (quantised(data, Kind.Q1_0), Kind.Q1_0) if name == "output.weight" else (data, None)

    path = rewritten(whole, tmp_path / "small.gguf", change)
    with (
        opened(path) as model,
        pytest.raises(MappingError, match=r"output\.weight is quantised as Q1_0.*surface mapping"),
    ):
        output_layer(model)
    # One of tomorrow, of which the gguf package has no name.
    kinds = {tensor.name: tensor for tensor in gguf.GGUFReader(path, "r+").tensors}
    kinds["output.weight"].field.parts[4][0] = 99
    del kinds
    with pytest.raises(MappingError, match=r"the gguf package cannot read it .*surface mapping"):
        output_layer(model)


@pytest.mark.parametrize("learn", [eva, eva_paper])
def test_a_mapping_is_learned_from_files_of_several_parts(tmp_path, learn) -> None:
    one = write_tiny_gguf(tmp_path / "one.gguf", "qwen35", seed=1)
    other = write_tiny_gguf(tmp_path / "other.gguf", "gemma4", words=(" the", "ed"), seed=2)
    rewritten(one, tmp_path / "parts.gguf", lambda _, data: (data, None), split_max_tensors=20)
    parts = sorted(tmp_path.glob("parts-*"))
    assert len(parts) > 2
    with opened(one) as whole, opened(parts[0]) as split, opened(other) as pivot:
        sides = [output_layer(model) for model in (whole, split, pivot)]
        found = [learn(side, sides[2]) for side in sides[:2]]
        assert np.array_equal(check_law_3(found[0], whole, pivot), dense(found[1]))
