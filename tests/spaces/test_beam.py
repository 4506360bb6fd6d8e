"""The byte beam by hand, and against a brute-force sum over all tokenisations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fakes import NESTED, FakeModel, longest_match
from hypothesis import given, settings
from hypothesis import strategies as st

from eva_local.cache.branches import Branch
from eva_local.fusion.votes import Floats
from eva_local.llama.model import Logits
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Kind, Vocabulary
from eva_local.spaces.bytes.beam import ByteBeam
from eva_local.spaces.bytes.row import END, Border
from eva_local.spaces.bytes.trie import Trie

# The tokens of most tests, and how likely a member finds each, whatever was said before.
STOP, A, AB, B = range(4)
LIKELY = {STOP: 0.1, A: 0.45, AB: 0.3, B: 0.15}


def spoken(words: Sequence[bytes]) -> Vocabulary:
    """Make a vocabulary of an END without bytes and `words`."""
    kinds = [Kind.CONTROL] + [Kind.NORMAL] * len(words)
    return Vocabulary([b"", *words], kinds, [STOP])


class World:
    """A beam, and a model that decodes its borders: each row lies in a sequence of its own."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        logits: Callable[[Sequence[int]], Logits],
        threshold: float = 0.01,
    ) -> None:
        tokenizer = Tokenizer(vocabulary, longest_match(vocabulary))
        self.beam = ByteBeam(tokenizer, Trie(vocabulary), threshold, before={})
        self.logits = logits
        self.rows: list[list[int]] = [[]]
        self.beam.begin(Border(0.0, Branch(0, 0), [], 0))

    def row(self, border: Border) -> tuple[int, ...]:
        """Return the tokens of a row that waits."""
        return (*self.rows[border.branch.seq_id][: border.branch.length], *border.tokens)

    def decode(self, border: Border) -> Branch:
        row = list(self.row(border))
        branch = Branch(len(self.rows), len(row))
        self.rows.append(row)
        self.beam.decoded(border, branch, self.logits(row))
        return branch

    def read(self) -> None:
        """Decode all that must be before the next vote."""
        while wanted := self.beam.wanted():
            self.decode(wanted[0])

    def next(self, symbols: bytes = b"ab") -> list[float]:
        """Return how likely each of some bytes is, and END."""
        masses = self.beam.next()
        assert masses.sum() == pytest.approx(1)
        return [*(float(masses[byte]) for byte in symbols), float(masses[END])]

    def likeliest(self) -> tuple[Branch, int]:
        """Return where the likeliest row is, and how many bytes it covers."""
        row = self.beam.likeliest()
        return row.branch, row.covers

    def waiting(self) -> dict[tuple[int, ...], float]:
        """Return the rows that wait, with their probabilities."""
        return {self.row(border): math.exp(border.log_weight) for border in self.beam._waiting}


def world(likely: dict[int, float] = LIKELY, threshold: float = 0.01) -> World:
    """Make a member that knows "a", "ab" and "b"; it was asked what the text begins with."""
    logits = np.log(np.asarray([likely[i] for i in (STOP, A, AB, B)], dtype=np.float32))
    found = World(spoken([b"a", b"ab", b"b"]), lambda _row: logits, threshold)
    found.read()
    return found


def test_a_byte_is_as_likely_as_the_tokens_that_begin_with_it() -> None:
    assert world().next() == pytest.approx([0.75, 0.15, 0.1])


def test_a_text_goes_on_within_a_token_and_after_it() -> None:
    found = world()
    found.beam.append(ord("a"))
    assert found.waiting() == pytest.approx({(A,): 0.45})
    found.read()
    # Of 0.75: "ab" is 0.3 of it; after "a", with 0.45, all begins anew.
    expected = [0.45 * 0.75, 0.3 + 0.45 * 0.15, 0.45 * 0.1]
    assert found.next() == pytest.approx([mass / 0.75 for mass in expected])


def test_what_waits_is_thought_to_go_on_as_borders_do() -> None:
    found = world()
    found.beam.append(ord("a"))
    # All bytes alike, and four times what the text begins with: as one that was decoded and as
    # one that was left, each of its kind and of any kind, which for it are the same.
    prior = np.full(END + 1, 1 / (END + 1)) / 5
    prior[[ord("a"), ord("b"), END]] += np.asarray([0.75, 0.15, 0.1]) * 4 / 5
    # Of the 0.75 that are left, 0.45 wait.
    expected = 0.45 * prior
    expected[ord("b")] += 0.3
    np.testing.assert_allclose(found.beam.next(), expected / 0.75, rtol=1e-6)


def test_rows_that_end_together_become_the_likeliest_of_them() -> None:
    found = world()
    found.beam.append(ord("a"))
    found.read()
    found.beam.append(ord("b"))
    assert found.waiting() == pytest.approx({(AB,): 0.3 + 0.45 * 0.15})


def test_an_exact_beam_merges_nothing() -> None:
    found = world(threshold=0)
    found.beam.append(ord("a"))
    found.read()
    found.beam.append(ord("b"))
    assert found.waiting() == pytest.approx({(AB,): 0.3, (A, B): 0.45 * 0.15})


@pytest.mark.parametrize("threshold", [0, 0.01])
def test_a_row_that_the_tokeniser_would_not_write_is_followed_where_the_model_is_sure(
    threshold: float,
) -> None:
    found = world({STOP: 0.1, A: 0.5, AB: 0.35, B: 0.05}, threshold)
    found.beam.append(ord("a"))
    found.read()
    found.beam.append(ord("b"))
    odd = {} if threshold else {(A, B): 0.5 * 0.05}
    assert found.waiting() == pytest.approx({(AB,): 0.35, **odd})


def test_where_a_piece_ends_only_the_rows_that_end_there_are_kept() -> None:
    found = world()
    found.beam.append(ord("a"))
    found.beam.settle()
    assert found.waiting() == pytest.approx({(A,): 0.45})
    found.read()
    assert found.next() == pytest.approx([0.75, 0.15, 0.1])


def test_a_piece_ends_where_no_row_does() -> None:
    found = world({STOP: 0.1, A: 1e-30, AB: 0.7, B: 0.2})
    found.beam.append(ord("a"))
    before = found.next()
    found.beam.settle()
    assert found.next() == before == pytest.approx([0, 1, 0])


def test_what_is_negligible_is_given_up() -> None:
    for threshold, n_left in ((0.01, 1), (0, 2)):
        found = world({STOP: 0.1, A: 0.8, AB: 1e-11, B: 0.1}, threshold)
        found.beam.append(ord("a"))
        assert len(found.beam._open) + len(found.beam._waiting) == n_left
        found.read()
        # All that is left is taken for the whole.
        assert found.next() == pytest.approx([0.8, 0.1, 0.1], abs=1e-9)


def test_few_borders_wait() -> None:
    words = [b"x" * length for length in range(1, 41)]
    logits = np.zeros(len(words) + 1, dtype=np.float32)
    found = World(spoken(words), lambda _row: logits, threshold=0.5)
    found.decode(found.beam.wanted()[0])
    for _ in range(39):
        found.beam.append(ord("x"))
        assert len(found.beam._waiting) <= 16


def test_no_border_waits_for_long() -> None:
    logits = np.log(np.asarray([0.1, 0.3, 0.6], dtype=np.float32))
    found = World(spoken([b"x", b"x" * 40]), lambda _row: logits, threshold=0.9)
    found.decode(found.beam.wanted()[0])
    for length in range(1, 40):
        found.beam.append(ord("x"))
        # The one after the first "x", for as long as nearly all pieces are.
        assert [border.covers for border in found.beam._waiting] == [1] * (length <= 33)


def test_a_border_is_known_by_its_byte_and_by_how_likely_it_was() -> None:
    for likely, kind in ((LIKELY, "lower, likely"), ({**LIKELY, A: 0.2}, "lower, unlikely")):
        found = world(likely)
        found.beam.append(ord("a"))
        assert [border.kind for border in found.beam.wanted()] == [kind]


def test_what_waits_shares_the_fate_of_the_text() -> None:
    logits = np.log(np.asarray([0.1, 0.3, 0.6], dtype=np.float32))
    found = World(spoken([b"a", b"abcd"]), lambda _row: logits, threshold=0.9)
    found.read()
    for byte in b"abc":
        fate = found.beam.next()[byte]
        found.beam.append(byte)
        if byte == ord("b"):
            usual = found.beam.boundary_prior.expected("lower, unlikely")[byte]
    # After "a" a "b" was as likely as is usual, and then a "c" as likely as by the other row.
    waiting = 0.3 * usual * fate
    assert 0.9 < fate < 1
    masses = found.beam.next()
    inside = found.beam.boundary_prior.expected("lower, inside")
    expected = waiting * inside
    expected[ord("d")] += 0.6
    np.testing.assert_allclose(masses, expected / (0.6 + waiting), rtol=1e-6)


def test_the_likeliest_borders_are_decoded_first_and_the_others_not_at_all() -> None:
    def decoded(threshold: float) -> list[tuple[int, ...]]:
        found = world({STOP: 0.1, A: 0.3, AB: 0.35, B: 0.25}, threshold)
        found.beam.append(ord("a"))
        return [found.row(border) for border in found.beam.wanted()]

    assert decoded(0.46) == [(A,)]
    assert decoded(0.47) == []
    # Something must be decoded where nothing else is left.
    found = world(threshold=0.9)
    found.beam.append(ord("b"))
    assert [found.row(border) for border in found.beam.wanted()] == [(B,)]


def test_what_is_known_of_the_rows() -> None:
    found = world()
    assert found.likeliest() == (Branch(1, 0), 0)
    found.beam.append(ord("a"))
    # "ab" in the first row, and "a", a token behind it that was not decoded.
    assert found.beam.branches() == {Branch(1, 0)}
    assert (found.beam.longest(), found.beam.unread()) == (1, 0)
    branch = found.decode(found.beam.wanted()[0])
    assert found.likeliest() == (branch, 1)
    assert found.beam.branches() == {Branch(1, 0), branch}
    assert found.beam.weakest([1, branch.seq_id]) == 1
    assert found.beam.weakest([branch.seq_id]) == branch.seq_id
    assert found.beam.weakest([]) is None
    found.beam.forget(branch.seq_id)
    assert found.likeliest() == (Branch(1, 0), 0)
    # Only "ab" is left, of which one byte is not covered.
    assert (found.beam.longest(), found.beam.unread()) == (0, 1)
    assert found.next() == pytest.approx([0, 1, 0])
    assert not found.beam.lost
    found.beam.forget(1)
    assert found.beam.lost


def test_a_text_that_no_row_can_be_is_lost() -> None:
    found = world()
    found.beam.append(ord("x"))
    assert found.beam.lost
    assert bytes(found.beam.text) == b"x"
    found.beam.begin(Border(0.0, Branch(0, 0), [B], 1))
    found.read()
    assert found.next() == pytest.approx([0.75, 0.15, 0.1])
    found.beam.clear()
    assert found.beam.lost
    assert bytes(found.beam.text) == b""


def test_a_row_may_be_written_in_other_tokens() -> None:
    found = world(threshold=0)
    for byte in b"ab":
        found.beam.append(byte)
        found.read()
    (branch,) = [row.branch for row in found.beam._open if found.rows[row.branch.seq_id] == [A, B]]
    before = found.next()
    found.beam.rewrite(branch, 0, [AB])
    (border,) = found.beam._waiting
    assert found.row(border) == (AB,)
    assert math.exp(border.log_weight) == pytest.approx(0.45 * 0.15)
    assert found.beam.holds(border)
    found.read()
    assert not found.beam.holds(border)
    assert found.next() == pytest.approx(before)


def test_the_likeliest_row_puts_its_pieces_forward() -> None:
    pieces, shares, ends = world().beam.pieces(4)
    assert pieces == [b"a", b"ab", b"b", b""]
    assert shares.tolist() == pytest.approx([0.45, 0.3, 0.15, 0.1])
    # Of what begins with "a", 0.45 of 0.75 is no longer.
    assert ends.tolist() == pytest.approx([0.6, 1, 1, 1])
    pieces, shares, _ = world().beam.pieces(1)
    assert pieces == [b"a", b""]
    assert shares.tolist() == pytest.approx([0.45, 0.1])


def test_within_a_token_what_is_left_of_it_is_put_forward() -> None:
    found = world({STOP: 0.05, A: 0.05, AB: 0.8, B: 0.1})
    found.beam.append(ord("a"))
    pieces, shares, ends = found.beam.pieces(4)
    assert (pieces, shares.tolist(), ends.tolist()) == ([b"b"], [1], [1])


def test_support_is_the_mass_of_the_tokens_that_begin_with_a_piece() -> None:
    pieces, shares, ends = world().beam.pieces(4)
    found = world().beam.support(pieces, shares, ends)
    assert found.tolist() == pytest.approx([0.45, 0.3, 0.15, 0.1])


def test_what_is_said_in_several_tokens_shares_the_mass_of_the_first() -> None:
    found = world().beam.support([b"b", b"ba", b"x"], np.asarray([0.6, 0.2, 0.2]), np.ones(3))
    assert found.tolist() == pytest.approx([0.15 * 0.6 / 0.8, 0.15 * 0.2 / 0.8, 0])


TEXTS = st.text(alphabet="abcé ", max_size=5).map(str.encode)


@functools.cache
def twins() -> dict[int, int]:
    """Return for each token the first one with the same piece."""
    pieces = FakeModel(NESTED).vocabulary.pieces
    firsts = {piece: token_id for token_id, piece in reversed(list(enumerate(pieces)))}
    return {i: firsts[piece] if piece else i for i, piece in enumerate(pieces)}


def by_bytes(tokens: Sequence[int]) -> Logits:
    """Return logits that depend on the pieces of the past, not on which id stood for them.

    A member follows the likelier of two ids with the same piece, for the mass of both: that is
    exact where what follows does not depend on the id.
    """
    return FakeModel(NESTED)._hashed([twins()[token_id] for token_id in tokens])


def brute(vocabulary: Vocabulary, row: tuple[int, ...], rest: bytes) -> Floats:
    """Return (257,): the mass of each byte after `rest`, over every way to tokenise `rest`.

    The definition itself: whatever begins with `rest` and goes on gives its mass to the byte
    that it goes on with; whatever `rest` begins with is a token, and the sum goes on behind it.
    """
    logits = by_bytes(row)
    ends = sorted(vocabulary.end_ids)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights[vocabulary.speakable].sum() + weights[ends].sum()
    masses = np.zeros(END + 1)
    if not rest:
        masses[END] = weights[ends].sum()
    for token_id in np.flatnonzero(vocabulary.speakable).tolist():
        piece = vocabulary.pieces[token_id]
        if len(piece) > len(rest):
            if piece.startswith(rest):
                masses[piece[len(rest)]] += weights[token_id]
        elif rest.startswith(piece):
            behind = brute(vocabulary, (*row, token_id), rest[len(piece) :])
            masses += weights[token_id] * behind
    return masses


@settings(max_examples=30)
@given(TEXTS)
def test_the_next_byte_is_the_sum_over_all_tokenisations(text: bytes) -> None:
    vocabulary = FakeModel(NESTED).vocabulary
    found = World(vocabulary, by_bytes, threshold=0)
    for count in range(len(text) + 1):
        found.read()
        expected = brute(vocabulary, (), text[:count])
        # Shares are in single precision, as logits are.
        np.testing.assert_allclose(
            found.beam.next(), expected / expected.sum(), rtol=1e-5, atol=1e-9
        )
        if count < len(text):
            found.beam.append(text[count])
