import json

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.alignment.library import METHODS, find_or_build, identity
from eva_local.alignment.surface import surface, surface_refined
from eva_local.errors import InputError
from eva_local.evaluate.bits import COMBINES, _fuse, _Projection, bits_per_byte
from eva_local.evaluate.texts import read_texts
from eva_local.fusion import combine, project, top_k

TEXT = b"the unbelievable Paris is the end"


def uniform(words: list[bytes]) -> FakeModel:
    model = FakeModel(words)
    model._logits = lambda _: np.zeros(len(model.vocabulary), dtype=np.float32)
    return model


def test_a_member_alone_by_hand() -> None:
    model = uniform(WORDS_A)
    found = bits_per_byte([TEXT, b"a"], {"m": model}, "m", {})
    tokens = len(model.tokenizer.encode(TEXT)) + 1
    expected = tokens * np.log2(len(model.vocabulary)) / (len(TEXT) + 1)
    assert found.alone["m"] == pytest.approx(expected)
    assert (found.n_bytes, found.fused) == (len(TEXT) + 1, {})


@pytest.mark.parametrize("how", COMBINES)
def test_copies_of_one_model_predict_as_it_does_among_what_can_be_said(how) -> None:
    members = {"one": FakeModel(), "two": FakeModel()}
    table = {name: identity(model) for name, model in members.items()}
    fused = bits_per_byte([TEXT], members, "one", {"same": table}).fused["same", how]
    alone = bits_per_byte([TEXT], {"one": FakeModel()}, "one", {}).alone["one"]
    # The shared space leaves out control tokens, and adds up the END ids: a little less to pay.
    assert 0 <= alone - fused < 0.2


@pytest.mark.parametrize("build", [surface, surface_refined])
@pytest.mark.parametrize("how", COMBINES)
def test_whole_votes_are_fused_as_the_engine_fuses_them(build, how) -> None:
    pivot, member = FakeModel(WORDS_A), FakeModel(WORDS_B)
    mapping, own = build(member.tokenizer, pivot.tokenizer), identity(pivot)
    ours, theirs = pivot._hashed([1]), member._hashed([2])
    lead = project(*top_k(ours, 0), own)
    sparse = combine([lead, project(*top_k(theirs, 0), mapping, lead)], [1, 1], how)
    dense_lead = _Projection(own).project(top_k(ours, 0)[1], None)
    dense = _fuse([dense_lead, _Projection(mapping).project(top_k(theirs, 0)[1], dense_lead)], how)
    assert dense[sparse.symbols] == pytest.approx(sparse.probabilities, rel=1e-6)
    if how == "mean":
        assert dense.sum() == pytest.approx(sparse.probabilities.sum())


def test_a_character_that_a_member_cannot_spell_is_left_out() -> None:
    members = {"a": FakeModel(), "b": FakeModel(WORDS_B, missing=[0x04])}
    mappings = {
        method: {
            name: find_or_build(method, model, members["a"], [])
            if name == "a"
            else METHODS[method](model, members["a"], None)
            for name, model in members.items()
        }
        for method in ("surface",)
    }
    assert bits_per_byte([b"the\x04 end"], members, "a", mappings).n_bytes == len(b"the end")


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
