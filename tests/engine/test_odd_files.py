"""Files that lack what most have, or have more of it: opened, and run in both spaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from gguf import GGUFReader, TokenType
from headers import rewritten

from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import ModelError, StoreError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run
from eva_local.opening import open_ensemble
from eva_local.types import Sampling
from tools.tiny_gguf import write_tiny_gguf


def changed(path: Path, change: Callable[[GGUFReader], None]) -> Path:
    """Change a file where it lies."""
    reader = GGUFReader(path, "r+")
    change(reader)
    del reader
    return path


def number(reader: GGUFReader, key: str, value: int) -> None:
    reader.fields[f"tokenizer.ggml.{key}"].parts[-1][0] = value


def without_end(reader: GGUFReader) -> None:
    """No EOS, and no token with the name of one."""
    number(reader, "eos_token_id", 2**32 - 1)
    number(reader, "bos_token_id", 2**32 - 1)
    tokens, kinds = (reader.fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    tokens.parts[tokens.data[2]][:] = np.frombuffer(b"<zz>", np.uint8)
    for token_id in (1, 2):
        kinds.parts[kinds.data[token_id]][0] = TokenType.NORMAL


def spec(files: list[Path], space: Literal["pivot", "bytes"]) -> EnsembleSpec:
    load = LoadSettings(n_ctx=256, threads=1)
    members = tuple(ModelSpec(file.stem, PathSource(file), load=load) for file in files)
    fusion = FusionSettings(space=space, mapping="surface")
    return EnsembleSpec("odd", members, members[0].name, fusion)


@pytest.mark.parametrize("space", ["pivot", "bytes"])
def test_a_member_without_an_end_goes_on_and_is_named(tmp_path, space, caplog) -> None:
    endless = changed(write_tiny_gguf(tmp_path / "endless.gguf", n_layers=1, seed=3), without_end)
    other = write_tiny_gguf(tmp_path / "other.gguf", n_layers=1, words=(" the", "ed"), seed=4)
    told = "endless.gguf has no token that ends an answer: max_tokens ends it"
    for files in ([endless], [endless, other], [other, endless]):
        caplog.clear()
        with open_ensemble(spec(files, space)) as ensemble:
            vocab = ensemble._models[files.index(endless)].vocabulary
            assert (vocab.bos_id, vocab.eos_id, vocab.end_ids) == (None, None, frozenset())
            answer = ensemble.complete("the light and", Sampling(max_tokens=12))
            assert answer.usage.steps == 12 or len(files) == 2
        assert told in caplog.text


def test_more_embeddings_than_tokens_are_refused_by_llama_cpp(tmp_path) -> None:
    def pad(name: str, data: np.ndarray) -> tuple[np.ndarray, None]:
        is_padded = name in ("token_embd.weight", "output.weight")
        return (np.pad(data, ((0, 32), (0, 0))) if is_padded else data), None

    whole = write_tiny_gguf(tmp_path / "whole.gguf", n_layers=1)
    rewritten(whole, tmp_path / "padded.gguf", pad)
    with pytest.raises(ModelError, match=r"wrong shape.*; pull or convert the file again"):
        LlamaModel(tmp_path / "padded.gguf")


def test_a_padded_vocabulary_has_a_logit_for_each_token_and_says_none_of_the_padding(
    tmp_path,
) -> None:
    def pad(reader: GGUFReader) -> None:
        kinds = reader.fields["tokenizer.ggml.token_type"]
        for token_id in range(360, 368):
            kinds.parts[kinds.data[token_id]][0] = TokenType.UNUSED

    path = changed(write_tiny_gguf(tmp_path / "padded.gguf", n_layers=1), pad)
    with LlamaModel(path, LoadSettings(n_ctx=64, threads=1)) as model:
        (logits,) = model.decode([Run(0, 0, [1, 70])])
        assert logits is not None
        assert logits.shape == (len(model.vocabulary),) == (368,)
        assert not model.vocabulary.speakable[360:].any()
    with open_ensemble(spec([path], "pivot")) as ensemble:
        answer = ensemble.complete("the light", Sampling(max_tokens=40, temperature=5, seed=1))
        assert not any(
            i >= 360
            for i in ensemble._engine._states[0][0].cache.tokens[
                ensemble._engine._states[0][0].cache._n_prompt :
            ]
        )
        assert answer.text


def test_of_a_model_in_several_files_the_missing_one_is_named(tmp_path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    write_tiny_gguf(first, n_layers=1)
    for named in (first, second):
        with pytest.raises(StoreError, match=rf"^{second}: no such .* part of the same .*; add it"):
            open_ensemble(spec([named], "pivot"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"flash_attention": "on"}, "K cache type q8_0 with block size 32 does not divide .*=16"),
        ({"flash_attention": "off"}, "quantized V cache requires flash_attn to be enabled"),
    ],
)
def test_why_there_is_no_context_is_told_in_llama_cpps_words(tmp_path, settings, why) -> None:
    path = write_tiny_gguf(tmp_path / "narrow.gguf", n_layers=1)
    with pytest.raises(ModelError, match=f"no context of 64 tokens: {why}; lower n_ctx or change"):
        LlamaModel(path, LoadSettings(n_ctx=64, kv_type="q8_0", threads=1, **settings))
