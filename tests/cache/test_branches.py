"""Rows of tokens that share their past in the sequences of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pytest
from fakes import FakeModel
from hypothesis import given
from hypothesis import strategies as st

from eva_local.cache.branches import Branch, Branches
from eva_local.llama.model import Run

PROMPT = [1, 50, 51]


def decode(model: FakeModel, branches: Branches, run: Run | None) -> Branch:
    assert run is not None
    model.decode([run])
    return branches.decoded(run)


def opened(n_rows: int = 3, **options: int) -> tuple[FakeModel, Branches, Branch]:
    """Return branches that hold a prompt in a model, and where that is."""
    model = FakeModel(**options)
    branches = Branches(model, range(n_rows))
    root = branches.begin(PROMPT)
    assert root == Branch(0, 0)
    return model, branches, decode(model, branches, branches.grow(root, PROMPT, ()))


def test_a_row_grows_in_its_own_sequence_as_long_as_nobody_needs_the_rest() -> None:
    model, branches, root = opened()
    assert root == Branch(0, 3)
    run = branches.grow(root, [60, 61], {root})
    assert run == Run(0, 3, [60, 61])
    assert decode(model, branches, run) == Branch(0, 5)
    assert list(branches.row(Branch(0, 5))) == [*PROMPT, 60, 61]
    assert list(branches.row(root)) == PROMPT
    # Nobody needs 60 and 61 any more.
    run = branches.grow(root, [70], {root})
    assert run == Run(0, 3, [70])
    decode(model, branches, run)
    assert model.cache == {0: [*PROMPT, 70]}


def test_a_row_that_others_need_is_copied_up_to_where_they_part() -> None:
    model, branches, root = opened()
    first = decode(model, branches, branches.grow(root, [60, 61], {root}))
    shorter = Branch(0, 4)
    run = branches.grow(shorter, [70], {first, shorter})
    assert run == Run(1, 4, [70])
    second = decode(model, branches, run)
    assert second == Branch(1, 5)
    assert model.cache == {0: [*PROMPT, 60, 61], 1: [*PROMPT, 60, 70]}
    third = decode(model, branches, branches.grow(root, [80], {first, second, root}))
    assert list(branches.row(third)) == model.cache[2] == [*PROMPT, 80]
    # Each sequence has a row now that is needed.
    assert branches.grow(root, [90], {first, second, third, root}) is None
    assert branches.grow(root, [90], {first, third, root}) == Run(1, 3, [90])


def test_a_text_begins_with_the_longest_row_there_is() -> None:
    model, branches, root = opened()
    first = decode(model, branches, branches.grow(root, [60, 61], {root}))
    decode(model, branches, branches.grow(root, [70, 71, 72], {first, root}))
    assert branches.n_cached == 6
    assert branches.holds([*PROMPT, 60, 61, 62]) == 5
    assert branches.holds([*PROMPT, 70, 99]) == 4
    assert branches.holds([2]) == 0
    assert branches.begin([*PROMPT, 70, 71, 99]) == Branch(1, 5)
    assert model.cache == {0: [], 1: [*PROMPT, 70, 71]}
    # The last token is left out, for its logits.
    assert branches.begin([*PROMPT, 70]) == Branch(1, 3)
    assert branches.n_cached == 3


def test_what_was_not_decoded_is_not_there() -> None:
    model, branches, root = opened()
    run = branches.grow(root, [60, 61], {root})
    assert run is not None
    model.decode([Run(run.seq_id, run.start, run.tokens[:1])])
    assert branches.holds([*PROMPT, 60, 61, 62]) == 3
    assert branches.begin([*PROMPT, 60, 61, 62]) == Branch(0, 3)
    assert model.cache == {0: PROMPT}


def test_nothing_is_held_after_a_failure() -> None:
    model, branches, root = opened()
    decode(model, branches, branches.grow(root, [60], {root, Branch(0, 4)}))
    # Part of a run that failed, which nobody wrote down.
    model.cache[2] = [1, 2]
    branches.clear()
    assert model.cache == {0: [], 1: [], 2: []}
    assert (branches.n_cached, branches.holds(PROMPT)) == (0, 0)


def test_the_longest_row_of_another_text_is_taken_over() -> None:
    model, branches, root = opened()
    first = decode(model, branches, branches.grow(root, [60], {root}))
    decode(model, branches, branches.grow(root, [70, 71], {first, root}))
    other = Branches(model, range(3, 6))
    decode(model, other, other.grow(other.begin([1]), [1], ()))
    other.adopt(branches)
    assert model.cache[3] == [*PROMPT, 70, 71]
    assert other.begin([*PROMPT, 70, 71, 72]) == Branch(3, 5)
    assert branches.n_cached == 5


def test_where_tokens_cannot_be_taken_back_a_row_that_is_needed_is_copied() -> None:
    model, branches, root = opened(can_roll_back=False)
    # Nobody needs the row itself.
    first = decode(model, branches, branches.grow(root, [60, 61], ()))
    assert first == Branch(0, 5)
    second = decode(model, branches, branches.grow(first, [62], {first}))
    assert second == Branch(1, 6)
    assert model.cache == {0: [*PROMPT, 60, 61], 1: [*PROMPT, 60, 61, 62]}
    # What the cache no longer holds of a row is decoded again.
    assert branches.behind(root) == 3
    run = branches.grow(root, [70], {first, second})
    assert run == Run(2, 0, [*PROMPT, 70])
    assert branches.behind(second) == 0


def test_a_text_goes_back_to_its_snapshots() -> None:
    model, branches, root = opened(5, can_roll_back=False, snapshots=2)
    branches.save(root, lasting=True)
    first = decode(model, branches, branches.grow(root, [60, 61], ()))
    branches.save(first, lasting=False)
    second = decode(model, branches, branches.grow(first, [62], ()))
    assert {first.seq_id, root.seq_id} == branches.saved
    assert second.seq_id not in branches.saved
    assert branches.holds([*PROMPT, 60, 61, 62, 63]) == 6
    assert branches.holds([*PROMPT, 60, 61, 99]) == 5
    assert branches.holds([*PROMPT, 60, 99]) == 3
    # The last token is decoded again, for its logits.
    assert branches.holds([*PROMPT, 60, 61, 62]) == 5
    assert branches.begin([*PROMPT, 60, 61, 62]) == first
    assert branches.saved == {first.seq_id, root.seq_id}
    assert branches.begin([*PROMPT, 99]) == root
    assert branches.saved == {root.seq_id}
    assert model.cache[first.seq_id] == []
    run = branches.grow(root, [99], ())
    assert run == Run(1, 3, [99])
    decode(model, branches, run)
    # A newer one goes before one in the prompt does.
    for token in (1, 2, 3):
        branches.save(
            decode(model, branches, branches.grow(Branch(1, 3), [token], ())), lasting=False
        )
        assert root.seq_id in branches.saved
        assert len(branches.saved) == 2
    branches.clear()
    assert not branches.saved


def test_snapshots_are_taken_over_with_the_longest_row() -> None:
    model, branches, root = opened(4, can_roll_back=False, snapshots=2)
    branches.save(root, lasting=True)
    decode(model, branches, branches.grow(root, [60, 61], ()))
    other = Branches(model, range(4, 8))
    other.adopt(branches)
    assert other.holds([*PROMPT, 60, 61, 62]) == 5
    assert other.holds([*PROMPT, 99]) == 3
    assert other.begin([*PROMPT, 99]).length == 3
    assert branches.holds([*PROMPT, 60, 61, 62]) == 5


@pytest.mark.parametrize("snapshots", [None, 0, 3])
@given(st.data())
def test_law_7_every_row_is_that_of_a_fresh_model(snapshots, data: st.DataObject) -> None:
    """Whatever grows, whatever is given up: what is needed stays, and logits are those of a row."""
    n_rows = 4 + (snapshots or 0)
    rolls_back = snapshots is None
    model, branches, root = opened(n_rows, can_roll_back=rolls_back, snapshots=snapshots or 0)
    rows: dict[Branch, Sequence[int]] = {root: PROMPT}
    for _ in range(data.draw(st.integers(1, 12))):
        branch = data.draw(st.sampled_from(sorted(rows, key=lambda b: (b.seq_id, b.length))))
        tokens = data.draw(st.lists(st.integers(40, 45), min_size=1, max_size=3))
        needed: Collection[Branch] = rows.keys()
        branches.save(branch, lasting=data.draw(st.booleans()))
        run = branches.grow(branch, tokens, needed)
        if run is None:
            assert {each.seq_id for each in needed} | branches.saved == set(range(n_rows))
            given_up = data.draw(st.sampled_from(sorted({each.seq_id for each in needed})))
            rows = {each: row for each, row in rows.items() if each.seq_id != given_up}
            if not rows:
                break
            continue
        (logits,) = model.decode([run])
        assert logits is not None
        expected = [*rows[branch], *tokens]
        assert np.array_equal(logits, FakeModel()._hashed(expected))
        rows[branches.decoded(run)] = expected
        for each, row in rows.items():
            assert list(branches.row(each)) == row
            if rolls_back:
                assert model.cache[each.seq_id][: each.length] == row
        if data.draw(st.booleans()):
            begun = data.draw(st.sampled_from([*rows.values()]))
            held = branches.holds([*begun, 39])
            where = branches.begin([*begun, 39])
            assert where.length == held
            assert model.cache[where.seq_id] == list(begun[:held])
            rows = {where: begun[:held]}
