from pathlib import Path

import pytest
from fakes import WORDS_A, WORDS_B, vocabulary
from gguf import TokenType
from headers import write_vocabulary

from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.vocab import Kind, Vocabulary


def test_speakable_leaves_out_all_that_is_no_text() -> None:
    vocab = vocabulary(WORDS_A)
    speakable = {vocab.pieces[i] for i in range(len(vocab)) if vocab.speakable[i]}
    assert b"[PAD]" not in speakable
    assert b"" not in speakable
    assert {b"<tool>", b"the", b"\xff"} <= speakable
    assert not any(vocab.speakable[i] for i in vocab.end_ids)


def test_an_end_token_with_bytes_is_not_speakable() -> None:
    vocab = Vocabulary([b"a", b"</s>"], [Kind.NORMAL, Kind.USER], [1])
    assert vocab.speakable.tolist() == [True, False]
    assert vocab.ids.get(b"</s>") is None


def test_the_written_out_token_stands_for_shared_bytes() -> None:
    vocab = Vocabulary(
        [b"a", b"x", b"a", b"a"], [Kind.BYTE, Kind.NORMAL, Kind.NORMAL, Kind.NORMAL], []
    )
    assert vocab.ids.get(b"a") == 2
    assert vocab.ids.get(b"missing") is None


def test_fingerprint_tells_vocabularies_apart_and_knows_them_again() -> None:
    assert vocabulary(WORDS_A).fingerprint == vocabulary(WORDS_A).fingerprint
    assert vocabulary(WORDS_A).fingerprint != vocabulary(WORDS_B).fingerprint
    # Equal bytes in all, other borders.
    one = Vocabulary([b"ab", b"c"], [0, 0], [])
    other = Vocabulary([b"a", b"bc"], [0, 0], [])
    kinds = Vocabulary([b"ab", b"c"], [0, 2], [])
    ends = Vocabulary([b"ab", b"c"], [0, 0], [1])
    assert len({v.fingerprint for v in (one, other, kinds, ends)}) == 4


def test_join() -> None:
    vocab = vocabulary(WORDS_A)
    the, a = vocab.ids.get(b" the"), vocab.ids.get(b"a")
    assert the is not None
    assert a is not None
    assert vocab.join([the, a]) == b" thea"


CONTROL, USER, NORMAL, UNUSED = (
    TokenType.CONTROL,
    TokenType.USER_DEFINED,
    TokenType.NORMAL,
    TokenType.UNUSED,
)
CHATML = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL}
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>")


def read(path: Path) -> Vocabulary:
    with LlamaModel(path, vocabulary_only=True) as model:
        return model.vocabulary


def ends(vocab: Vocabulary) -> set[str]:
    return {vocab.spelled(i) for i in vocab.end_ids}


@pytest.mark.parametrize("missing", [{}, {"eos_token_id": 2**32 - 1, "bos_token_id": 2**32 - 1}])
def test_a_file_that_names_no_eos_gets_none_that_is_text(tmp_path, missing) -> None:
    """llama.cpp supposes token 11 of a byte-level vocabulary, here a k: it would end a text."""
    vocab = read(write_vocabulary(tmp_path / "v.gguf", CHATML, add_bos_token=True, **missing))
    assert (vocab.bos_id, vocab.eos_id, vocab.add_bos) == (None, None, False)
    assert ends(vocab) == {"<|endoftext|>", "<|im_end|>"}
    assert vocab.pieces[11] == b"k"
    assert vocab.ids.get(b"k") == 11


def test_what_a_file_names_counts_whatever_it_is(tmp_path) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", CHATML, eos_token_id=11, bos_token_id=12)
    vocab = read(path)
    assert (vocab.bos_id, vocab.eos_id) == (12, 11)
    assert ends(vocab) == {"k", "<|endoftext|>", "<|im_end|>"}


def test_gpt_oss_ends_with_return_and_call_only(tmp_path) -> None:
    """What its template writes between thoughts and answers ends none of them."""
    control = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>", *HARMONY)
    path = tmp_path / "v.gguf"
    vocab = read(write_vocabulary(path, dict.fromkeys(control, CONTROL), eos_token_id=34))
    assert ends(vocab) == {"<|endoftext|>", "<|return|>", "<|call|>"}
    assert vocab.spelled(vocab.eos_id) == "<|return|>"
    for name in HARMONY:
        assert vocab.kinds[vocab.markers[name]] == Kind.USER


def test_gemma_4_ends_with_its_turn(tmp_path) -> None:
    special = {
        **dict.fromkeys(("<eos>", "<bos>", "<|turn>", "<turn|>", "<|think|>"), CONTROL),
        **dict.fromkeys(("<|channel>", "<channel|>", "<|tool_response>"), USER),
        "</s>": NORMAL,
    }
    path = tmp_path / "v.gguf"
    vocab = read(write_vocabulary(path, special, "gemma4", eos_token_id=32, bos_token_id=33))
    assert ends(vocab) == {"<eos>", "<turn|>", "<|tool_response>"}
    for name in ("<|channel>", "<channel|>"):
        assert vocab.kinds[vocab.markers[name]] == Kind.USER
    # A tag of HTML, which other vocabularies end with.
    struck = vocab.ids.get(b"</s>")
    assert struck is not None
    assert vocab.speakable[struck]


def test_what_pads_a_vocabulary_is_never_said(tmp_path) -> None:
    padded = {**CHATML, "[PAD35]": UNUSED, "[PAD36]": UNUSED, "<|unused_1|>": CONTROL}
    vocab = read(write_vocabulary(tmp_path / "v.gguf", padded, eos_token_id=34))
    assert len(vocab) == 38
    assert not vocab.speakable[32:].any()
    assert vocab.ids.get(b"[PAD35]") is None
