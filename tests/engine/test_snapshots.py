"""What members that cannot take tokens back need not decode again, in both spaces."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import ModelError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.memory import Snapshot, retained
from eva_local.llama.model import ALL, Run
from eva_local.llama.prompt import PromptWriter
from eva_local.opening import open_ensemble
from eva_local.types import Message, Sampling
from tools.tiny_gguf import ARCHITECTURES, write_tiny_gguf

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
COMMON = "the light and the seer ing " * 20
SPACES = pytest.mark.parametrize("space", ["pivot", "bytes"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hybrid")


@pytest.fixture(scope="module", params=["qwen35", "mamba"])
def files(folder, request) -> list[Path]:
    paths = [folder / f"{name}.gguf" for name in (request.param, "other")]
    write_tiny_gguf(paths[0], request.param, chat_template=TEMPLATE, n_ctx=1024)
    write_tiny_gguf(paths[1], words=(" the", "ed"), seed=2, chat_template=TEMPLATE, n_ctx=1024)
    return paths


def spec(
    files: list[Path], space: str, pivot: int = 0, weights: str = "equal", **load: object
) -> EnsembleSpec:
    settings = LoadSettings(n_ctx=1024, threads=1, **load)
    members = tuple(
        ModelSpec(file.stem + "-2" * files[:number].count(file), PathSource(file), load=settings)
        for number, file in enumerate(files)
    )
    fusion = FusionSettings(space=space, mapping="surface", weights=weights)
    return EnsembleSpec("tiny", members, files[pivot].stem, fusion, Sampling(max_tokens=12))


@pytest.fixture
def decoded(monkeypatch) -> dict[str, int]:
    """Count the tokens that each model decodes."""
    counts: dict[str, int] = {}
    decode = LlamaModel._decode_batch

    def counted(self: LlamaModel, size: int) -> None:
        counts[self.path.stem] = counts.get(self.path.stem, 0) + size
        decode(self, size)

    monkeypatch.setattr(LlamaModel, "_decode_batch", counted)
    return counts


@SPACES
@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("pivot", [0, 1])
def test_a_turn_decodes_what_is_new(files, space, parallel, pivot, decoded) -> None:
    name = files[0].stem
    with open_ensemble(spec(files, space, pivot), parallel=parallel) as ensemble:
        talk = [Message("user", COMMON)]
        first = ensemble.complete(talk)
        talk += [Message("assistant", first.text), Message("user", "and the rest?")]
        decoded.clear()
        second = ensemble.complete(talk)
        # Some rows of bytes are decoded in vain.
        in_vain = 1.5 if space == "bytes" else 1.0
        new = second.usage.prompt_tokens[0] - first.usage.prompt_tokens[0] + 1
        assert decoded[name] <= new + in_vain * 12
        decoded.clear()
        again = ensemble.complete(talk)
        assert again.text == second.text
        assert again.usage.cached_tokens[0] == again.usage.prompt_tokens[0] - 1
        assert decoded[name] <= 1 + in_vain * 12
        # The last message is another one.
        decoded.clear()
        ensemble.complete([*talk[:-1], Message("user", "light")], Sampling(max_tokens=1))
        assert decoded[name] <= second.usage.prompt_tokens[0] - first.usage.prompt_tokens[0]


@SPACES
@pytest.mark.parametrize("parallel", [1, 2, 3])
@pytest.mark.parametrize("weights", ["equal", "running"])
def test_a_common_beginning_is_decoded_once(files, space, parallel, weights, decoded) -> None:
    # Running weights begin with how likely each prompt is, so that its tokens are scored, too.
    with open_ensemble(spec(files, space, weights=weights), parallel=parallel) as ensemble:
        rows = [COMMON + word for word in ("one", "two three", "x", "7 light", "seer the", "and")]
        answers = ensemble.complete_many(rows)
        common = min(each.usage.cached_tokens[0] for each in answers[1:])
        assert common >= 200
        rest = sum(each.usage.prompt_tokens[0] - common for each in answers)
        assert decoded[files[0].stem] <= common + rest + 1.2 * 6 * 12


@SPACES
def test_without_snapshots_all_is_read_anew_and_right(files, space, decoded) -> None:
    with open_ensemble(spec(files, space, snapshots=0)) as ensemble:
        first = ensemble.complete(COMMON)
        decoded.clear()
        again = ensemble.complete(COMMON)
        assert again.text == first.text
        assert again.usage.cached_tokens[0] == 0
        assert decoded[files[0].stem] >= again.usage.prompt_tokens[0]


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_law_2_members_of_a_model_write_its_own_tokens(folder, architecture, copies) -> None:
    path = write_tiny_gguf(folder / f"{architecture}-alone.gguf", architecture)
    # Random models have near-ties, which rounding decides.
    exact = {"kv_type": "f32", "flash_attention": "off"}
    with open_ensemble(spec([path] * copies, "pivot", **exact)) as ensemble:
        for prompt in (COMMON[:100], COMMON[:50], COMMON[:103]):
            ensemble.complete(prompt, Sampling(max_tokens=30))
            state, *others = ensemble._engine._states[0]
            with LlamaModel(path, LoadSettings(n_ctx=512, threads=1, **exact)) as model:
                alone = list(_greedy(model, prompt, 30))
            made = list(state.cache.tokens[state.cache._n_prompt :])
            assert made == alone[: len(made)]
            assert all(
                list(other.cache.tokens[other.cache._n_prompt :]) == made for other in others
            )
            assert len(alone) in (30, len(made))


def _greedy(model: LlamaModel, prompt: str, count: int) -> Iterator[int]:
    row = list(PromptWriter(model).read(prompt)[0])
    model.remove(ALL, 0)
    said = model.vocabulary.speakable.copy()
    said[list(model.vocabulary.end_ids)] = True
    start = 0
    for _ in range(count):
        (logits,) = model.decode([Run(0, start, row[start:])])
        assert logits is not None
        start, best = len(row), int((logits + (said - 1.0) * 1e9).argmax())
        if best in model.vocabulary.end_ids:
            return
        row.append(best)
        yield best


def test_the_oldest_snapshot_of_a_kind_goes_first() -> None:
    kept: list[Snapshot[None]] = []
    for length, lasting in ((5, True), (9, True), (12, False), (15, False), (18, False)):
        kept = retained([*kept, Snapshot(length, lasting, None)], 4)
    assert [each.length for each in kept] == [5, 9, 15, 18]
    for length in (20, 22):
        kept = retained([*kept, Snapshot(length, True, None)], 4)
    # One place is left for what is written.
    assert [each.length for each in kept] == [9, 20, 22, 18]
    assert [each.length for each in retained(kept, 1)] == [22]
    assert [each.length for each in retained(kept, 2)] == [22, 18]


def test_more_texts_with_snapshots_than_there_are_sequences_are_refused(files) -> None:
    with pytest.raises(ModelError, match=r"22 texts side by side need 264 sequences.*256"):
        LlamaModel(files[0], LoadSettings(n_ctx=64), n_sequences=22, n_branches=8)
    settings = LoadSettings(n_ctx=64, snapshots=0)
    with LlamaModel(files[0], settings, n_sequences=22, n_branches=8) as model:
        assert (model.n_branches, model.n_snapshots) == (8, 0)


def test_a_window_is_kept_whole_in_bytes_and_that_is_told(folder, caplog) -> None:
    path = write_tiny_gguf(folder / "window.gguf", "gemma3")
    for space, told in (("bytes", 1), ("pivot", 0)):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, logger="eva_local"),
            open_ensemble(spec([path], space, swa_full=False)),
        ):
            pass
        assert caplog.text.count("window: bytes need a whole window") == told
