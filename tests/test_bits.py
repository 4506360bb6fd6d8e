import json
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.alignment.library import identity
from eva_local.alignment.surface import surface, surface_refined
from eva_local.decision import Judge
from eva_local.errors import InputError
from eva_local.evaluate.bits import Passage, bits_per_byte, passages
from eva_local.evaluate.texts import cut, read_texts
from eva_local.model import Logits, Model
from eva_local.space import PivotSpace
from eva_local.specs import FusionSettings

TEXT = b"the unbelievable Paris is the end"
SURFACE = {"surface": surface, "surface-refined": surface_refined}
SETTINGS = [
    FusionSettings(mapping=mapping, combine=how, weights=weights, filter=filtering, filter_n=n)
    for mapping, how, weights, (filtering, n) in product(
        SURFACE,
        ("mean", "geometric"),
        ("equal", (3.0, 0.0, 1.0), "running", "prompt-perplexity"),
        (("off", 3), ("top-n", 1), ("top-n", 40)),
    )
]


def uniform(words: list[bytes]) -> FakeModel:
    model = FakeModel(words)
    model._logits = lambda _: np.zeros(len(model.vocabulary), dtype=np.float32)
    return model


def mapped(members: dict[str, Model], pivot: str) -> dict:
    """Every surface mapping of all members, built afresh."""
    return {
        method: {
            name: identity(model)
            if model.vocabulary.fingerprint == members[pivot].vocabulary.fingerprint
            else learn(model.tokenizer, members[pivot].tokenizer)
            for name, model in members.items()
        }
        for method, learn in SURFACE.items()
    }


def test_a_member_alone_by_hand() -> None:
    model = uniform(WORDS_A)
    members = {"m": model}
    found = bits_per_byte(passages([TEXT, b"a"], members), members, "m", SETTINGS, {})
    tokens = len(model.tokenizer.encode(TEXT))
    each = math.log2(len(model.vocabulary))
    assert found.alone["m"] == pytest.approx((tokens * each, each))
    assert found.n_bytes == (len(TEXT), 1)
    assert found.per_byte(found.alone["m"]) == pytest.approx((tokens + 1) * each / (len(TEXT) + 1))
    assert found.fused == {}


def test_a_prompt_is_read_but_not_measured() -> None:
    model = FakeModel()
    (passage,) = passages([TEXT], {"m": model}, 8)
    assert (passage.text, len(passage.prompts["m"])) == (TEXT[3:], 2)
    found = bits_per_byte([passage], {"m": model}, "m", [], {})
    prompt, expected = list(passage.prompts["m"]), 0.0
    for token_id in model.tokenizer.encode(passage.text):
        logits = model._hashed(prompt).astype(np.float64)
        expected -= (logits[token_id] - np.log(np.exp(logits).sum())) / math.log(2)
        prompt.append(token_id)
    assert found.alone["m"] == pytest.approx((expected,), rel=1e-5)
    assert passages([TEXT, b"the"], {"m": model}, 8) == [passage]


@pytest.mark.parametrize("how", ["mean", "geometric"])
def test_copies_of_one_model_predict_as_it_does_among_what_can_be_said(how) -> None:
    members = {"one": FakeModel(), "two": FakeModel()}
    setting = FusionSettings(mapping="surface", combine=how)
    found = bits_per_byte(
        passages([TEXT], members), members, "one", [setting], mapped(members, "one")
    )
    # The shared space leaves out control tokens, and adds up the END ids: a little less to pay.
    assert 0 <= (found.alone["one"][0] - found.fused[setting][0]) / len(TEXT) < 0.2


def by_the_engine(
    passage: Passage, members: dict[str, Model], pivot: str, setting: FusionSettings, mappings: dict
) -> float:
    """The same measurement by the engine's own space, votes and judge, symbol by symbol."""
    models = list(members.values())
    table = [mappings[setting.mapping][name] for name in members]
    lead = list(members).index(pivot)
    space = PivotSpace(models, table, pivot=lead, n_candidates=0)
    judge = Judge(setting, len(models))
    voices = space.voices(7)
    for place, (name, model, voice) in enumerate(zip(members, models, voices, strict=True)):
        model.remove(7, 0)
        voice.start(passage.prompts[name])
        (run,) = voice.pending()
        voice.read(run, model.decode_every(run))
        if setting.weights == "prompt-perplexity":
            judge.evidence[place] = voice.evidence()
    bits = 0.0
    for symbol in models[lead].tokenizer.encode(passage.text):
        for model, voice in zip(models, voices, strict=True):
            for run in voice.pending():
                voice.take(run, model.decode([run])[0])
        decision = judge.decide(space.votes(voices, space.lead_vote(voices)))
        bits -= math.log2(decision.fused.at_least(symbol))
        judge.learn(decision, symbol, len(space.piece(symbol)))
        for voice in voices:
            voice.commit(symbol)
    return bits


def test_every_setting_is_measured_as_the_engine_would_fuse() -> None:
    members = {
        "b": FakeModel(WORDS_B, missing=[0x04]),
        "a": FakeModel(WORDS_A),
        "again": FakeModel(WORDS_A),
    }
    members["again"]._logits = lambda tokens: members["a"]._hashed([*tokens, 7])
    mappings = mapped(members, "a")
    parts = passages([TEXT, b"able\x04 there a"], members, 6)
    found = bits_per_byte(parts, members, "a", SETTINGS, mappings)
    assert list(found.fused) == SETTINGS
    assert len({round(sum(bits), 6) for bits in found.fused.values()}) > len(SETTINGS) / 2
    for setting, bits in found.fused.items():
        assert bits == pytest.approx(
            [by_the_engine(part, members, "a", setting, mappings) for part in parts], rel=1e-6
        )


STORY = b"the unbelievable thing is there, the man is in Paris and the end is able. " * 24


def reader_of(words: list[bytes], text: bytes, sure: float) -> FakeModel:
    """A model that has read `text` and knows it, the better the higher `sure`."""
    model = FakeModel(words)

    def logits(tokens: Sequence[int]) -> Logits:
        row = model._hashed(tokens) / 4
        rest = text[len(model.vocabulary.join(tokens)) :]
        row[model.tokenizer.encode(rest)[0]] += sure
        return row

    model._logits = logits
    return model


@pytest.mark.parametrize("how", ["mean", "geometric"])
def test_a_member_that_votes_nonsense_does_not_drag_down_who_follows_the_text(how) -> None:
    members = {
        "good": reader_of(WORDS_A, STORY, 6),
        "fair": reader_of(WORDS_B, STORY, 4),
        "nonsense": FakeModel(WORDS_A),
    }
    cases = {
        weights: FusionSettings(combine=how, weights=weights, filter="off")
        for weights in ("equal", "running")
    }
    parts = passages([STORY], members)
    found = bits_per_byte(parts, members, "good", list(cases.values()), mapped(members, "good"))
    best = min(bits[0] for bits in found.alone.values())
    cost = {weights: found.fused[case][0] / best for weights, case in cases.items()}
    assert best == found.alone["good"][0]
    assert cost["running"] < 1.01
    assert cost["equal"] > 1.2


def test_a_character_that_a_member_cannot_spell_is_left_out() -> None:
    members = {"a": FakeModel(), "b": FakeModel(WORDS_B, missing=[0x04])}
    assert [part.text for part in passages([b"the\x04 end"], members)] == [b"the end"]


def test_texts_are_cut_between_words_else_between_characters() -> None:
    assert cut(b"one two", 5) == (b"one", b" two")
    assert cut(b"one two", 3) == (b"one", b" two")
    assert cut(b"one", 3) == (b"one", b"")
    assert cut(b" one", 2) == (b" o", b"ne")
    assert cut("ab中".encode(), 4) == (b"ab", "中".encode())
    assert cut(b"one", 0) == (b"", b"one")


def test_texts_of_json_lines_and_plain_files(tmp_path) -> None:
    rows = [{"text": "one"}, {"question": "two?"}, {"prompt": "three"}]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_texts(lines) == [b"one", b"two?", b"three"]
    assert read_texts(lines, 5) == [b"one", b"tw"]
    plain = tmp_path / "plain.txt"
    plain.write_text("word " * 2000)
    parts = read_texts(plain)
    assert b"".join(parts) == plain.read_bytes()
    assert max(map(len, parts)) <= 3000
    assert all(part.startswith(b" ") for part in parts[1:])
    plain.write_text("中" * 2000)
    assert "".join(part.decode() for part in read_texts(plain)) == "中" * 2000


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"text": 1}\n', "line 1"),
        ("a.jsonl", b'{"text": "a"}\n{"other": 1}\n', "line 2"),
        ("a.jsonl", b"[]\n", "line 1"),
        ("a.jsonl", b"{no json\n", "no JSON"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.txt", b"", "no text"),
        ("absent", None, "cannot be read"),
    ],
)
def test_a_bad_file_is_a_clear_error(tmp_path, name, content, problem) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_texts(tmp_path / name)
