"""Law 7: after any history of a cache, logits are those of a fresh context."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from histories import CLOSE, LONGEST, History

from eva_local.cache.branches import Branch
from eva_local.cache.context import Context
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import ModelError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Run, decode_every
from eva_local.opening import open_ensemble
from eva_local.spaces.base import Beginning
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace
from eva_local.spaces.bytes.state import ByteState
from eva_local.types import Sampling
from tools.tiny_gguf import ARCHITECTURES, WINDOWED, write_tiny_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def file(folder, request) -> Path:
    return write_tiny_gguf(folder / f"{request.param}.gguf", request.param)


def opened(path: Path, *, swa_full: bool = True, n_ctx: int = 256, **sizes: int) -> LlamaModel:
    settings = LoadSettings(
        n_ctx=n_ctx, n_batch=32, threads=1, swa_full=swa_full, kv_type="f32", flash_attention="off"
    )
    return LlamaModel(path, settings, **sizes)


@pytest.fixture(scope="module")
def fresh(file) -> Iterator[LlamaModel]:
    with opened(file) as model:
        yield model


def spec(
    files: Sequence[Path], space: Literal["pivot", "bytes"], *, swa_full: bool
) -> EnsembleSpec:
    load = LoadSettings(n_ctx=512, n_batch=32, threads=1, swa_full=swa_full, flash_attention="off")
    members = tuple(ModelSpec(file.stem, PathSource(file), load=load) for file in files)
    fusion = FusionSettings(space=space, mapping="surface")
    return EnsembleSpec("tiny", members, members[0].name, fusion, Sampling(max_tokens=12))


def shapes(path: Path) -> list[tuple[bool, int]]:
    """Return what to try: `swa_full`, and how many rows share a cache (1: none do)."""
    return [
        (full, n) for full in ((True, False) if path.stem in WINDOWED else (True,)) for n in (1, 3)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_law_7_logits_after_any_history_are_those_of_a_fresh_context(file, fresh, seed) -> None:
    for swa_full, n_branches in shapes(file):
        with opened(file, swa_full=swa_full, n_sequences=3, n_branches=n_branches) as model:
            history = History(model, fresh, seed)
            for _ in range(60):
                history.step()
            assert history.compared > 20
            # Where tokens can be taken back, they always can; else there are snapshots.
            assert not (model.can_roll_back and history.refused)
            assert history.returned or not model.n_snapshots or n_branches > 1


WORDS = ("the ", "sea", " the", " light", "ing", "er", " and", " a", ". ", "x", "7", " seering")


def compare(fresh: LlamaModel, row: Sequence[int], logits: np.ndarray) -> None:
    fresh.remove(ALL, 0)
    (wanted,) = fresh.decode([Run(0, 0, row)])
    assert wanted is not None
    # Read one by one, tokens of the tiny Gemma 4 differ by as much as CLOSE from those at once.
    assert np.abs(logits - wanted).max() < 3 * CLOSE


@pytest.mark.parametrize("parallel", [1, 4])
def test_law_7_contexts_after_any_history_are_fresh(file, fresh, parallel) -> None:
    """Whatever texts do (grow, begin anew in part, are copied, are cut off), logits are fresh."""
    chance = random.Random(parallel)
    with opened(file, n_sequences=parallel) as model:
        contexts = [Context(model, seq_id) for seq_id in range(parallel)]
        begun: list[list[int]] = []
        for _ in range(70):
            context = chance.choice(contexts)
            if not context.tokens or chance.random() < 0.15:
                # A conversation goes on, an answer is written again, or another prompt begins so.
                before = [*chance.choice(begun)] if begun and chance.random() < 0.8 else [1]
                if chance.random() < 0.5:
                    before = list(context.tokens) or before
                added = model.tokenizer.encode("".join(chance.choices(WORDS, k=9)).encode())
                shared = len(before)
                before += [2, *added] if chance.random() < 0.7 else []
                prompt = before[:LONGEST]
                begun.append(prompt)
                other = max(contexts, key=lambda each: each.holds(prompt))
                if other is not context and other.holds(prompt) > context.holds(prompt):
                    context.adopt(other)
                context.start(prompt, scored=chance.choice((0, 0, 40)), shared=shared)
            else:
                context.append(chance.choice(WORDS).encode())
            if len(context.tokens) > LONGEST + 60:
                context.clear()
                continue
            logits = None
            while logits is None:
                run = context.pending(chance.choice((None, 20)))
                if run.every:
                    logits = context.likelihood.read(run, decode_every(model, run))
                else:
                    (logits,) = model.decode([run])
                if chance.random() < 0.05:
                    # Cut off by Ctrl-C: nobody was told.
                    logits = None
                    continue
                context.decoded(run)
            compare(fresh, context.tokens, logits.copy())


@pytest.mark.parametrize("parallel", [1, 4])
def test_law_7_rows_of_bytes_after_any_history_are_fresh(file, fresh, parallel) -> None:
    chance = random.Random(parallel)
    with opened(file, n_sequences=parallel, n_branches=BRANCHES) as model:
        space = ByteSpace([model], threshold=0.01)
        states = [space.states(slot)[0] for slot in range(parallel)]
        texts: dict[int, bytes] = {}
        for _ in range(50):
            slot = chance.randrange(parallel)
            state = states[slot]
            if slot not in texts or chance.random() < 0.15:
                words = "".join(chance.choices(WORDS, k=9)).encode()
                before = chance.choice([*texts.values()])[:200] if texts else b""
                texts[slot] = before + (words if chance.random() < 0.7 else b"")
                prompt = [1, *model.tokenizer.encode(texts[slot])]
                other = max(states, key=lambda each: each.cache.holds(prompt))
                if other is not state and other.cache.holds(prompt) > state.cache.holds(prompt):
                    state.cache.adopt(other.cache)
                state.start(Beginning(prompt, shared=chance.randrange(len(prompt))))
            else:
                word = chance.choice(WORDS).encode()
                texts[slot] += word
                for byte in word:
                    follow(model, fresh, state, chance)
                    state.commit(byte)
                if chance.random() < 0.4:
                    state.settle()
            follow(model, fresh, state, chance)
            if len(texts[slot]) > 150:
                del texts[slot]


def follow(model: LlamaModel, fresh: LlamaModel, state: ByteState, chance: random.Random) -> None:
    """Decode what a state wants; sometimes nobody tells it so, as where Ctrl-C comes between."""
    while not state.ready:
        runs = state.pending(chance.choice((None, 20)))
        found = [None if x is None else x.copy() for x in model.decode(runs)]
        if chance.random() < 0.03:
            continue
        for run, logits in zip(runs, found, strict=True):
            if logits is not None:
                row = state.cache.row(Branch(run.seq_id, run.start + len(run.tokens)))
                assert list(row[run.start :]) == list(run.tokens)
                compare(fresh, row, logits)
            state.take(run, logits)
    assert state.beam.next().sum() == pytest.approx(1)


@pytest.mark.parametrize("space", ["pivot", "bytes"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_law_7_scores_after_any_history_are_those_of_a_fresh_ensemble(
    file, folder, space, parallel, monkeypatch, tmp_path
) -> None:
    """Conversations, regenerated answers and batches with a common beginning leave no trace."""
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path))
    other = folder / "other.gguf"
    if not other.exists():
        write_tiny_gguf(other, words=(" the", " a", "ed"), seed=2)
    chance = random.Random(parallel)
    words = ["the ", "sea ", "is ", "salty ", "rivers ", "carry ", "salt ", "from ", "rocks "]
    common = "".join(chance.choices(words, k=30))
    for swa_full in {full for full, _ in shapes(file)}:
        asked = spec([file, other], space, swa_full=swa_full)
        with open_ensemble(asked, parallel=parallel) as used:
            for turn in range(3):
                prompts = [common + "".join(chance.choices(words, k=8)) for _ in range(6)]
                answers = used.complete_many(prompts)
                longer = f"{prompts[turn]}{answers[turn].text}"
                used.complete(f"{longer} {words[turn]}")
                used.complete(longer)
            scored = used.score(longer, words[3] + words[4])
        with open_ensemble(asked, parallel=parallel) as fresh:
            wanted = fresh.score(longer, words[3] + words[4])
        assert scored.log_likelihood == pytest.approx(wanted.log_likelihood, abs=0.5)


@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize("n_branches", [1, 2])
def test_a_window_that_another_text_wrote_over_is_still_there(
    folder, architecture, n_branches
) -> None:
    """What is written in one text must not take the past of another that shares its cache."""
    path = write_tiny_gguf(folder / f"{architecture}-window.gguf", architecture)
    tokens = [33 + (7 * place) % 300 for place in range(300)]
    with opened(path, n_sequences=2 // n_branches, n_branches=n_branches) as model:
        for seq_id, count in ((1, 100), (0, 120)):
            decode(model, seq_id, 0, tokens[:count])
        model.remove(1, 0)
        decode(model, 0, 120, tokens[120:250])
        assert model.remove(0, 90) == 90
        logits = decode(model, 0, 90, tokens[200:210])
    with opened(path) as fresh:
        wanted = decode(fresh, 0, 0, [*tokens[:90], *tokens[200:210]])
    assert np.abs(logits - wanted).max() < CLOSE


@pytest.mark.parametrize("architecture", WINDOWED)
def test_a_window_that_is_gone_is_said_to_be_gone(folder, architecture) -> None:
    path = write_tiny_gguf(folder / f"{architecture}-narrow.gguf", architecture)
    with opened(path, swa_full=False, n_ctx=512) as model:
        decode(model, 0, 0, [40 + place % 200 for place in range(400)])
        assert not model.can_roll_back
        assert model.holds(0, 60) == 0
        assert model.holds(0, 400) == 400
        assert model.remove(0, 60) == 0
        assert model.holds(0, 1) == 0


@pytest.mark.parametrize("architecture", ["mamba", "lfm2", "granitehybrid"])
def test_a_recurrent_model_forgets_all_texts_at_once(folder, architecture) -> None:
    path = write_tiny_gguf(folder / f"{architecture}-all.gguf", architecture)
    with opened(path, n_sequences=2) as model:
        first = decode(model, 0, 0, [40, 41, 42])
        decode(model, 1, 0, [50, 51])
        model.snapshot(0, lasting=True)
        assert model.holds(0, 3) == 3
        assert model.remove(ALL, 0) == 0
        assert model.holds(0, 3) == 0
        assert np.abs(decode(model, 0, 0, [40, 41, 42]) - first).max() < CLOSE


def decode(model: LlamaModel, seq_id: int, start: int, tokens: Sequence[int]) -> np.ndarray:
    (logits,) = model.decode([Run(seq_id, start, tokens)])
    assert logits is not None
    return logits.copy()


def test_more_texts_than_llama_cpp_has_sequences_are_refused_in_one_line(folder) -> None:
    path = write_tiny_gguf(folder / "many.gguf", "gemma3")
    with opened(path, n_ctx=64, n_sequences=31, n_branches=8) as model:
        assert decode(model, 30 * 8, 0, [40, 41]).shape == (len(model.vocabulary),)
    with pytest.raises(ModelError, match=r"32 texts side by side need 257 sequences.*256"):
        opened(path, n_ctx=64, n_sequences=32, n_branches=8)
