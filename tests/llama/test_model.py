"""A model in llama.cpp: what it computes, holds and takes back, and what it says of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from eva_local.config.specs import LoadSettings
from eva_local.errors import ModelError, RoomError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Logits, Run, decode_every
from eva_local.models.header import read_header
from tools.tiny_gguf import write_tiny_gguf


def test_logits_that_are_no_numbers_are_an_error(tmp_path) -> None:
    path = tmp_path / "broken.gguf"
    write_tiny_gguf(path, n_layers=1)
    (norm,) = (t for t in GGUFReader(path, "r+").tensors if t.name == "output_norm.weight")
    norm.data[:] = np.nan
    del norm
    with LlamaModel(path, LoadSettings(n_ctx=32)) as model:
        with pytest.raises(ModelError, match=r"no numbers.*n_gpu_layers = 0"):
            model.decode([Run(0, 0, [1, 70])])
        model.remove(0, 0)
        with pytest.raises(ModelError, match="no numbers"):
            list(decode_every(model, Run(0, 0, [1, 70])))


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ("unable to allocate Vulkan0 buffer", "lower n_gpu_layers, take a smaller quantisation"),
        ("invalid value for main_gpu: 3 (available devices: 1)", "counts the GPUs from 0"),
        ("unknown model architecture: 'x'", "needs a newer llama.cpp"),
        ("tensor data is not within the file bounds", "pull or convert the file again"),
    ],
)
def test_what_llama_cpp_refuses_is_said_with_its_remedy(tmp_path, monkeypatch, why, remedy) -> None:
    path = tmp_path / "torn.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr("eva_local.llama.vocab.reason", lambda _lines: why)
    with pytest.raises(ModelError) as told:
        LlamaModel(path)
    assert f"{why}; " in str(told.value)
    assert remedy in str(told.value)


def test_eos_is_the_models_own_and_not_the_lowest_end(tmp_path) -> None:
    path = tmp_path / "one.gguf"
    write_tiny_gguf(path, n_layers=1)
    GGUFReader(path, "r+").fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 70
    with LlamaModel(path, vocabulary_only=True) as model:
        assert model.vocabulary.end_ids == {2, 70}
        assert (model.vocabulary.bos_id, model.vocabulary.eos_id) == (1, 70)


@pytest.mark.parametrize(
    ("variants", "chosen"),
    [
        ("one", "one"),
        ([{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}], "one"),
        ([{"name": "rag", "template": "three"}, {"name": "tool_use", "template": "two"}], "two"),
        ([{"name": "rag", "template": "three"}], None),
        (None, None),
    ],
)
def test_of_several_chat_templates_the_one_for_conversations_is_taken(
    tmp_path, variants, chosen
) -> None:
    path = tmp_path / "named.gguf"
    write_tiny_gguf(path, n_layers=1, chat_template=variants)
    with LlamaModel(path, vocabulary_only=True) as model:
        assert model.chat_template == chosen
    header = read_header(path)
    assert (header.has_chat_template, header.chat_template) == (variants is not None, chosen)


def test_of_several_files_the_one_that_is_no_model_is_named(tmp_path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    writer = GGUFWriter(first, "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    second.write_text("no model")
    with pytest.raises(ModelError, match=f"^{re.escape(str(second))}: "):
        LlamaModel(first)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_gguf(path, n_layers=1)
    return path


def opened(path: Path, n_ctx: int = 64, n_batch: int = 64, **options: int) -> LlamaModel:
    return LlamaModel(path, LoadSettings(n_ctx=n_ctx, n_batch=n_batch, threads=1), **options)


def fresh(path: Path, tokens: Sequence[int]) -> Logits:
    """Return the logits after some tokens that a model has which was asked nothing before."""
    with opened(path, n_ctx=256, n_batch=256) as model:
        (logits,) = model.decode([Run(0, 0, tokens)])
        assert logits is not None
        return logits.copy()


def test_runs_are_answered_in_their_order_and_only_where_logits_are_wanted(tiny: Path) -> None:
    with opened(tiny, n_sequences=3) as model:
        second, none, first = model.decode(
            [Run(2, 0, [1, 80]), Run(1, 0, [1, 90, 91], logits=False), Run(0, 0, [1, 70, 71])]
        )
        assert none is None
        assert first is not None
        assert second is not None
        np.testing.assert_allclose(first, fresh(tiny, [1, 70, 71]), atol=1e-4)
        np.testing.assert_allclose(second, fresh(tiny, [1, 80]), atol=1e-4)
        assert first.shape == (len(model.vocabulary),)
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 0
        (logits,) = model.decode([Run(1, 3, [92])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 90, 91, 92]), atol=1e-4)


def test_more_tokens_than_a_batch_holds_are_decoded_in_parts(tiny: Path) -> None:
    row = [1, *range(60, 100)]
    with opened(tiny, n_batch=8, n_sequences=2) as model:
        assert model.n_batch == 8
        long, short = model.decode([Run(0, 0, row), Run(1, 0, [1, 70])])
        np.testing.assert_allclose(long, fresh(tiny, row), atol=1e-4)
        np.testing.assert_allclose(short, fresh(tiny, [1, 70]), atol=1e-4)


def test_logits_after_every_token_are_those_of_each_beginning(tiny: Path) -> None:
    row = [1, *range(60, 99)]
    with opened(tiny) as model:
        blocks = [block.copy() for block in decode_every(model, Run(0, 0, row[:38]))]
        # A row is as long as the vocabulary: few are asked for at a time.
        assert [len(block) for block in blocks] == [32, 6]
        blocks += [block.copy() for block in decode_every(model, Run(0, 38, row[38:]))]
        found = np.concatenate(blocks)
        for count in (1, 2, 32, 33, 38, 39, 40):
            np.testing.assert_allclose(found[count - 1], fresh(tiny, row[:count]), atol=1e-4)


def test_a_sequence_goes_on_from_where_it_was_cut(tiny: Path) -> None:
    with opened(tiny, n_sequences=2) as model:
        model.decode([Run(0, 0, [1, 70, 71, 72]), Run(1, 0, [1, 80])])
        # Where there is no past to go on from, all begins anew.
        assert [model.holds(0, start) for start in range(6)] == [0, 1, 2, 3, 4, 0]
        assert model.remove(0, 2) == 2
        assert [model.holds(0, start) for start in range(4)] == [0, 1, 2, 0]
        (logits,) = model.decode([Run(0, 2, [90])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 70, 90]), atol=1e-4)
        assert model.remove(0, 0) == 0
        assert model.holds(0, 1) == 0
        assert model.remove(1, 3) == 0
        assert model.holds(1, 1) == 0
        model.decode([Run(1, 0, [1, 80])])
        assert model.remove(ALL, 0) == 0
        assert model.holds(1, 1) == 0


def test_a_text_is_copied_whole_over_another(tiny: Path) -> None:
    with opened(tiny, n_sequences=2) as model:
        model.decode([Run(0, 0, [1, 70, 71]), Run(1, 0, [1, 80, 81, 82])])
        assert model.copy(0, 1) == 3
        assert model.holds(1, 3) == 3
        assert model.holds(1, 4) == 0
        (logits,) = model.decode([Run(1, 3, [90])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 70, 71, 90]), atol=1e-4)
        assert model.holds(0, 3) == 3
        # Also where only the beginning is wanted.
        assert model.copy(0, 1, 2) == 2
        (logits,) = model.decode([Run(1, 2, [90])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 70, 90]), atol=1e-4)
        assert model.copy(0, 1, 0) == 0
        assert model.holds(1, 1) == 0


def test_a_branch_begins_as_a_part_of_another(tiny: Path) -> None:
    with opened(tiny, n_branches=2) as model:
        model.decode([Run(0, 0, [1, 70, 71]), Run(1, 0, [1, 80])])
        # There is no such part, and what was there before is gone.
        assert model.copy(0, 1, 4) == 0
        assert model.holds(1, 1) == 0
        assert model.copy(0, 1, 2) == 2
        assert model.holds(1, 2) == 2
        assert model.holds(1, 3) == 0
        (logits,) = model.decode([Run(1, 2, [90])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 70, 90]), atol=1e-4)
        (logits,) = model.decode([Run(0, 3, [72])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 70, 71, 72]), atol=1e-4)


def test_where_there_is_no_room_that_is_said_and_the_model_goes_on(tiny: Path) -> None:
    with opened(tiny, n_batch=512) as model:
        # llama.cpp rounds the room of a context up to 256 tokens.
        with pytest.raises(RoomError, match=r"tiny\.gguf: no room left in the context; raise n_ct"):
            model.decode([Run(0, 0, [1, *[70] * 299])])
        # Any part of them may have been decoded.
        assert model.remove(0, 0) == 0
        with pytest.raises(RoomError):
            list(decode_every(model, Run(0, 0, [1, *[70] * 299])))
        assert model.remove(0, 0) == 0
        (logits,) = model.decode([Run(0, 0, [1, 70])])
        np.testing.assert_allclose(logits, fresh(tiny, [1, 70]), atol=1e-4)


def test_of_more_logits_than_there_are_rows_that_is_said(tiny: Path) -> None:
    with opened(tiny, n_sequences=5) as model:
        # llama.cpp would end the process.
        with pytest.raises(RoomError, match="more logits than 32 rows"):
            model.decode([Run(seq_id, 0, [1, *[70] * 7], logits=8) for seq_id in range(5)])
        rows = model.decode([Run(seq_id, 0, [1, *[70] * 7], logits=8) for seq_id in range(4)])
        assert [np.shape(row)[0] for row in rows] == [8] * 4


def test_a_vocabulary_alone_reads_and_writes_no_weights(tiny: Path) -> None:
    with opened(tiny) as whole, LlamaModel(tiny, vocabulary_only=True) as model:
        assert model.vocabulary.fingerprint == whole.vocabulary.fingerprint
        assert model.tokenizer.encode(b" the light") == whole.tokenizer.encode(b" the light")
        assert (model.n_ctx, whole.n_ctx) == (0, 64)


def test_a_closed_model_may_be_closed_again(tiny: Path) -> None:
    model = opened(tiny)
    model.close()
    model.close()
