"""What a text takes in the caches: as it is planned, and as llama.cpp makes room for it."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from eva_local.cli import main
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import StoreError
from eva_local.llama.llama_model import LlamaModel
from eva_local.models.header import read_header
from eva_local.opening import plan, slots_that_fit
from tools.tiny_gguf import ARCHITECTURES, write_tiny_gguf

# llama.cpp tells two digits of a MiB, of each of its caches.
EXACT = 2 * 0.006 * 2**20


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
    path = write_tiny_gguf(tmp_path / f"{architecture}.gguf", architecture, n_ctx=4096)
    for swa_full, n_branches in ((True, 1), (True, 4), (False, 1)):
        load = LoadSettings(n_batch=32, threads=1, snapshots=0, swa_full=swa_full)
        one = plan(path, load, n_branches)
        caplog.clear()
        with (
            caplog.at_level(logging.DEBUG, logger="eva_local"),
            LlamaModel(path, load, n_sequences=8, n_branches=n_branches) as model,
        ):
            pass
        # Texts that share a cache share what it is rounded up by.
        taken = 2**20 * (told(caplog, "KV") + told(caplog, "RS"))
        assert 8 * one.text_bytes == pytest.approx(taken, rel=0.02, abs=8 * EXACT)
        assert model.text_bytes == pytest.approx(one.text_bytes, rel=0.02, abs=EXACT)
        assert one.n_branches == model.n_branches


@pytest.mark.parametrize(
    ("kv_type", "each"), [("f32", 4.0), ("f16", 2.0), ("q8_0", 34 / 32), ("q4_0", 18 / 32)]
)
def test_keys_and_values_of_each_token_are_counted(tmp_path, kv_type, each) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", n_layers=3, width=128, n_ctx=8000)
    # llama.cpp rounds 8,000 tokens up to 8,192; four heads of 32 numbers.
    load = LoadSettings(n_ctx=8000, kv_type=kv_type, flash_attention="on")
    one = plan(path, load, 1)
    assert one.text_bytes == pytest.approx(3 * 2 * 4 * 32 * 8192 * each, abs=EXACT)


def test_snapshots_of_a_text_are_counted(tmp_path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "rwkv7", n_layers=20)

    def taken(n_branches: int, snapshots: int) -> int:
        load = LoadSettings(snapshots=snapshots)
        return plan(path, load, n_branches).text_bytes

    # A head of 64 x 64, and the last two tokens, of each 64 numbers of a layer.
    one = 20 * 2 * 4 * (64 * 64 + 2 * 64)
    for n_branches, snapshots in ((1, 0), (1, 4), (8, 0), (8, 4)):
        states = n_branches + snapshots
        assert taken(n_branches, snapshots) == pytest.approx(states * one, abs=states * EXACT)


def test_a_file_may_say_that_it_was_trained_for_two_billion_tokens(tmp_path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", n_ctx=2**31)
    one = plan(path, LoadSettings(n_ctx=512), 1)
    assert one.n_ctx == 512


def test_what_has_no_weights_is_planned_in_next_to_no_memory(tmp_path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", width=1024, n_layers=4, n_ctx=2**20)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from eva_local.config.specs import LoadSettings\n"
        "from eva_local.opening import plan\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "one = plan(Path(sys.argv[1]), LoadSettings(n_ctx=2**20), 1)\n"
        "print(one.text_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    planned, kilobytes = map(int, ran.stdout.split())
    assert planned == 4 * 2 * 2 * 1024 * 2**20
    # The file alone has 200 MB of weights.
    assert kilobytes < 50_000


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
    assert found.parameters == whole.parameters
    with LlamaModel(parts[0], LoadSettings(n_ctx=512, threads=1)) as model:
        assert model.n_ctx == 512
    sizes = sum(part.stat().st_size for part in parts)
    free = sizes + model.working_bytes + 3 * model.text_bytes / 0.75 + 1
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: free)
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
