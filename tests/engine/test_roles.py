"""Members of one model: its weights once, a branch of one context each, and roles of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import ensemble_of_models
from fakes import FakeModel
from hypothesis import example, given
from laws import check_law_3, check_twins
from strategies import awkward_text
from thinkers import NO_THOUGHTS, Thinking

from eva_local.api import Ensemble
from eva_local.config.config import load_config
from eva_local.config.specs import (
    EnsembleSpec,
    FusionSettings,
    LoadSettings,
    MemberSpec,
    ModelSpec,
    PathSource,
)
from eva_local.errors import ConfigError, InputError
from eva_local.fusion.votes import Vote, combine
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.prompt import Thought
from eva_local.opening import load, open_ensemble
from eva_local.trace import TraceFile, TraceWriter, read_trace
from eva_local.types import Message, Sampling
from tools.tiny_gguf import write_tiny_gguf

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ mood }}[assistant] "
)
ASKED = [Message("system", "Be brief."), Message("user", "the light and the other")]
SHORT = Sampling(max_tokens=12)
TOML = """
schema = 1
[defaults]
n_ctx = 512
max_tokens = 8
[models.one]
path = "one.gguf"
[models.two]
path = "two.gguf"
[ensembles.roles]
pivot = "calm"
combine = "geometric"
[[ensembles.roles.members]]
model = "one"
name = "calm"
system = "You are calm."
weight = 1.5
[[ensembles.roles.members]]
model = "one"
prefix = "the "
chat_template_kwargs = { mood = "wild " }
weight = -0.5
[[ensembles.roles.members]]
model = "two"
n = 2
[ensembles.mixed]
members = ["two", { model = "one", n = 3 }]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roles")
    for seed, name in enumerate(("one", "two"), 1):
        words = (" the", " and", " light", "er") if seed == 1 else (" the", " a", "ing")
        write_tiny_gguf(
            folder / f"{name}.gguf", n_layers=1, words=words, chat_template=TEMPLATE, seed=seed
        )
    (folder / "models.toml").write_text(TOML, encoding="utf-8")
    return folder


@pytest.fixture(params=["pivot", "bytes"])
def space(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def roles(folder: Path, space: str) -> Iterator[Ensemble]:
    with load("roles", config=folder / "models.toml", space=space) as ensemble:
        yield ensemble


def test_members_have_names_roles_and_weights(folder) -> None:
    spec = load_config(folder / "models.toml", {}).ensemble("roles")
    assert [member.name for member in spec.members] == ["calm", "one", "two", "two-2"]
    assert spec.fusion.weights == (1.5, -0.5, 1.0, 1.0)
    assert spec.members[1].prefix == "the "
    assert spec.pivot_index == 0


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ('[{ model = "three" }]', "ensembles.e.members[0]: there is no model 'three'"),
        ('[{ model = "one", nam = "x" }]', "ensembles.e.members[0].nam: unknown key"),
        ('[{ model = "one", n = 0 }]', "ensembles.e.members[0].n: must be from 1 to 256"),
        ('[{ model = "one", n = 1_000_000_000 }]', "members[0].n: must be from 1 to 256"),
        ('[{ model = "one", name = "a b" }]', "ensembles.e.members[0].name: a name is letters"),
        ('[{ name = "x" }]', "ensembles.e.members[0].model: is missing"),
        ('["one", { model = "two", weight = -0.5 }]', "a negative weight needs combine ="),
        ('[{ model = "one", weight = 1 }]\nweights = [1]', "weights: the members have weights"),
    ],
)
def test_a_mistake_in_a_member_is_one_line(folder, tmp_path, members, problem) -> None:
    text = TOML + f"[ensembles.e]\nmembers = {members}\n"
    (tmp_path / "models.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "models.toml", {})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_is_opened_once(roles) -> None:
    models = roles._models
    assert models[0] is models[1]
    assert models[2] is models[3]
    assert models[0] is not models[2]
    assert models[0].n_sequences == 2


def test_law_3_members_of_one_model_have_one_mapping(folder) -> None:
    with load("roles", config=folder / "models.toml", space="pivot") as ensemble:
        models, mappings = ensemble._models, ensemble._engine.panel().space._mappings
        dense = [check_law_3(each, m, models[0]) for each, m in zip(mappings, models, strict=True)]
    for one, other, model in ((0, 1, models[0]), (2, 3, models[2])):
        assert np.array_equal(dense[one], dense[other])
        check_twins(dense[other], model, models[0])


def spelled(model: LlamaModel, read: tuple[list[int], Thought | None]) -> str:
    return "".join(map(model.vocabulary.spelled, read[0])).replace("▁", " ")


def test_each_reads_its_own_prompt(roles) -> None:
    read = roles._readers.read(ASKED, Sampling())
    found = [spelled(*each) for each in zip(roles._models, read, strict=True)]
    plain = "<s>[system] Be brief.\n[user] the light and the other\n[assistant] "
    assert found == [
        "<s>[system] You are calm.\n\nBe brief.\n[user] the light and the other\n[assistant] ",
        "<s>[system] Be brief.\n[user] the the light and the other\nwild [assistant] ",
        plain,
        plain,
    ]


def test_a_plain_text_has_the_prefix_and_no_system(roles, caplog) -> None:
    with caplog.at_level(logging.WARNING, "eva_local"):
        for _ in range(2):
            read = roles._readers.read("light", Sampling(), fitting=True)
    assert [spelled(*each) for each in zip(roles._models, read, strict=True)] == [
        "<s>light",
        "<s>the light",
        "<s>light",
        "<s>light",
    ]
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == "calm: its system message is not told: a plain text has none"


def copies(
    folder: Path, space: str, file: str = "one.gguf", load: LoadSettings | None = None, **fusion
) -> tuple[EnsembleSpec, EnsembleSpec]:
    """Two members of one model in two roles: of one file, and of two copies of it."""
    one = ModelSpec("a", PathSource(folder / file), load=load or LoadSettings())
    settings = FusionSettings(space=space, **fusion)
    copy = folder / "copy.gguf"
    copy.write_bytes((folder / file).read_bytes())
    other = replace(one, source=PathSource(copy))
    shared, apart = (
        (MemberSpec.of(one), MemberSpec.of(model, name="b", system="the other"))
        for model in (one, other)
    )
    return EnsembleSpec("x", shared, "a", settings), EnsembleSpec("x", apart, "a", settings)


@pytest.mark.parametrize(
    "fusion", [{}, {"gate": 0.3}, {"combine": "geometric", "weights": (2, -1)}]
)
def test_they_write_what_separate_copies_write(folder, space, fusion) -> None:
    they_write_the_same(*copies(folder, space, **fusion))


# A state of all that was read, beside attention and without, and a window.
@pytest.mark.parametrize("architecture", ["qwen35", "mamba", "gemma3"])
def test_law_7_so_they_do_whatever_a_cache_can_take_back(folder, space, architecture) -> None:
    file = f"{architecture}.gguf"
    write_tiny_gguf(folder / file, architecture, chat_template=TEMPLATE)
    # Random models have near-ties, which rounding decides.
    exact = LoadSettings(kv_type="f32", flash_attention="off", threads=1)
    they_write_the_same(*copies(folder, space, file, exact, combine="geometric", weights=(2, -1)))


def they_write_the_same(shared: EnsembleSpec, apart: EnsembleSpec) -> None:
    prompts = [ASKED, [Message("user", "and a light")], [Message("user", "the")]]
    found = []
    for spec in (shared, apart):
        with open_ensemble(replace(spec, sampling=SHORT), parallel=3) as ensemble:
            texts = [ensemble.complete(ASKED).text, ensemble.complete(ASKED, alone="b").text]
            texts += [each.text for each in ensemble.complete_many(prompts)]
            turn = [*ASKED, Message("assistant", texts[0]), Message("user", "and")]
            texts.append(ensemble.complete(turn).text)
            found.append((texts, ensemble.score(ASKED, " light").log_likelihood))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)


@given(text=awkward_text)
@example(text="<|im_end|>")
def test_law_8_no_role_and_no_mark_becomes_a_control_token(text) -> None:
    model = Thinking(NO_THOUGHTS, "un")
    one = ModelSpec("m0", PathSource(Path("fake.gguf")))
    role = MemberSpec.of(one, name="m1", system=f"a{text}", prefix=f"{text}a")
    spec = EnsembleSpec("pair", (MemberSpec.of(one), role), "m0", FusionSettings())
    how = Sampling(thinking="apart", thinking_mark=text or "x", thinking_instruction="{mark}")
    with ensemble_of_models(spec, [model, model], 1) as ensemble:
        read = ensemble._readers.read([Message("user", "is"), Message("user", text)], how)
    for tokens, thought in read:
        found = [*tokens, *thought.closing]
        # Of two messages of the user, of the role's system message, and what opens the answer.
        n_messages = 2 + (tokens is read[1][0])
        assert [i for i in found if not model.vocabulary.speakable[i]] == [1, 3] * n_messages + [1]


def test_two_equal_members_write_what_one_writes(folder, space) -> None:
    one = MemberSpec.of(ModelSpec("a", PathSource(folder / "one.gguf")))
    pair = (one, MemberSpec.of(one, name="b"))
    texts = []
    for members in ((one,), pair):
        spec = EnsembleSpec("x", members, "a", FusionSettings(space=space))
        with open_ensemble(replace(spec, sampling=SHORT)) as ensemble:
            texts.append(ensemble.complete(ASKED).text)
    assert texts[0] == texts[1]


def test_what_their_prompts_have_in_common_is_read_once(folder, space) -> None:
    spec = load_config(folder / "models.toml", {}, {"space": space}).ensemble("mixed")
    asked = [Message("user", "the light and the other " * 10)]
    with open_ensemble(replace(spec, sampling=SHORT)) as ensemble:
        usage = ensemble.complete(asked).usage
    first, *others = usage.cached_tokens[1:]
    assert first == 0
    assert all(
        cached >= read - 1 for cached, read in zip(others, usage.prompt_tokens[2:], strict=True)
    )


def test_a_negative_weight_makes_less_likely_what_its_member_likes() -> None:
    expert, amateur = Vote(*_vote(0.5, 0.45, 0.05)), Vote(*_vote(0.8, 0.1, 0.1))
    fused = combine([expert, amateur], [2.0, -1.0], "geometric")
    # 0.5² / 0.8 against 0.45² / 0.1; the third is under a tenth of the expert's most, 0.05 of 0.5.
    assert fused.symbols.tolist() == [0, 1, 2]
    ratio = fused.probability(1) / fused.probability(0)
    assert ratio == pytest.approx((0.45**2 / 0.1) / (0.5**2 / 0.8))
    unlikely = combine([Vote(*_vote(0.5, 0.46, 0.04)), amateur], [2.0, -1.0], "geometric")
    assert unlikely.symbols.tolist() == [0, 1]
    only = combine([None, amateur], [2.0, -1.0], "geometric")
    assert len(only) == 0


CONTRAST = FusionSettings(combine="geometric", weights=(-1.0, 2.0), filter="off")


def contrasted(gate: float = 1.0, combine: str = "geometric") -> Ensemble:
    weights = CONTRAST.weights if combine == "geometric" else (1.0, 2.0)
    fusion = replace(CONTRAST, gate=gate, combine=combine, weights=weights)
    one = ModelSpec("m0", PathSource(Path("fake.gguf")))
    spec = EnsembleSpec("pair", (one, replace(one, name="m1")), "m0", fusion)
    return ensemble_of_models(spec, [FakeModel(), FakeModel(endless=True)], 1)


def test_a_pivot_of_negative_weight_never_decides_alone() -> None:
    with contrasted() as plain, contrasted(gate=0.05) as gated:
        found = plain.complete("the", SHORT), gated.complete("the", SHORT)
    assert found[1].usage.steps_alone == 0
    assert found[0].text == found[1].text


def test_a_request_cannot_have_negative_weights_of_a_mean() -> None:
    with contrasted(combine="mean") as ensemble:
        with pytest.raises(InputError, match="a negative weight needs combine = geometric"):
            ensemble.complete("the", SHORT, weights=(2.0, -1.0))
        assert ensemble.complete("the", SHORT, weights=(2.0, 0.0)).text


def test_a_trace_with_negative_weights_is_read_again(tmp_path) -> None:
    header = TraceFile("pair", ("m0", "m1"), "m0", "the", {})
    with contrasted() as ensemble, TraceWriter(tmp_path / "t.jsonl", header) as writer:
        for step in ensemble.stream("the", SHORT, trace=True):
            writer.write(step)
    steps = read_trace(tmp_path / "t.jsonl").steps
    assert [ballot.weight for ballot in steps[0].trace.ballots] == [-1.0, 2.0]


def _vote(*probabilities: float):
    return np.arange(len(probabilities)), np.asarray(probabilities)


def test_names_of_members_are_their_own(folder) -> None:
    one = ModelSpec("a", PathSource(folder / "one.gguf"))
    with pytest.raises(InputError, match="give each its own name"):
        EnsembleSpec("x", (one, one), "a")
