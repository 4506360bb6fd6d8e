import pytest
from fakes import WORDS_A, FakeModel, longest_match, vocabulary
from hypothesis import given
from strategies import awkward_bytes

from eva_local.errors import PromptError
from eva_local.llama.tokenizer import Tokenizer

VOCAB = vocabulary(WORDS_A)
RAW = longest_match(VOCAB)


def adds_space(text: bytes) -> list[int]:
    """A SentencePiece model with a dummy prefix."""
    return RAW(b" " + text)


def normalises(text: bytes) -> list[int]:
    """A tokeniser that lowers letters and loses spaces at the end."""
    return RAW(text.lower().rstrip())


def parses_control(text: bytes) -> list[int]:
    """A tokeniser that finds a control token in plain text."""
    head, mark, tail = text.partition(b"</s>")
    return RAW(head) + ([2] if mark else []) + (parses_control(tail) if tail else [])


@pytest.mark.parametrize("raw", [RAW, adds_space, normalises, parses_control])
@given(data=awkward_bytes)
def test_pieces_join_to_the_input_whatever_the_tokeniser_does(raw, data) -> None:
    tokenizer = Tokenizer(VOCAB, raw)
    ids = tokenizer.encode(data)
    assert VOCAB.join(ids) == data
    assert all(VOCAB.speakable[i] for i in ids)


def test_a_faithful_tokeniser_is_believed() -> None:
    assert Tokenizer(VOCAB, RAW).encode(b" the unbelie") == RAW(b" the unbelie")


def test_the_space_that_a_tokeniser_adds_is_taken_off_again() -> None:
    assert Tokenizer(VOCAB, adds_space).encode(b" the a") == RAW(b" the a")


def test_a_prompt_keeps_the_space_that_a_tokeniser_adds() -> None:
    def marks(text: bytes) -> list[int]:
        """SentencePiece, which writes U+2581 for a space."""
        return RAW(b" " + text.replace("\u2581".encode(), b" "))

    assert Tokenizer(VOCAB, adds_space).read(b"the a") == RAW(b" the a")
    assert Tokenizer(VOCAB, marks).read("a\u2581the".encode()) == RAW(b" a the")
    assert Tokenizer(VOCAB, RAW).read(b"the a") == RAW(b"the a")
    assert Tokenizer(VOCAB, RAW).read("\u2581".encode()) == RAW("\u2581".encode())


@pytest.mark.parametrize("raw", [normalises, parses_control])
def test_a_prompt_is_read_to_the_byte_whatever_else_a_tokeniser_does(raw) -> None:
    assert VOCAB.join(Tokenizer(VOCAB, raw).read(b"The </s> ")) == b"The </s> "


def test_half_characters_are_spelled_between_whole_ones() -> None:
    pieces = [VOCAB.pieces[i] for i in Tokenizer(VOCAB, RAW).encode(b"the\xe4\xb8 the")]
    assert pieces == [b"the", b"\xe4", b"\xb8", b" the"]


def test_a_byte_without_a_token_is_an_error_that_names_it() -> None:
    vocab = vocabulary(WORDS_A, missing=[0x04])
    tokenizer = Tokenizer(vocab, longest_match(vocab))
    assert tokenizer.missing_bytes == {0x04}
    with pytest.raises(PromptError, match="0x04"):
        tokenizer.encode(b"a\x04b")


def test_long_text_that_is_no_utf8_is_quick() -> None:
    data = b"\xff\xfe" * 50_000
    assert len(Tokenizer(VOCAB, RAW).encode(data)) == len(data)


def test_tokens_stand_beside_each_other_as_the_tokeniser_puts_them() -> None:
    model = FakeModel(WORDS_A)
    one = model.vocabulary.ids
    may_follow = model.tokenizer.may_follow
    assert may_follow(one[b" unb"], one[b"elie"])
    # It would write " unb", "th" and the whole character.
    assert not may_follow(one[b" un"], one[b"b"])
    assert not may_follow(one[b"t"], one[b"h"])
    # What comes after white space, or completes a character, may tell otherwise.
    assert may_follow(one[b" "], one[b" "])
    assert not may_follow(one[b"\xf0\x9f"], one[b"\x98\x80"])
    assert may_follow(one[b"a"], one[b"\xf0\x9f"])
