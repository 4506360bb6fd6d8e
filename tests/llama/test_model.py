"""What llama.cpp says of a file, and computes with a broken one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from eva_local.config.specs import LoadSettings
from eva_local.errors import ModelError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run
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
            list(model.decode_every(Run(0, 0, [1, 70])))


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
    assert read_header(path).has_chat_template == (variants is not None)


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
