"""What usually follows the end of a token."""

from __future__ import annotations

import numpy as np
import pytest

from eva_local.fusion.votes import Floats
from eva_local.spaces.bytes.row import ANY, END, BoundaryPrior, border_kind, found_before

UNIFORM = np.full(END + 1, 1 / (END + 1))


def only(symbol: int) -> Floats:
    masses = np.zeros(END + 1)
    masses[symbol] = 1
    return masses


def test_who_knows_nothing_expects_all_alike() -> None:
    prior = BoundaryPrior({})
    assert np.array_equal(prior.expected("lower, likely"), UNIFORM)
    assert prior.means.keys() == {ANY}


def test_the_first_border_counts_as_much_as_what_was_thought_before() -> None:
    prior = BoundaryPrior({})
    prior.learn("lower, likely", only(0x20))
    # All kinds first, then the kind itself, which begins with what is known of all.
    assert np.allclose(prior.expected(ANY), (UNIFORM + only(0x20)) / 2)
    assert np.allclose(prior.expected("lower, likely"), UNIFORM / 4 + only(0x20) * 3 / 4)
    assert np.array_equal(prior.expected("digit, likely"), prior.expected(ANY))


def test_the_mean_is_that_of_all_borders() -> None:
    prior = BoundaryPrior({})
    for symbol in (0x20, END, 0x20):
        prior.learn("lower, likely", only(symbol))
    found = prior.expected(ANY)
    assert found[0x20] == pytest.approx((UNIFORM[0] + 2) / 4)
    assert found[END] == pytest.approx((UNIFORM[0] + 1) / 4)
    assert found.sum() == pytest.approx(1)
    assert {kind: count for kind, (_, count) in prior.means.items()} == {ANY: 4, "lower, likely": 4}


def test_what_was_found_in_other_texts_counts_as_eight_borders() -> None:
    before = {ANY: UNIFORM, "lower, likely": only(0x20)}
    prior = BoundaryPrior(before)
    prior.learn("lower, likely", only(END))
    found = prior.expected("lower, likely")
    assert found[0x20] == pytest.approx(8 / 9)
    assert found[END] == pytest.approx(1 / 9)
    # The next text begins with the same.
    assert before["lower, likely"].tolist() == only(0x20).tolist()
    assert before[ANY].tolist() == UNIFORM.tolist()


@pytest.mark.parametrize(
    ("byte", "kind"),
    [
        (ord("a"), "lower"),
        (ord("A"), "upper"),
        (ord("7"), "digit"),
        (ord(" "), "byte 32"),
        (ord("."), "byte 46"),
        # A letter in Latin-1, and in UTF-8 a part of any character.
        (0xC3, "half"),
        (0x80, "half"),
    ],
)
def test_kinds(byte: int, kind: str) -> None:
    assert border_kind(byte, likely=True) == f"{kind}, likely"
    assert border_kind(byte, likely=False) == f"{kind}, unlikely"
    assert border_kind(byte) == f"{kind}, inside"


def test_what_comes_along_are_distributions_of_known_kinds() -> None:
    known = {ANY}
    for byte in range(256):
        known |= {border_kind(byte, likely=likely) for likely in (True, False)}
        known.add(border_kind(byte))
    before = found_before()
    assert ANY in before
    assert set(before) <= known
    for mean in before.values():
        assert mean.shape == (END + 1,)
        assert mean.min() > 0
        assert mean.sum() == pytest.approx(1, abs=1e-5)
