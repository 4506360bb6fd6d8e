"""What a text takes in the cache: as the header tells it, and as llama.cpp makes room for it."""

import json
import logging
import re
from pathlib import Path

import gguf
import pytest
from headers import HEADS, ONE_STATE, PLAIN, STATE, WINDOW, write_header

from eva_local.cli import main
from eva_local.config.specs import (
    EnsembleSpec,
    FusionSettings,
    LoadSettings,
    MemberSpec,
    ModelSpec,
    PathSource,
)
from eva_local.errors import StoreError
from eva_local.llama.llama_model import SPARE_CELLS, LlamaModel
from eva_local.models.header import read_header
from eva_local.opening import bytes_of_text, slots_that_fit
from tools.tiny_gguf import ARCHITECTURES, write_tiny_gguf

MIB = 2**20
# llama.cpp tells two digits of a MiB.
EXACT = 0.006


MLA = {"attention.head_count_kv": 1, "attention.key_length": 48, "attention.value_length": 32}


@pytest.mark.parametrize(
    ("architecture", "values", "n_cached", "state_bytes"),
    [
        ("llama", PLAIN, 4 * 6 * 32, 0),
        ("llama", {**PLAIN, "attention.head_count_kv": 2}, 4 * 2 * 32, 0),
        # The numbers of 40 layers, of which four have attention.
        (
            "granitehybrid",
            {**HEADS, **STATE, "block_count": 40, "attention.head_count_kv": ([0] * 9 + [4]) * 4},
            4 * 4 * 32,
            36 * ONE_STATE,
        ),
        (
            "lfm2",
            {**HEADS, "attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 3},
            2 * 2 * 32,
            4 * 2 * 2 * 96,
        ),
        (
            "nemotron_h",
            {
                **HEADS,
                **STATE,
                "attention.head_count_kv": [0, 0, 2, 0],
                "feed_forward_length": [0, 128, 0, 0],
            },
            2 * 32,
            2 * ONE_STATE,
        ),
        ("qwen35", {**HEADS, **STATE, "full_attention_interval": 2}, 2 * 6 * 32, 2 * ONE_STATE),
        ("qwen35", {**HEADS, **STATE, "block_count": 8}, 2 * 6 * 32, 6 * ONE_STATE),
        # The last layer only drafts.
        (
            "qwen35",
            {**HEADS, **STATE, "block_count": 9, "nextn_predict_layers": 1},
            2 * 6 * 32,
            6 * ONE_STATE,
        ),
        (
            "qwen3next",
            {**HEADS, **STATE, "attention.recurrent_layers": [True, True, True, False]},
            6 * 32,
            3 * ONE_STATE,
        ),
        ("falcon-h1", {**HEADS, **STATE}, 4 * 6 * 32, 4 * ONE_STATE),
        ("mamba2", {**HEADS, **STATE}, 0, 4 * ONE_STATE),
        # The last two layers read what the first ones hold.
        (
            "gemma4",
            {
                **WINDOW,
                "attention.shared_kv_layers": 2,
                "attention.sliding_window_pattern": [True, False, True, False],
                "attention.key_length_swa": 8,
                "attention.value_length_swa": 8,
            },
            2 * 16 + 2 * 32,
            0,
        ),
        ("gpt-oss", WINDOW, 4 * 2 * 32, 0),
        # Values are computed from the keys, which all heads share.
        (
            "deepseek2",
            {**PLAIN, **MLA, "attention.key_length_mla": 32, "attention.value_length_mla": 16},
            4 * 48,
            0,
        ),
    ],
)
def test_the_layers_are_added_up(tmp_path, architecture, values, n_cached, state_bytes) -> None:
    header = read_header(write_header(tmp_path / "m.gguf", architecture, values))
    assert (header.n_cached, header.state_bytes) == (n_cached, state_bytes)


def test_layers_that_look_back_over_a_window(tmp_path) -> None:
    for architecture, values, windowed in (
        ("gpt-oss", {}, 2),
        ("gemma3", {"attention.sliding_window_pattern": 4}, 3),
        ("gemma3", {"attention.sliding_window_pattern": [True, False, False, False]}, 1),
        ("mistral", {}, 0),
    ):
        header = read_header(write_header(tmp_path / "m.gguf", architecture, {**WINDOW, **values}))
        assert header.n_cached == 4 * 2 * 32
        assert (header.n_windowed, header.window) == (windowed * 2 * 32, 8 if windowed else 0)


@pytest.mark.parametrize(
    "values",
    [{}, {"block_count": 2**31}, {**PLAIN, "attention.head_count": 0}, {**PLAIN, "block_count": 0}],
)
def test_what_cannot_be_added_up_is_not_known(tmp_path, values) -> None:
    assert read_header(write_header(tmp_path / "m.gguf", "llama", values)).n_cached is None


# Numbers for each layer, in the place of one for all: layers of several kinds.
ODD = {
    "gemma4": {
        **ARCHITECTURES["gemma4"],
        "attention.head_count_kv": [4, 4, 2, 4, 4, 2],
        "attention.key_length": 32,
        "attention.value_length": 32,
        "feed_forward_length": [128, 128, 256, 64, 128, 256],
    },
    "gpt-oss": {
        **ARCHITECTURES["gpt-oss"],
        "attention.sliding_window_pattern": [True, True, True, False],
    },
    "deci": {
        "attention.head_count": [4, 0, 4, 4],
        "attention.head_count_kv": [4, 0, 2, 1],
        "feed_forward_length": [128, 64, 256, 128],
    },
    "openelm": {
        "attention.head_count": [4, 2, 4, 8],
        "attention.head_count_kv": [2, 1, 2, 4],
        "feed_forward_length": [64, 128, 192, 256],
        "attention.key_length": 16,
        "attention.value_length": 16,
    },
    "plamo3": {
        "attention.sliding_window": 32,
        "attention.key_length": 16,
        "attention.value_length": 16,
    },
}


@pytest.mark.parametrize("architecture", ODD)
def test_llama_cpp_makes_as_much_room_for_layers_of_several_kinds(
    tmp_path, architecture, caplog, monkeypatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, architecture, ODD[architecture])
    test_llama_cpp_makes_as_much_room(tmp_path, architecture, caplog)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_llama_cpp_makes_as_much_room(tmp_path, architecture, caplog) -> None:
    path = write_tiny_gguf(tmp_path / f"{architecture}.gguf", architecture)
    header = read_header(path)
    for swa_full, n_branches in ((True, 1), (True, 4), (False, 1)):
        caplog.clear()
        load = LoadSettings(n_ctx=512, n_batch=32, threads=1, kv_type="f32", swa_full=swa_full)
        with (
            caplog.at_level(logging.DEBUG, logger="eva_local"),
            LlamaModel(path, load, n_sequences=16, n_branches=n_branches) as model,
        ):
            pass
        cells = 512 + (SPARE_CELLS if n_branches > 1 else 0)
        # llama.cpp rounds a short cache up to 256 cells.
        short = cells if swa_full else 256
        cached = (header.n_cached - header.n_windowed) * cells + header.n_windowed * short
        assert told(caplog, "KV") == pytest.approx(16 * 4 * cached / MIB, abs=2 * EXACT)
        states = 16 * model.n_branches * header.state_bytes
        assert told(caplog, "RS") == pytest.approx(states / MIB, abs=EXACT)


@pytest.mark.parametrize("architecture", ["llama", "mamba", "lfm2", "qwen35", "gemma3", "gpt-oss"])
@pytest.mark.parametrize(("n_ctx", "n_batch"), [(100, 512), (500, 32), (1000, 1000)])
@pytest.mark.parametrize("swa_full", [True, False])
def test_a_text_is_counted_as_large_as_llama_cpp_makes_it(
    tmp_path, architecture, n_ctx, n_batch, swa_full, caplog
) -> None:
    path = write_tiny_gguf(tmp_path / f"{architecture}.gguf", architecture, n_ctx=1000)
    load = LoadSettings(n_ctx=n_ctx, n_batch=n_batch, threads=1, swa_full=swa_full, snapshots=0)
    with caplog.at_level(logging.DEBUG, logger="eva_local"), LlamaModel(path, load, n_sequences=8):
        pass
    member = MemberSpec.of(ModelSpec("tiny", PathSource(path), load=load))
    counted = 8 * bytes_of_text(member, bytewise=False) / MIB
    assert counted == pytest.approx(told(caplog, "KV") + told(caplog, "RS"), abs=3 * EXACT)


def told(caplog: pytest.LogCaptureFixture, what: str) -> float:
    """Return the MiB that llama.cpp says it took."""
    found = re.findall(rf"{what} buffer size = +([\d.]+) MiB", caplog.text)
    return sum(map(float, found))


def spec(path: Path, space: str = "pivot", **load: object) -> EnsembleSpec:
    member = ModelSpec("m", PathSource(path), load=LoadSettings(n_ctx=512, **load))
    return EnsembleSpec("m", (member,), "m", FusionSettings(space=space))


def write_parts(folder: Path) -> list[Path]:
    """Write a model in several files, and whole; return the files in their order."""
    target = folder / "whole.gguf"
    whole = gguf.GGUFReader(write_tiny_gguf(target))
    writer = gguf.GGUFWriter(folder / "parts.gguf", "llama", split_max_tensors=20)
    for field in whole.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("parts-*.gguf"))


def test_a_model_in_several_files_is_read_and_opened_whole(tmp_path, monkeypatch, capsys) -> None:
    parts = write_parts(tmp_path)
    assert [part.name for part in parts] == [f"parts-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)]
    whole, found = read_header(tmp_path / "whole.gguf"), read_header(parts[0])
    assert found.n_files == 4
    assert (found.parameters, found.n_cached) == (whole.parameters, whole.n_cached)
    with LlamaModel(parts[0], LoadSettings(n_ctx=64, threads=1)) as model:
        assert model.n_ctx == 64
    sizes = sum(part.stat().st_size for part in parts)
    monkeypatch.setattr(
        "eva_local.opening.free_memory", lambda: sizes + 3 * 512 * found.n_cached * 2 / 0.75 + 1
    )
    assert slots_that_fit(spec(parts[0]), 32) == 3
    # Whichever file is named.
    (tmp_path / "models.toml").write_text(f'schema = 1\n[models.m]\npath = "{parts[2].name}"\n')
    assert main(["--config", str(tmp_path / "models.toml"), "show", "m", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["size"], shown["path"]) == (sizes, str(parts[0]))
    assert shown["file"]["parameters"] == whole.parameters


def test_files_that_belong_together_must_be_found_by_their_names(tmp_path) -> None:
    parts = write_parts(tmp_path)
    parts[2].unlink()
    with pytest.raises(StoreError, match=r"parts-00003-of-00004\.gguf: cannot be read: No such"):
        read_header(parts[0])
    renamed = parts[0].rename(tmp_path / "mine.gguf")
    with pytest.raises(StoreError, match=r"named NAME-00001-of-00004\.gguf, and the others"):
        read_header(renamed)
