"""Grammars on a small fake vocabulary: what is allowed after what, and what cannot be used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import WORDS_A, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from test_engine import begin, ensemble, run, text_of

from eva_local.alignment.library import identity
from eva_local.engine import Engine
from eva_local.errors import InputError
from eva_local.fusion import normalised
from eva_local.grammar import Grammar, Grammars, check
from eva_local.records import Sampling
from eva_local.sampling import Sampler
from eva_local.space import PivotSpace
from eva_local.specs import FusionSettings

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", 'gr"\\een', "é😀"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Pieces:
    """A shared space of all bytes and a few longer pieces."""

    longer = (b'{"', b"name", b"na", b'": ', b'": "', b"yes", b"ye", b"\xc3\xa9", b"\xf0\x9f")

    def __init__(self) -> None:
        self.pieces = [*(bytes([byte]) for byte in range(256)), *self.longer]
        self.end = len(self.pieces)

    def piece(self, symbol: int) -> bytes:
        return b"" if symbol == self.end else self.pieces[symbol]

    def is_text(self, symbol: int) -> bool:
        return 0 <= symbol < self.end


SPACE = Pieces()
GRAMMARS = Grammars(SPACE)


def opened(**settings: str) -> Grammar:
    grammar = GRAMMARS.open(Sampling(**settings))
    assert grammar is not None
    return grammar


def next_pieces(grammar: Grammar) -> set[bytes]:
    """All that may come next; END is b""."""
    symbols = range(SPACE.end + 1)
    return {SPACE.piece(s) for s, ok in zip(symbols, grammar.allows(symbols), strict=True) if ok}


def follow(grammar: Grammar, text: bytes) -> Grammar:
    for byte in text:
        assert grammar.allows([byte])[0], f"{bytes([byte])!r} in {text!r}"
        grammar.accept(byte)
    return grammar


def obeys(gbnf: str, text: str) -> bool:
    """Whether a whole text is in the language of a grammar."""
    grammar = opened(grammar=gbnf)
    for byte in text.encode():
        if not grammar.allows([byte])[0]:
            return False
        grammar.accept(byte)
    return bool(grammar.allows([SPACE.end])[0])


def test_an_answer_without_a_grammar_is_free() -> None:
    assert GRAMMARS.open(Sampling()) is None
    check(Sampling())


def test_every_spelling_of_what_is_forced_is_allowed() -> None:
    grammar = opened(json_schema=json.dumps(PERSON))
    assert next_pieces(grammar) == {b"{", b'{"'}
    follow(grammar, b'{"')
    assert next_pieces(grammar) == {b"n", b"na", b"name"}
    follow(grammar, b"na")
    assert next_pieces(grammar) == {b"m"}
    assert next_pieces(follow(grammar, b"me")) == {b'"', b'": ', b'": "'}


def test_json_is_laid_out_as_json_dumps_does_and_ends_where_it_ends() -> None:
    document = {"name": 'A"\n\t\\é', "age": -12, "tags": ["red", 'gr"\\een']}
    text = json.dumps(document, ensure_ascii=False).encode()
    grammar = opened(json_schema=json.dumps(PERSON))
    follow(grammar, text[:-1])
    assert not grammar.complete
    assert b"" not in next_pieces(grammar)
    follow(grammar, text[-1:])
    assert grammar.complete
    assert next_pieces(grammar) == {b""}
    grammar.accept(SPACE.end)


def test_whitespace_and_control_characters_have_no_place_in_json() -> None:
    assert next_pieces(opened(json_schema='{"type": "object"}')) == {b"{", b'{"'}
    grammar = follow(opened(json_schema='{"type": "string"}'), b'"')
    assert not any(grammar.allows(list(range(32))))


def test_the_end_is_one_of_the_ways_where_the_text_may_go_on() -> None:
    grammar = follow(opened(grammar='root ::= "yes" "!"*'), b"ye")
    assert next_pieces(grammar) == {b"s"}
    follow(grammar, b"s")
    assert next_pieces(grammar) == {b"", b"!"}
    assert not grammar.complete


def test_half_characters_are_allowed_where_the_character_is() -> None:
    grammar = opened(grammar='root ::= "é" | "😀"')
    assert next_pieces(grammar) == {b"\xc3", b"\xc3\xa9", b"\xf0", b"\xf0\x9f"}


@pytest.mark.parametrize(
    ("gbnf", "inside", "outside"),
    [
        ('root ::= [a-z]+ "z"', ["abz", "zz"], ["z", "ab"]),
        ('root ::= w w "!"\nw ::= [a-z]{1,3}', ["ab!", "abcdef!"], ["a!", "abcdefg!"]),
        ('root ::= "a" | "ab" |', ["", "a", "ab"], ["b", "abc"]),
        ('root ::= w "z"\nw ::= [a-z]+', ["abz"], ["z"]),
        ('root ::= "if" "!" | [a-z]+ "?"\nif ::= "x"', ["if!", "if?", "a?"], ["a!"]),
        ('root ::= Some other\nSome ::= "/" . "\\""*\nother ::= "\\\\" [^/"]', ['/\n"\\a'], ["/"]),
        (r'root ::= "\u00e9" [\u00e9-\U000000ff]', ["éé", "éÿ"], ["é", "éa"]),
        (r'root ::= "\\u00e9\u0022\x41"', [r"\u00e9" + '"A'], ['é"A']),
        (r'root ::= [^"\\/]+', ["a-b"], ["a/", 'a"', "\\"]),
        ('# a note\nroot ::= (\n  "a"\n  | "b"\n)', ["a", "b"], ["c"]),
        ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["(x", "()"]),
    ],
)
def test_gbnf(gbnf, inside, outside) -> None:
    assert all(obeys(gbnf, text) for text in inside)
    assert not any(obeys(gbnf, text) for text in outside)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grammar": "root ::= ("},
        {"grammar": "root ::= other"},
        {"grammar": 'other ::= "a"'},
        {"grammar": 'root ::= "a'},
        {"grammar": 'root ::= "\\'},
        {"grammar": 'root ::= "a"{99999999999}'},
        {"grammar": "root ::= [z-a]"},
        {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
        {"json_schema": "[1"},
        {"json_schema": "true"},
        {"json_schema": "[" * 5000},
        {"json_schema": '{"type": "strin"}'},
        {"json_schema": '{"type": "array", "uniqueItems": true}'},
        {"json_schema": '{"x-guidance": {"lenient": true}, "not": {"type": "string"}}'},
        {"json_schema": '{"$ref": "https://example.org/schema.json"}'},
        {"json_schema": '{"type": "string", "pattern": "a(?=b)"}'},
    ],
)
def test_what_cannot_be_used_is_one_line_naming_the_setting(wrong, capfd) -> None:
    for use in (check, GRAMMARS.open):
        with pytest.raises(InputError, match=f"^{next(iter(wrong))}: ") as error:
            use(Sampling(**wrong))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 250
    assert capfd.readouterr() == ("", "")


@given(text=st.text('root:=|"[]()*+?{}\\-^ab1, \n.') | st.text())
def test_no_grammar_whatever_crashes(text) -> None:
    for settings in ({"grammar": f"root ::= {text}"}, {"json_schema": text}):
        try:
            check(Sampling(**settings))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_ways_on_prefers_long_pieces_where_the_text_is_forced_and_short_ones_elsewhere() -> None:
    grammar = opened(json_schema=json.dumps(PERSON))
    assert [SPACE.piece(way) for way in grammar.ways_on()] == [b'{"']
    follow(grammar, b'{"name": "')
    sizes = [len(SPACE.piece(way)) for way in grammar.ways_on()]
    assert sizes == sorted(sizes)
    assert max(sizes) > min(sizes) == 1


def test_symbols_that_a_member_cannot_spell_are_never_allowed() -> None:
    grammar = Grammars(SPACE, frozenset(b"n")).open(Sampling(grammar='root ::= "na" | "yes"'))
    assert grammar is not None
    assert next_pieces(grammar) == {b"y", b"ye", b"yes"}


def test_what_the_grammar_forces_is_written_in_tokens_that_stand_for_text() -> None:
    model = FakeModel()
    # Nothing that the grammar wants is among the likely ones.
    space = PivotSpace([model], [identity(model)], n_candidates=5)
    engine = Engine(["m"], [model], space, FusionSettings(filter="off"))
    sampling = Sampling(max_tokens=12, grammar='root ::= "x[PAD]y"')
    draft = begin(engine, [model], b"the", sampling)
    (steps,) = run(engine, draft)
    assert text_of(steps) == b"x[PAD]y"
    written = draft.voices[0].context.generated
    assert model.vocabulary.speakable[list(written)].all()


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= start " x"\nstart ::= "a" b-c # start\nb-c ::= [start]', b"as x"),
        ('root ::= Foo foo\nFoo ::= "a"\nfoo ::= "b"', b"ab"),
        ('root ::= a_b a-b "a-b"\na_b ::= "1"\na-b ::= "2"', b"12a-b"),
    ],
)
def test_rules_may_have_any_name_of_gbnf(grammar: str, text: bytes) -> None:
    followed = opened(grammar=grammar)
    follow(followed, text)
    assert followed.complete


def test_a_dead_end_is_an_error() -> None:
    grammar = Grammars(SPACE, frozenset(b"n")).open(Sampling(grammar='root ::= "a" "n" "a"'))
    assert grammar is not None
    sampler = Sampler(Sampling(), SPACE, grammar)
    vote = normalised(np.array([97]), np.array([1.0]))
    assert sampler.choose(vote) == 97
    with pytest.raises(InputError, match="cannot write"):
        sampler.choose(vote)


@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0, 1]))
def test_random_models_write_valid_json_or_run_out_of_tokens(seed, temperature) -> None:
    words = [*WORDS_A, b'"', b'{"', b"0", b"5", b"[", b"]", b"}", b"name", b": ", b", "]
    models = [FakeModel(words), FakeModel(words[::-1])]
    engine = ensemble(models)
    sampling = Sampling(
        max_tokens=60, temperature=temperature, seed=seed, json_schema=json.dumps(PERSON)
    )
    (steps,) = run(engine, begin(engine, models, b"the", sampling))
    if steps[-1].finish_reason == "length":
        assert len(steps) == 60
        return
    document = json.loads(text_of(steps))
    assert list(document) == ["name", "age", "tags"]
    assert len(document["name"]) <= 8
    assert isinstance(document["age"], int)
    assert len(document["tags"]) <= 2
    assert set(document["tags"]) <= {"red", 'gr"\\een', "é😀"}


def test_the_answer_ends_with_its_last_symbol() -> None:
    models = [FakeModel()]
    engine = ensemble(models)
    sampling = Sampling(max_tokens=3, grammar='root ::= "abc"')
    (steps,) = run(engine, begin(engine, models, b"the", sampling))
    assert text_of(steps) == b"abc"
    assert [step.finish_reason for step in steps][-1] == "stop"
    assert steps[-1].piece != b""


def test_two_answers_side_by_side_follow_grammars_of_their_own() -> None:
    models = [FakeModel()]
    engine = ensemble(models)
    drafts = [
        begin(engine, models, b"the", Sampling(grammar=f'root ::= "{word}"'), slot)
        for slot, word in enumerate(("unbelievable", "Paris"))
    ]
    assert [text_of(steps) for steps in run(engine, *drafts)] == [b"unbelievable", b"Paris"]


def test_a_wrong_grammar_is_refused_before_anything_is_decoded() -> None:
    models = [FakeModel()]
    engine = ensemble(models)
    with pytest.raises(InputError, match="json_schema"):
        begin(engine, models, b"the", Sampling(json_schema="[1"))
    with pytest.raises(InputError, match="logit_bias"):
        begin(engine, models, b"the", Sampling(logit_bias={"no such symbol": 1}))
    assert models[0].decoded == 0
