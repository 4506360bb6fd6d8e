from fakes import WORDS_A, WORDS_B, vocabulary

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
    assert vocab.id_of(b"</s>") is None


def test_the_written_out_token_stands_for_shared_bytes() -> None:
    vocab = Vocabulary(
        [b"a", b"x", b"a", b"a"], [Kind.BYTE, Kind.NORMAL, Kind.NORMAL, Kind.NORMAL], []
    )
    assert vocab.id_of(b"a") == 2
    assert vocab.id_of(b"missing") is None


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
    the, a = vocab.id_of(b" the"), vocab.id_of(b"a")
    assert the is not None
    assert a is not None
    assert vocab.join([the, a]) == b" thea"
