"""Grammars on a small fake vocabulary: what is allowed after what, and what cannot be used."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llguidance
import numpy as np
import pytest
from engines import begin, run, text_of
from engines import pivot_engine as ensemble
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from shared import open_shared, submit

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import surface, surface_refined
from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine
from eva_local.engine.grammar import Grammar, Grammars, check
from eva_local.errors import EvaError, InputError, ModelError
from eva_local.spaces.bytes.space import ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling, Step

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
    return {SPACE.piece(symbol) for symbol in np.flatnonzero(grammar.allowed)}


def follow(grammar: Grammar, text: bytes) -> Grammar:
    for byte in text:
        assert grammar.allowed[byte], f"{bytes([byte])!r} in {text!r}"
        grammar.accept([byte])
    return grammar


def obeys(gbnf: str, text: str) -> bool:
    """Whether a whole text is in the language of a grammar."""
    grammar = opened(grammar=gbnf)
    for byte in text.encode():
        if not grammar.allowed[byte]:
            return False
        grammar.accept([byte])
    return bool(grammar.allowed[SPACE.end])


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
    grammar.accept([])


def test_whitespace_and_control_characters_have_no_place_in_json() -> None:
    assert next_pieces(opened(json_schema='{"type": "object"}')) == {b"{", b'{"'}
    grammar = follow(opened(json_schema='{"type": "string"}'), b'"')
    assert not grammar.allowed[:32].any()


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
        {"grammar": r'root ::= "\q"'},
        {"grammar": r'root ::= "\ud800"'},
        {"grammar": 'root ::= "a")'},
        {"grammar": "root ::= *"},
        {"grammar": 'start: "a"'},
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


def schema(**parts: object) -> dict[str, str]:
    return {"json_schema": json.dumps(parts)}


def required(**parts: object) -> dict[str, str]:
    return schema(type="object", required=["a"], **parts)


UNICODE = "root ::= [^\\x00-\\U0010FFFF]"


@pytest.mark.parametrize(
    ("empty", "named"),
    [
        ({"grammar": 'root ::= root "a"'}, "cannot write"),
        ({"grammar": "root ::= root"}, "cannot write"),
        ({"grammar": UNICODE}, "cannot write"),
        (schema(**{"$ref": "#"}), "cannot write"),
        (schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "cannot write"),
        (schema(allOf=[{"$ref": "#"}, {"type": "object"}]), "circular"),
        (schema(type="array", items={"type": "null"}, minItems=3, maxItems=2), "minItems"),
    ],
)
def test_what_no_text_begins_is_refused_at_the_check_in_one_line(empty, named) -> None:
    for use in (check, GRAMMARS.open):
        with pytest.raises(InputError, match=f"^{next(iter(empty))}: .*{named}") as error:
            use(Sampling(**empty))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"grammar": 'root ::= root "a" | "b"'}, b"baa"),
        ({"grammar": 'root ::= "a" root?'}, b"aaa"),
        ({"grammar": 'root ::= (root "a")*'}, b"aa"),
        ({"grammar": 'root ::= ("(" root ")" | "x"){1,2}'}, b"(xx)x"),
        (
            schema(
                type="object",
                properties={"v": {"type": "null"}, "l": {"$ref": "#"}, "r": {"$ref": "#"}},
                required=["v"],
                additionalProperties=False,
            ),
            b'{"v": null, "l": {"v": null, "r": {"v": null}}}',
        ),
        (schema(type="array", items={"$ref": "#"}), b"[[], [[]]]"),
        (
            required(
                patternProperties={"^[a-z]$": {"type": "null"}}, additionalProperties={"$ref": "#"}
            ),
            b'{"a": null, "bc": {"a": null}}',
        ),
        (
            schema(
                type="object",
                patternProperties={"^a+$": {"$ref": "s"}},
                additionalProperties=False,
                **{"$id": "http://e.x/s"},
            ),
            b'{"aa": {"a": {}}}',
        ),
        (
            # A pattern that a matcher which tries again would never be done with.
            schema(
                type="object",
                patternProperties={"^(a+)+$": {"$ref": "#"}},
                additionalProperties={"type": "null"},
                required=["a" * 40 + "b"],
            ),
            b'{"%b": null}' % (b"a" * 40 + b"b"),
        ),
        (
            schema(
                type="object",
                properties={"n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                required=["n"],
                additionalProperties=False,
            ),
            b'{"n": {"n": null}}',
        ),
        (
            schema(
                **{"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"oneOf": [{"$ref": "#/$defs/c"}]}}}
                | {"$defs": {"a/b": {"anyOf": [{"$ref": "#/$defs/c"}]}, "c": {"type": "null"}}}
            ),
            b"null",
        ),
    ],
)
def test_what_leads_back_to_itself_and_ends_is_followed(settings, text: bytes) -> None:
    check(Sampling(**settings))
    grammar = follow(opened(**settings), text)
    assert grammar.allowed[SPACE.end]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"grammar": 'root ::= "a"{1000000}'}, b"a"),
        (schema(type="array", items={"type": "null"}, minItems=10**9), b"[null, null"),
        (schema(type="string", minLength=10**6), b'"aaaa'),
        # Nobody looks which pattern a name has: such an answer ends with its last token.
        (required(patternProperties={"^a$": {"$ref": "#"}}), b'{"a": {"a": {'),
    ],
)
def test_what_is_only_long_is_begun(settings, text: bytes) -> None:
    check(Sampling(**settings))
    assert not follow(opened(**settings), text).allowed[SPACE.end]


def nested(depth: int) -> str:
    return '{"type": "array", "items": ' * depth + '{"type": "null"}' + "}" * depth


def test_what_is_nested_deeply_is_followed_or_refused_in_one_line() -> None:
    assert follow(opened(json_schema=nested(60)), b"[[[").allowed[ord("]")]
    with pytest.raises(InputError, match=r"^json_schema: recursion limit") as error:
        check(Sampling(json_schema=nested(5000)))
    assert "\n" not in str(error.value)


def test_what_becomes_too_complex_is_told_in_one_line() -> None:
    ways = " | ".join(f'"{number}"' for number in range(2500))
    grammar = opened(grammar=f'root ::= "x" ways\nways ::= {ways}')
    with pytest.raises(InputError, match=r"^the grammar cannot be followed any further: ") as error:
        grammar.accept([ord("x")])
    assert "\n" not in str(error.value)
    assert not re.search("state>|verbose", str(error.value))


@given(text=st.text('root:=|"[]()*+?{}\\-^ab1, \n.') | st.text())
def test_no_grammar_whatever_crashes(text) -> None:
    for settings in ({"grammar": f"root ::= {text}"}, {"json_schema": text}):
        try:
            check(Sampling(**settings))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


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
    sequence = begin(engine, [model], b"the", sampling)
    (steps,) = run(engine, sequence)
    assert text_of(steps) == b"x[PAD]y"
    written = sequence.states[0].cache.tokens[sequence.states[0].cache._n_prompt :]
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


@pytest.mark.parametrize(
    ("members", "inside", "outside"),
    [
        ("[+--]", "+,-", "*."),
        ("[a-c&&b]", "abc&", "d"),
        ("[^&&]", "a~-", "&"),
        ("[a~~b]", "ab~", "c"),
        ("[!#$%&'*+--/9]", "!+,-/9", "(:"),
        ("[&&&]", "&", "a"),
        (r"[a\x2dz-]", "az-", "bm"),
    ],
)
def test_a_class_of_characters_knows_no_operators(members, inside, outside) -> None:
    for character in inside:
        assert obeys(f"root ::= {members}", character), character
    for character in outside:
        assert not obeys(f"root ::= {members}", character), character


@pytest.mark.parametrize("n", [900, 3000])
@pytest.mark.parametrize(
    "of",
    [
        lambda n: {
            "grammar": "root ::= r0\n"
            + "".join(f'r{i} ::= r{i + 1} "a"?\n' for i in range(n))
            + f'r{n} ::= "x"'
        },
        lambda n: {
            "json_schema": json.dumps(
                {
                    "$ref": "#/$defs/a0",
                    "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)}
                    | {f"a{n}": {"type": "integer"}},
                }
            )
        },
        lambda n: {
            "json_schema": json.dumps(
                {
                    "$ref": "#/$defs/a0",
                    "$defs": {
                        f"a{i}": {
                            "type": "object",
                            "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}},
                        }
                        for i in range(n // 3)
                    }
                    | {f"a{n // 3}": {"type": "integer"}},
                }
            )
        },
    ],
    ids=["rules", "references", "objects"],
)
def test_what_goes_far_down_does_not_end_the_process(of, n) -> None:
    """In a thread with its smaller stack, where a server compiles, and in one that steps."""
    with ThreadPoolExecutor(1) as threads:
        grammar = threads.submit(lambda: opened(**of(n))).result()
        assert threads.submit(grammar.fork).result().allowed.any()


def test_what_is_too_long_is_refused() -> None:
    for key in ("grammar", "json_schema"):
        with pytest.raises(InputError, match=f"^{key}: more than 262144 characters"):
            check(Sampling(**{key: "x" * 300_000}))


def test_a_dead_end_is_an_error() -> None:
    grammars = Grammars(SPACE, frozenset(b"n"))
    grammar = grammars.open(Sampling(grammar='root ::= "a" "n" "a"'))
    assert grammar is not None
    with pytest.raises(InputError, match="cannot write"):
        grammar.accept([97])
    with pytest.raises(InputError, match=r"^grammar: .* cannot write"):
        grammars.open(Sampling(grammar='root ::= "n"'))


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
    sequences = [
        begin(engine, models, b"the", Sampling(grammar=f'root ::= "{word}"'), slot)
        for slot, word in enumerate(("unbelievable", "Paris"))
    ]
    assert [text_of(steps) for steps in run(engine, *sequences)] == [b"unbelievable", b"Paris"]


def test_a_wrong_grammar_is_refused_before_anything_is_decoded() -> None:
    models = [FakeModel()]
    engine = ensemble(models)
    with pytest.raises(InputError, match="json_schema"):
        begin(engine, models, b"the", Sampling(json_schema="[1"))
    with pytest.raises(InputError, match="logit_bias"):
        begin(engine, models, b"the", Sampling(logit_bias={"no such symbol": 1}))
    assert models[0].decoded == 0


# Grammars of all that GBNF has, over what the fake vocabulary spells in several ways.
terms = st.recursive(
    st.sampled_from(
        [*('"the"', '" the"', "[a-z]", '"é"', ".", "[^a]", '"中文"', '"[PAD]"'), '""', '"😀"']
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda ways: f"({' | '.join(ways)})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{1,3}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)
schemas = st.recursive(
    st.sampled_from([{"type": "string", "maxLength": 3}, {"type": "integer"}, {"enum": ["é", 1]}]),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner),
        st.builds(
            lambda first, other: {
                "type": "object",
                "properties": {"the": first, "un": other},
                "required": ["the"],
                "additionalProperties": False,
            },
            *(inner, inner),
        ),
        st.builds(lambda first, other: {"anyOf": [first, other]}, inner, inner),
    ),
    max_leaves=4,
)
WIDE = FakeModel([*WORDS_A, b'{"', b'": ', b'": "', b'"}', b'", "', b"12", b"[1", b", "])
FORMS = Grammars(PivotSpace([WIDE], [identity(WIDE)]), frozenset(b"z"))


@given(
    settings=terms.map(lambda term: {"grammar": f"root ::= {term}"})
    | schemas.map(lambda form: {"json_schema": json.dumps(form)}),
    data=st.data(),
)
def test_a_mask_marks_each_symbol_that_may_come_next_and_no_other(settings, data) -> None:
    try:
        grammar = FORMS.open(Sampling(**settings))
    except InputError:
        # It may ask for text that the vocabulary cannot write.
        return
    assert grammar is not None
    for _ in range(6):
        matcher = grammar._matcher
        end = len(grammar.allowed) - 1
        expected = [matcher.validate_tokens([symbol]) == 1 for symbol in range(end)]
        assert grammar.allowed.tolist() == [*expected, matcher.is_accepting()]
        ways = np.flatnonzero(grammar.allowed[:end])
        if not len(ways):
            assert grammar.complete
            return
        symbol = data.draw(st.sampled_from(ways.tolist()))
        grammar.accept([] if symbol == SPACE.end else [symbol])


def test_a_fork_goes_on_by_itself() -> None:
    grammar = follow(opened(grammar='root ::= "yes" | "yak"'), b"y")
    other = grammar.fork()
    follow(grammar, b"es")
    assert grammar.complete
    assert next_pieces(other) == {b"e", b"a"}


def steady(words: list[bytes], odds: dict[bytes, float], n_words: int = 30) -> FakeModel:
    """A model that always says: one of its first words, or very unlikely these pieces."""
    model = FakeModel(words)
    logits = np.full(len(model.vocabulary), -60, dtype=np.float32)
    for rank, word in enumerate(words[:n_words]):
        logits[model.vocabulary.ids.get(word)] = 10 - rank / 10
    for piece, value in odds.items():
        logits[model.vocabulary.ids.get(piece)] = value
    return FakeModel(words, logits=lambda _: logits)


@pytest.mark.parametrize("fusion", [{}, {"gate": 0.9}, {"filter": "top-n"}, {"candidates": 0}])
@pytest.mark.parametrize("build", [surface, surface_refined])
def test_under_a_grammar_the_likeliest_of_what_it_allows_is_chosen(fusion, build) -> None:
    # The second member thinks digits a thousand times likelier, and that is what they weigh.
    models = [
        steady(WORDS_A, {b"3": -20, b"5": -21, b"8": -22, b"the": 30}),
        steady(WORDS_B, {b"8": -12, b"5": -13, b"3": -14}),
    ]
    settings = FusionSettings(**{"weights": "equal", "candidates": 8} | fusion)
    engine = ensemble(models, settings, build=build)
    sequence = begin(engine, models, b"the", Sampling(grammar="root ::= [0-9] [0-9]"))
    (steps,) = run(engine, sequence)
    assert text_of(steps) == b"88"
    sequence = begin(engine, models, b"the", Sampling(grammar="root ::= [3-5] [3-5]"))
    (steps,) = run(engine, sequence)
    assert text_of(steps) == b"55"


def test_in_bytes_the_likeliest_of_what_a_grammar_allows_is_chosen() -> None:
    models = [steady(WORDS_A, {b"3": -1, b"8": -2}), steady(WORDS_B, {b"8": 4, b"3": 3})]
    engine = Engine(["a", "b"], models, ByteSpace(models), FusionSettings(weights="equal"))
    sequence = begin(engine, models, b"the", Sampling(grammar="root ::= [0-9]"))
    (steps,) = run(engine, sequence)
    assert text_of(steps) == b"8"


@given(seed=st.integers(0, 10**6))
def test_a_digit_is_drawn_by_its_share_of_the_full_softmax(seed: int) -> None:
    model = FakeModel()
    digits = [model.vocabulary.ids.get(bytes([byte])) for byte in b"0123456789"]
    sunk = np.zeros(len(model.vocabulary), dtype=np.float32)
    sunk[digits] = -40
    model._logits = lambda tokens: model._hashed(tokens) + sunk
    engine = ensemble([model], FusionSettings(candidates=5))
    sequence = begin(engine, [model], b"%d" % seed, Sampling(grammar="root ::= [0-9]"))
    logits = model._hashed([1, *model.tokenizer.encode(b"%d" % seed)])
    (steps,) = run(engine, sequence)
    assert text_of(steps)[0] - ord("0") == int(np.argmax(logits[digits]))


class Spied:
    """llguidance's matcher; what is done to any is counted."""

    real = llguidance.LLMatcher
    grammar_from_lark = staticmethod(real.grammar_from_lark)
    grammar_from_json_schema = staticmethod(real.grammar_from_json_schema)

    def __init__(self, calls: Counter[str], matcher: llguidance.LLMatcher) -> None:
        self.calls, self.matcher = calls, matcher

    def deep_copy(self) -> Spied:
        return Spied(self.calls, self.matcher.deep_copy())

    def __getattr__(self, name: str):
        self.calls[name] += 1
        return getattr(self.matcher, name)


@pytest.fixture
def calls(monkeypatch):
    """What is done to llguidance's matchers in the meantime, counted."""
    counted: Counter[str] = Counter()

    class Counting(Spied):
        def __init__(self, *arguments, **options) -> None:
            counted["compiled"] += 1
            super().__init__(counted, Spied.real(*arguments, **options))

    monkeypatch.setattr(llguidance, "LLMatcher", Counting)
    return counted


def test_a_schema_over_whole_votes_asks_nothing_of_single_symbols(calls) -> None:
    models = [FakeModel()]
    engine = ensemble(models, FusionSettings(candidates=0))
    sampling = Sampling(max_tokens=20, json_schema='{"type": "array", "items": {"enum": [1, 2]}}')
    (steps,) = run(engine, begin(engine, models, b"the", sampling))
    assert calls["validate_tokens"] == 0
    # One mask at the beginning, and one after each symbol.
    assert calls["compute_bitmask"] <= len(steps) + 1


def test_a_grammar_is_compiled_once_by_who_asks_and_not_in_a_step(calls) -> None:
    sampling = Sampling(max_tokens=3, grammar="root ::= [a-z]+")
    told: list[Step | EvaError] = []
    with open_shared() as asked:
        requests = [submit(asked, "the", sampling, told.append) for _ in range(3)]
        requests.append(submit(asked, "the", sampling, told.append, alone="b"))
        # Once for the ensemble, and once for the tokens of the member alone.
        assert calls["compiled"] == 2
        while not all(request.done for request in requests):
            asked.scheduler.step()
        assert calls["compiled"] == 2
        for wrong in ({"grammar": "root ::= ("}, {"logit_bias": {"no such piece": 1}}):
            with pytest.raises(InputError, match=next(iter(wrong))):
                submit(asked, "the", Sampling(**wrong), told.append)
    assert len([step for step in told if step.finish_reason]) == 4


def test_pieces_are_looked_through_once_for_biases_and_not_in_a_step(monkeypatch) -> None:
    built: list[PivotSpace] = []
    build = PivotSpace._by_piece.func

    def counted(space: PivotSpace):
        built.append(space)
        return build(space)

    monkeypatch.setattr(PivotSpace._by_piece, "func", counted)
    sampling = Sampling(max_tokens=3, logit_bias={" the": 2.0})
    with open_shared() as asked:
        requests = [submit(asked, "the", sampling, lambda _: None) for _ in range(3)]
        assert len(built) == 1
        while not all(request.done for request in requests):
            asked.scheduler.step()
        assert len(built) == 1


TAGGED = {"$defs": {"tag": {"enum": ["red"]}}, "properties": {"tag": {"$ref": "#/$defs/tag"}}}
TAGGED |= {"type": "object", "required": ["tag"], "additionalProperties": False}
FUNCTIONS = {"add": {"type": "object"}, 't"ag\u00e9': TAGGED}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in FUNCTIONS.items()
]
ADDED = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def calling(text: str = "", **settings: Any) -> Grammar:
    grammar = GRAMMARS.open(Sampling(tools=TOOLS, **settings))
    assert grammar is not None
    return follow(grammar, text.encode())


@pytest.mark.parametrize("before", ["", "Let me see.\n", "a < b <tool_ <tool_call "])
def test_an_answer_is_free_up_to_the_mark_of_a_call(before: str) -> None:
    assert calling(before).allowed[SPACE.end]
    assert next_pieces(calling(f"{before}<tool_call>")) == {b"\n"}
    begun = f'{before}<tool_call>\n{{"name": "'
    assert next_pieces(calling(begun)) == {b"a", b"t"}
    # The schema of the one that is called; its references are its own.
    tagged = begun + json.dumps(list(FUNCTIONS)[1])[1:] + ', "arguments": {"tag": '
    assert next_pieces(calling(tagged)) == {b'"'}
    assert next_pieces(calling(f'{tagged}"red"')) == {b"}"}
    # Behind a call, there is another or the end.
    assert next_pieces(calling(before + ADDED)) == {b"", b"\n"}
    assert next_pieces(calling(f"{before}{ADDED}\n")) == {b"<"}
    assert next_pieces(calling(f"{before}{ADDED}\n{ADDED}")) == {b"", b"\n"}
    assert calling(before + ADDED, parallel_tool_calls=False).complete


def test_a_call_that_is_due_is_all_of_the_answer() -> None:
    due = {"tool_choice": "required"}
    assert next_pieces(calling(**due)) == {b"{", b'{"'}
    assert calling('{"name": "add", "arguments": {}}', **due).complete
    # Whatever else it would obey.
    for rule in ({"json_schema": '{"enum": ["yes"]}'}, {"grammar": 'root ::= "yes"'}):
        assert next_pieces(calling(**due, **rule)) == {b"{", b'{"'}


def test_a_schema_binds_an_answer_that_calls_nothing() -> None:
    schema = '{"enum": ["yes"]}'
    assert next_pieces(calling(json_schema=schema)) == {b'"', b"<"}
    assert calling('"yes"', json_schema=schema).complete
    assert next_pieces(calling(ADDED, json_schema=schema)) == {b"", b"\n"}


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/no"}, {"required": 1}])
def test_schemas_of_arguments_are_looked_at(schema: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    with pytest.raises(InputError, match="tools: "):
        GRAMMARS.open(Sampling(tools=[tool]))


def test_a_thread_that_cannot_start_is_told_and_leaves_no_large_stacks(monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(threading, "stack_size", lambda size: sizes.append(size) or 0)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ModelError, match="not enough memory"):
        check(Sampling(grammar='root ::= "never asked before"'))
    assert sizes[-1] == 0
