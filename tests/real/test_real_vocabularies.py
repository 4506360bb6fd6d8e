"""Vocabularies, tokenisers, templates and mappings of the real demo models."""

from __future__ import annotations

import ctypes
from itertools import permutations

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest
from conftest import REAL_MODELS
from hypothesis import given
from hypothesis import strategies as st
from strategies import AWKWARD, awkward_bytes, awkward_text, cut

from eva_local.alignment.library import share_of_twins
from eva_local.alignment.mapping import twins
from eva_local.alignment.surface import surface_refined
from eva_local.context import Context
from eva_local.prompt import PromptWriter
from eva_local.records import Message
from eva_local.vocab import Kind

pytestmark = pytest.mark.real
names = pytest.mark.parametrize("name", REAL_MODELS)


def detokenised(model, token_id: int) -> bytes:
    """llama.cpp's own text of a row of tokens, by another of its functions."""
    buffer = ctypes.create_string_buffer(512)
    tokens = (ctypes.c_int32 * 1)(token_id)
    size = llama.llama_detokenize(model._vocab, tokens, 1, buffer, 512, False, False)
    return buffer.raw[:size]


@names
def test_every_piece_is_llama_cpps_own(vocabularies, name) -> None:
    model = vocabularies[name]
    vocab = model.vocabulary
    buffer = ctypes.create_string_buffer(1024)
    for token_id, piece in enumerate(vocab.pieces):
        size = llama.llama_token_to_piece(model._vocab, token_id, buffer, 1024, 0, False)
        assert buffer.raw[:size] == piece
        if vocab.kinds[token_id] == Kind.NORMAL:
            assert detokenised(model, token_id) == piece
    assert llama.llama_vocab_n_tokens(model._vocab) == len(vocab)


@names
def test_special_tokens_are_known_by_their_attributes(vocabularies, name) -> None:
    vocab = vocabularies[name].vocabulary
    spelled = {
        "smollm2-135m": ("<|im_end|>", "<|endoftext|>"),
        "qwen2.5-coder-0.5b": ("<|im_end|>", "<|endoftext|>", "</s>"),
        "gemma3-270m": ("<end_of_turn>", "<eos>"),
    }[name]
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
        assert model.vocabulary.join(context.generated) == text


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
        assert model.vocabulary.join(context.generated) == whole[: at + 1]


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
    assert list(context.generated) == model.tokenizer.encode(text.encode())


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
@given(content=awkward_text)
def test_law_8_a_message_never_becomes_a_control_token(vocabularies, name, content) -> None:
    model = vocabularies[name]
    ids = PromptWriter(model).tokens([Message("system", "s"), Message("user", content)])
    control = [i for i in ids if not model.vocabulary.speakable[i]]
    plain = PromptWriter(model).tokens([Message("system", "s"), Message("user", "a")])
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
    count = llama.llama_tokenize(model._vocab, data, len(data), tokens, 200, True, False)
    assert PromptWriter(model).tokens(text) == tokens[:count]


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_a_conversation_reads_as_llama_cpp_reads_it(vocabularies, name) -> None:
    model = vocabularies[name]
    messages = [Message("system", "Be brief."), Message("user", "Who?\nYou?")]
    written = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    data = (written + "<|im_start|>assistant\n").encode()
    tokens = (ctypes.c_int32 * 200)()
    count = llama.llama_tokenize(model._vocab, data, len(data), tokens, 200, True, True)
    assert PromptWriter(model).tokens(messages) == tokens[:count]


@pytest.mark.parametrize(("member", "pivot"), list(permutations(REAL_MODELS, 2)))
def test_law_3_on_every_pair(vocabularies, member, pivot) -> None:
    one, other = vocabularies[member], vocabularies[pivot]
    mapping = surface_refined(one.tokenizer, other.tokenizer)
    mapping.check()
    rows = np.repeat(np.arange(len(one.vocabulary)), np.diff(mapping.indptr))
    ends = np.isin(rows, sorted(one.vocabulary.end_ids))
    assert np.array_equal(mapping.indices == len(other.vocabulary), ends)
    assert one.vocabulary.speakable[rows[~ends]].all()
    assert other.vocabulary.speakable[mapping.indices[~ends]].all()
    twin = twins(one.vocabulary, other.vocabulary)
    paired = np.flatnonzero(twin >= 0)
    assert np.array_equal(mapping.indices[mapping.indptr[paired]], twin[paired])
    assert (np.diff(mapping.indptr)[paired] == 1).all()


def test_shares_of_common_pieces_are_those_that_were_measured_before(vocabularies) -> None:
    smol, qwen, gemma = (vocabularies[name] for name in REAL_MODELS)
    found = [share_of_twins(smol, gemma), share_of_twins(smol, qwen), share_of_twins(qwen, gemma)]
    assert found == pytest.approx([0.94, 0.80, 0.63], abs=0.01)
