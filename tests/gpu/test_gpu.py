"""The laws where a model's layers lie on a device, and what the settings of devices do.

All of it on tiny models with random weights. What is compared was computed on the same device:
another one rounds otherwise, and random models have near-ties.

A driver that computes on the CPU takes a minute to compile one of the larger kernels, and keeps
them (~/.cache/mesa_shader_cache). Batches of eight tokens at most need few of these.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from histories import CLOSE, History

from eva_local import opening
from eva_local.api import Ensemble
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.engine import engine
from eva_local.errors import ModelError
from eva_local.evaluate.check import refuse_too_large
from eva_local.llama.backend import free_on_gpus, library, must_take_turns
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run
from eva_local.opening import open_ensemble, open_widest, plan, planned, slots_that_fit
from eva_local.types import Sampling
from tools.lookahead_law import Hostile, apart, written
from tools.tiny_gguf import WINDOWED, write_tiny_gguf

# One of each kind of layer, since kernels take long to compile: attention over all, Mamba, a short
# convolution, a window, a delta net, RWKV, Mamba 2, a window and experts. The other architectures
# combine these; tests/engine/test_rollback.py has all of them, on the CPU.
KINDS = ("llama", "mamba", "lfm2", "gemma3", "qwen35", "rwkv7", "falcon-h1", "gpt-oss")
SPACES = pytest.mark.parametrize("space", ["pivot", "bytes"])
PROMPTS = ("the light and the seer ing", "and there is a light ", "erer the sea")
EXACT = {"kv_type": "f32", "flash_attention": "off"}
# How far apart the probabilities of two choices may be where rounding decided.
NEAR_TIE = 0.02
MIB = 2**20
# What is compiled counts, too, the first time.
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module", params=KINDS)
def file(folder, request) -> Path:
    return write_tiny_gguf(folder / f"{request.param}.gguf", request.param)


@pytest.fixture(scope="module")
def files(folder) -> list[Path]:
    """Three models, of which two have vocabularies of their own."""
    words = ((" the", " and", " light", "ing", "er"), (" the", " a", "ed"), (" sea", "the", "in"))
    return [
        write_tiny_gguf(folder / f"member-{seed}.gguf", words=each, seed=seed)
        for seed, each in enumerate(words)
    ]


def spec(files: Sequence[Path], space: str = "pivot", **load: object) -> EnsembleSpec:
    settings = LoadSettings(
        **{"n_ctx": 512, "n_batch": 8, "threads": 1, "main_gpu": 0, **EXACT, **load}
    )
    members = tuple(
        ModelSpec(f"{file.stem}-{number}", PathSource(file), load=settings)
        for number, file in enumerate(files)
    )
    fusion = FusionSettings(space=space, mapping="surface")
    return EnsembleSpec("tiny", members, members[0].name, fusion, Sampling(max_tokens=6))


def logits(path: Path, prompt: str = PROMPTS[0], **load: object) -> np.ndarray:
    """Return the logits after a prompt."""
    (member,) = spec([path], **load).members
    with LlamaModel(path, member.load) as model:
        (row,) = model.decode([Run(0, 0, [1, *model.tokenizer.encode(prompt.encode())])])
        assert row is not None
        return row.copy()


def places(caplog: pytest.LogCaptureFixture, what: str = "model") -> dict[str, float]:
    """Return in which memory llama.cpp says that it took how many MiB of what."""
    told = re.findall(rf"(\w+) +{what} buffer size = +([\d.]+) MiB", caplog.text)
    return {name: sum(float(size) for each, size in told if each == name) for name, _ in told}


def on_gpus(found: dict[str, float]) -> set[int]:
    """Return the numbers of the devices among these memories."""
    names = [re.fullmatch(r"(?!CPU)[A-Za-z]+(\d+)", name) for name in found]
    return {int(name[1]) for name in names if name}


@pytest.fixture
def debug(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "eva_local")
    return caplog


# Laws


def llama_cpp_alone(path: Path, prompt: str, count: int) -> list[int]:
    """What llama-cpp-python's own greedy loop writes on the first device."""
    from llama_cpp import LLAMA_SPLIT_MODE_NONE, Llama, LogitsProcessorList

    with LlamaModel(path, LoadSettings(n_gpu_layers=0), vocabulary_only=True) as model:
        vocabulary = model.vocabulary
        tokens = [1, *model.tokenizer.encode(prompt.encode())]
    silent = ~vocabulary.speakable
    ends = list(vocabulary.end_ids)
    silent[ends] = False

    def said(_tokens: object, row: np.ndarray) -> np.ndarray:
        return np.where(silent, -np.inf, row).astype(np.float32)

    one = {"n_gpu_layers": -1, "split_mode": LLAMA_SPLIT_MODE_NONE, "main_gpu": 0}
    same = {"n_ctx": 512, "n_batch": 8, "n_ubatch": 8, "n_threads": 1, "swa_full": True}
    llama = Llama(str(path), verbose=False, type_k=0, type_v=0, **one, **same)
    try:
        made: list[int] = []
        only = LogitsProcessorList([said])
        for token_id in llama.generate(tokens, temp=0, logits_processor=only):
            if token_id in ends or len(made) == count:
                break
            made.append(token_id)
        return made
    finally:
        llama.close()


@pytest.mark.parametrize("copies", [1, 2])
def test_law_2_a_member_writes_what_llama_cpps_own_loop_writes(file, copies) -> None:
    with open_ensemble(spec([file] * copies)) as ensemble:
        for prompt in PROMPTS:
            ensemble.complete(prompt)
            for state in ensemble._engine._states[0]:
                made = list(state.cache.tokens[state.cache._n_prompt :])[:6]
                assert made == llama_cpp_alone(file, prompt, 6)[: len(made)]
                assert made


@pytest.mark.parametrize("n_branches", [1, 3])
def test_law_7_logits_after_any_history_are_those_of_a_fresh_context(file, n_branches) -> None:
    load = LoadSettings(n_ctx=256, n_batch=8, threads=1, main_gpu=0, **EXACT)
    for swa_full in (True, False) if file.stem in WINDOWED else (True,):
        settings = replace(load, swa_full=swa_full)
        with (
            LlamaModel(file, load) as fresh,
            LlamaModel(file, settings, n_sequences=3, n_branches=n_branches) as model,
        ):
            # Longer than a window, and no more: a batch takes such a driver a fifth of a second.
            history = History(model, fresh, n_branches, (1, 2, 5, 36), 50)
            for _ in range(20):
                history.step()
            assert history.compared > 7
            assert not (model.can_roll_back and history.refused)


@SPACES
@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "seeded"])
def test_law_11_drafts_change_nothing_of_an_answer(files, space, how, monkeypatch) -> None:
    monkeypatch.setattr(engine, "LookAhead", Hostile)
    sampling, n_accepted, wide = Sampling(max_tokens=12, **how), 0, []
    with open_ensemble(spec(files, space)) as ensemble:
        for prompt in PROMPTS:
            # Both begin with what the caches hold.
            written(ensemble, prompt, replace(sampling, max_tokens=1))
            ensemble.drafter = "off"
            plain, _ = written(ensemble, prompt, sampling)
            ensemble.drafter = "auto"
            drafted, accepted = written(ensemble, prompt, sampling)
            n_accepted += accepted
            wide.append(apart(plain, drafted))
    assert n_accepted
    assert all(gap is None or gap < NEAR_TIE for gap in wide), wide


# Members and texts beside each other


def texts(ensemble: Ensemble) -> list[str]:
    return [each.text for each in ensemble.complete_many(PROMPTS)]


def likelihoods(spec: EnsembleSpec) -> list[float]:
    with open_ensemble(spec) as ensemble:
        return [ensemble.score(prompt, " the light").log_likelihood for prompt in PROMPTS]


@SPACES
def test_members_decode_in_threads_of_their_own_and_write_the_same(
    files, space, monkeypatch
) -> None:
    threads = set()
    decode = LlamaModel._decode_batch

    def noted(self: LlamaModel, size: int) -> None:
        threads.add(threading.get_ident())
        decode(self, size)

    monkeypatch.setattr(LlamaModel, "_decode_batch", noted)
    with open_ensemble(spec(files, space), parallel=3) as ensemble:
        beside = [texts(ensemble) for _ in range(2)]
    assert len(threads - {threading.get_ident()}) > 1
    threads.clear()
    monkeypatch.setattr(opening, "can_offload", lambda: False)
    with open_ensemble(spec(files, space), parallel=3) as ensemble:
        after = [texts(ensemble) for _ in range(2)]
    assert threads == {threading.get_ident()}
    assert beside == after


@SPACES
def test_texts_side_by_side_are_each_as_alone(files, space) -> None:
    found = []
    for parallel in (1, 3):
        with open_ensemble(spec(files, space), parallel=parallel) as ensemble:
            found.append(ensemble.complete_many(PROMPTS))
            steps = [list(ensemble.stream(prompt)) for prompt in PROMPTS]
    alone, together = ([each.text for each in one] for one in found)
    # Streamed, they are alone again.
    assert ["".join(step.text for step in one) for one in steps] == alone
    assert together == alone


@SPACES
def test_a_member_on_the_cpu_beside_one_on_the_device(files, space, debug) -> None:
    both = spec(files, space)
    on_cpu = replace(both.members[1].load, n_gpu_layers=0)
    first, second, third = both.members
    mixed = replace(both, members=(first, replace(second, load=on_cpu), third))
    with open_ensemble(mixed) as ensemble:
        assert not ensemble._engine._beside
        assert all(texts(ensemble))
    assert likelihoods(mixed) == pytest.approx(
        likelihoods(spec(files, space, n_gpu_layers=0)), abs=0.1
    )


# Where layers lie


def test_all_layers_lie_on_the_device(file, debug) -> None:
    row = logits(file)
    assert on_gpus(places(debug)) == {0}
    assert on_gpus(places(debug, "KV") | places(debug, "RS")) == {0}
    debug.clear()
    assert np.abs(row - logits(file, n_gpu_layers=0)).max() < 3 * CLOSE
    assert on_gpus(places(debug)) == set()


@pytest.mark.parametrize("n_gpu_layers", [1, 2, 3])
def test_some_layers_lie_on_the_device(files, n_gpu_layers, debug) -> None:
    row = logits(files[0], n_gpu_layers=n_gpu_layers)
    assert f"offloaded {n_gpu_layers}/5 layers" in debug.text
    assert np.abs(row - logits(files[0])).max() < CLOSE
    with open_ensemble(spec(files[:2], n_gpu_layers=n_gpu_layers)) as ensemble:
        some = texts(ensemble)
    assert all(some)


def test_main_gpu_chooses_the_device(files, gpus, debug) -> None:
    rows = []
    for number in range(gpus):
        debug.clear()
        rows.append(logits(files[0], main_gpu=number))
        assert on_gpus(places(debug)) == {number}
        assert on_gpus(places(debug, "KV")) == {number}
    assert all(np.abs(row - rows[0]).max() < CLOSE for row in rows)


def test_a_main_gpu_that_is_not_there_is_one_line(files, gpus) -> None:
    with pytest.raises(
        ModelError, match=rf"main_gpu: {gpus} \(available devices: {gpus}\)"
    ) as told:
        logits(files[0], main_gpu=gpus)
    assert str(told.value).endswith("main_gpu counts the GPUs from 0")


@pytest.mark.parametrize("tensor_split", [(), (3, 1), (0, 1)])
def test_layers_are_shared_out_among_devices(files, gpus, tensor_split, debug) -> None:
    if gpus == 1:
        pytest.skip("there is one device only")
    row = logits(files[0], main_gpu=-1, tensor_split=tensor_split)
    found = places(debug)
    shares = [size for name, size in sorted(found.items()) if on_gpus({name: size})]
    assert on_gpus(found) == ({1} if tensor_split == (0, 1) else {0, 1})
    assert tensor_split != (3, 1) or shares[0] > 1.5 * shares[1]
    assert np.abs(row - logits(files[0])).max() < CLOSE
    with open_ensemble(spec(files, main_gpu=-1, tensor_split=tensor_split)) as ensemble:
        split = texts(ensemble)
    with open_ensemble(spec(files)) as ensemble:
        assert texts(ensemble) == split


def test_members_take_turns_where_vulkan_shares_their_layers_out(files, gpus) -> None:
    if gpus == 1:
        pytest.skip("there is one device only")
    crossing = must_take_turns()
    for main_gpu, in_turn in ((0, False), (-1, crossing)):
        with open_ensemble(spec(files, main_gpu=main_gpu)) as ensemble:
            assert bool(ensemble._engine._beside) != in_turn


# Memory


@pytest.mark.parametrize("n_branches", [1, 8])
def test_a_text_takes_what_is_worked_out(file, n_branches, debug) -> None:
    load = replace(spec([file]).members[0].load, snapshots=0)
    one = plan(file, load, n_branches)
    debug.clear()
    with LlamaModel(file, load, n_sequences=4, n_branches=n_branches):
        pass
    told = [places(debug, what) for what in ("KV", "RS")]
    assert all(on_gpus(each) == {0} for each in told if each)
    # It writes two decimals of each buffer.
    assert sum(sum(each.values()) for each in told) == pytest.approx(
        4 * one.text_bytes / MIB, abs=4 * 0.02
    )


def test_what_is_free_is_told(gpus) -> None:
    free = free_on_gpus()
    assert len(free) == gpus
    assert all(each > 2**28 for each in free)


def in_little_memory(path: Path, **load: object) -> str:
    """Return what is said of a model where no buffer on the device may be above 1 MB."""
    named = library()._lib.ggml_backend_reg_by_name
    named.restype = ctypes.c_void_p
    if not named(b"Vulkan"):
        pytest.skip("only Vulkan can be told how large a buffer may be")
    code = (
        "from pathlib import Path\n"
        "from eva_local.config.specs import LoadSettings\n"
        "from eva_local.errors import ModelError\n"
        "from eva_local.llama.llama_model import LlamaModel\n"
        "try:\n"
        f"    LlamaModel(Path({str(path)!r}), LoadSettings(**{load!r}))\n"
        "except ModelError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "GGML_VK_FORCE_MAX_BUFFER_SIZE": "1000000"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout


def test_a_context_that_the_device_has_no_room_for(folder) -> None:
    path = write_tiny_gguf(folder / "long.gguf", n_layers=1, n_ctx=2**16)
    told = in_little_memory(path, main_gpu=0, n_ctx=2**16, n_batch=8)
    assert f"{path}: no context of 65536 tokens: " in told
    assert "lower n_ctx" in told


def test_weights_that_the_device_has_no_room_for(folder) -> None:
    # Each of its matrices would fit: what does not, llama.cpp leaves in the host's memory.
    path = write_tiny_gguf(folder / "wide.gguf", width=256)
    told = in_little_memory(path, main_gpu=0, n_ctx=64, n_batch=8)
    assert told.startswith(f"{path}: ")
    assert "lower n_gpu_layers, take a smaller quantisation, or another GPU" in told


def test_as_many_texts_as_the_device_has_room_for(files, monkeypatch) -> None:
    one = spec(files, n_ctx=256)
    each = sum(planned(one, member).text_bytes for member in one.members)
    weights = sum(file.stat().st_size for file in files)
    weights += sum(planned(one, member).working_bytes for member in one.members)
    for n_fit in (1, 5):
        free = int(weights + n_fit * each / 0.75) + 1
        monkeypatch.setattr(opening, "free_on_gpus", lambda free=free: [free])
        assert slots_that_fit(one, 16) == n_fit
        with open_widest(one) as ensemble:
            assert ensemble.scheduler.n_slots == n_fit
            assert all(texts(ensemble))
    monkeypatch.setattr(opening, "free_on_gpus", lambda: [weights])
    with pytest.raises(
        ModelError, match=r"tiny needs .* of memory of GPU 0 and .* are free: lower"
    ):
        refuse_too_large(one)
