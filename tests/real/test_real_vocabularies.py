"""Vocabularies, tokenisers, templates and mappings of the real demo models."""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import dataclass
from itertools import permutations

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from conftest import REAL_MODELS
from hypothesis import given
from hypothesis import strategies as st
from strategies import AWKWARD, awkward_bytes, awkward_text, cut

from eva_local.alignment.library import eva, eva_paper, share_of_twins
from eva_local.alignment.mapping import Mapping, surface, surface_refined, twins
from eva_local.cache.context import Context
from eva_local.llama.prompt import PromptWriter
from eva_local.llama.vocab import Kind, Vocabulary
from eva_local.types import Message

pytestmark = pytest.mark.real
names = pytest.mark.parametrize("name", REAL_MODELS)


def detokenised(model, token_id: int) -> bytes:
    """llama.cpp's own text of a row of tokens, by another of its functions."""
    buffer = ctypes.create_string_buffer(512)
    tokens = (ctypes.c_int32 * 1)(token_id)
    size = llama.llama_detokenize(model._file.vocab, tokens, 1, buffer, 512, False, False)
    return buffer.raw[:size]


@names
def test_every_piece_is_llama_cpps_own(vocabularies, name) -> None:
    model = vocabularies[name]
    vocab = model.vocabulary
    buffer = ctypes.create_string_buffer(1024)
    for token_id, piece in enumerate(vocab.pieces):
        size = llama.llama_token_to_piece(model._file.vocab, token_id, buffer, 1024, 0, False)
        assert buffer.raw[:size] == piece
        if vocab.kinds[token_id] == Kind.NORMAL:
            assert detokenised(model, token_id) == piece
    assert llama.llama_vocab_n_tokens(model._file.vocab) == len(vocab)


@names
def test_special_tokens_are_known_by_their_attributes(vocabularies, name) -> None:
    vocab = vocabularies[name].vocabulary
    spelled = {
        "smollm2-135m": ("<|im_end|>", "<|endoftext|>"),
        "qwen2.5-coder-0.5b": ("<|im_end|>", "<|endoftext|>", "</s>"),
        "gemma3-270m": ("<end_of_turn>", "<eos>"),
    }[name]
    eos = "<eos>" if name == "gemma3-270m" else "<|im_end|>"
    assert vocab.spelled(vocab.eos_id) == eos
    for spelling in spelled:
        assert vocab.markers[spelling] in vocab.end_ids
        assert not vocab.speakable[vocab.markers[spelling]]


@names
@given(data=awkward_bytes)
def test_any_bytes_come_back(vocabularies, name, data) -> None:
    tokenizer = vocabularies[name].tokenizer
    data = bytes(byte for byte in data if byte not in tokenizer.missing_bytes)
    assert vocabularies[name].vocabulary.join(tokenizer.encode(data)) == data


@names
@given(pieces=cut())
def test_law_1_tokens_join_to_the_text_after_every_commit(vocabularies, name, pieces) -> None:
    model = vocabularies[name]
    missing = model.tokenizer.missing_bytes
    context = Context(model)
    context.start([1, 2])
    text = b""
    for piece in pieces:
        spellable = bytes(byte for byte in piece if byte not in missing)
        context.append(spellable)
        text += spellable
        assert model.vocabulary.join(context.tokens[context._n_prompt :]) == text


@names
def test_law_1_a_text_in_many_scripts_byte_by_byte(vocabularies, name) -> None:
    model = vocabularies[name]
    whole = "".join(AWKWARD * 2).encode()
    whole = bytes(byte for byte in whole if byte not in model.tokenizer.missing_bytes)
    context = Context(model)
    context.start([1])
    for at in range(len(whole)):
        context.append(whole[at : at + 1])
        assert context.text == whole[: at + 1]
        assert model.vocabulary.join(context.tokens[context._n_prompt :]) == whole[: at + 1]


@names
def test_a_text_that_grows_word_by_word_ends_as_it_would_be_read_at_once(
    vocabularies, name
) -> None:
    model = vocabularies[name]
    text = "The unbelievable seafloor was first described in 1872, near Tromsø (69.6°N).\n"
    context = Context(model)
    context.start([1])
    for piece in model.tokenizer.encode(text.encode()):
        context.append(model.vocabulary.pieces[piece])
    assert list(context.tokens[context._n_prompt :]) == model.tokenizer.encode(text.encode())


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
@given(content=awkward_text)
def test_law_8_a_message_never_becomes_a_control_token(vocabularies, name, content) -> None:
    model = vocabularies[name]
    ids = PromptWriter(model).read([Message("system", "s"), Message("user", content)])[0]
    control = [i for i in ids if not model.vocabulary.speakable[i]]
    plain = PromptWriter(model).read([Message("system", "s"), Message("user", "a")])[0]
    assert control == [i for i in plain if not model.vocabulary.speakable[i]]


@names
def test_law_8_every_control_token_typed_by_a_person_is_harmless(vocabularies, name) -> None:
    model = vocabularies[name]
    for spelling in model.vocabulary.markers:
        ids = model.tokenizer.encode(f"a {spelling} b".encode())
        assert all(model.vocabulary.speakable[i] for i in ids), spelling
    assert len(model.tokenizer.encode(b"<|im_end|>")) >= 5


@names
@given(text=st.sampled_from(["Hello, world!", "Äpfel & Öl\n\n  x = [1, 2]", "你好，世界 😀", "a"]))
def test_a_prompt_reads_as_llama_cpp_reads_it(vocabularies, name, text) -> None:
    model = vocabularies[name]
    data = text.encode()
    tokens = (ctypes.c_int32 * 200)()
    count = llama.llama_tokenize(model._file.vocab, data, len(data), tokens, 200, True, False)
    assert PromptWriter(model).read(text)[0] == tokens[:count]


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_a_conversation_reads_as_llama_cpp_reads_it(vocabularies, name) -> None:
    model = vocabularies[name]
    messages = [Message("system", "Be brief."), Message("user", "Who?\nYou?")]
    written = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    data = (written + "<|im_start|>assistant\n").encode()
    tokens = (ctypes.c_int32 * 200)()
    count = llama.llama_tokenize(model._file.vocab, data, len(data), tokens, 200, True, True)
    assert PromptWriter(model).read(messages)[0] == tokens[:count]


pairs = pytest.mark.parametrize(("member", "pivot"), list(permutations(REAL_MODELS, 2)))


def check_law_3(mapping: Mapping, one: Vocabulary, other: Vocabulary) -> None:
    """END goes to END alone; no other mass from or to what stands for no text."""
    mapping.check()
    rows = np.repeat(np.arange(len(one)), np.diff(mapping.indptr))
    ends = np.isin(rows, sorted(one.end_ids))
    assert np.array_equal(mapping.indices == len(other), ends)
    assert one.speakable[rows[~ends]].all()
    assert other.speakable[mapping.indices[~ends]].all()


def check_twins(mapping: Mapping, one: Vocabulary, other: Vocabulary) -> None:
    twin = twins(one, other)
    paired = np.flatnonzero(twin >= 0)
    assert np.array_equal(mapping.indices[mapping.indptr[paired]], twin[paired])
    assert (np.diff(mapping.indptr)[paired] == 1).all()


@pairs
@pytest.mark.parametrize("learn", [surface, surface_refined])
def test_law_3_on_every_pair(vocabularies, learn, member, pivot) -> None:
    one, other = vocabularies[member], vocabularies[pivot]
    mapping = learn(one.tokenizer, other.tokenizer)
    check_law_3(mapping, one.vocabulary, other.vocabulary)
    check_twins(mapping, one.vocabulary, other.vocabulary)


@dataclass(frozen=True)
class RandomLayer:
    """An output layer of random numbers, whose vocabulary file writes spaces as `space`."""

    vocabulary: Vocabulary
    space: bytes
    width: int

    @property
    def spellings(self) -> tuple[bytes, ...]:
        names = {place: name.encode() for name, place in self.vocabulary.markers.items()}
        written = (piece.replace(b" ", self.space) for piece in self.vocabulary.pieces)
        return tuple(names.get(place, piece) for place, piece in enumerate(written))

    def embeddings(self, token_ids: np.ndarray) -> np.ndarray:
        # Tokens of equal bytes are near each other, in any vocabulary.
        rows = np.empty((len(token_ids), self.width), dtype=np.float32)
        for row, token_id in enumerate(token_ids.tolist()):
            seed = zlib.crc32(self.vocabulary.pieces[token_id])
            rows[row] = np.random.default_rng(seed).normal(size=20)[: self.width]
        return rows


def part_of(whole: Vocabulary) -> Vocabulary:
    """Every special token, and one in twenty of the others: the same in all vocabularies."""
    kept = [
        place
        for place, piece in enumerate(whole.pieces)
        if whole.kinds[place] not in (Kind.NORMAL, Kind.UNUSED) or zlib.crc32(piece) % 20 == 0
    ]
    place_of = {token_id: place for place, token_id in enumerate(kept)}
    return Vocabulary(
        [whole.pieces[i] for i in kept],
        whole.kinds[kept],
        [place_of[i] for i in whole.end_ids],
        markers={name: place_of[i] for name, i in whole.markers.items()},
    )


@pairs
def test_law_3_of_the_methods_with_embeddings_on_a_part_of_every_pair(
    vocabularies, member, pivot
) -> None:
    spaces = {"gemma3-270m": ("\N{LOWER ONE EIGHTH BLOCK}", 16)}
    sides = []
    for name in (member, pivot):
        space, width = spaces.get(name, ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", 12))
        part = part_of(vocabularies[name].vocabulary)
        sides.append(RandomLayer(part, space.encode(), width))
    one, other = (side.vocabulary for side in sides)
    mended, published = eva(*sides), eva_paper(*sides)
    for mapping in (mended, published):
        check_law_3(mapping, one, other)
        assert np.mean(np.diff(mapping.indptr) > 0) > 0.2
    check_twins(mended, one, other)


def test_shares_of_common_pieces_are_those_that_were_measured_before(vocabularies) -> None:
    smol, qwen, gemma = (vocabularies[name] for name in REAL_MODELS)
    found = [share_of_twins(smol, gemma), share_of_twins(smol, qwen), share_of_twins(qwen, gemma)]
    assert found == pytest.approx([0.94, 0.80, 0.63], abs=0.01)
