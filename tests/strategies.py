"""Hypothesis strategies for text that breaks careless programs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

# Emoji with joiners, CJK, combining marks, right-to-left, control characters, template markers.
AWKWARD = [
    *("😀", "👩‍👩‍👧", "🏳️‍🌈", "中文", "日本語", "é", "n̈", "ا", "שלום", "\u202e"),
    *("\x00", "\x1b[31m", "\r\n", "\n\n", "\t", "  ", " the", "the", " unbelievable", "\ufffd"),
    *("<|im_end|>", "</s>", "<s>", "<tool>", "[PAD]", "\U000e0001", "\U0004ffff", "ﷺ"),
]
awkward_text = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=4)), max_size=8).map(
    "".join
)
# Cut anywhere, also inside a character, and joined with bytes that are no UTF-8 at all.
awkward_bytes = st.one_of(
    awkward_text.map(lambda text: text.encode("utf-8", "replace")),
    st.binary(max_size=12),
    st.tuples(awkward_text, st.binary(max_size=3)).map(
        lambda pair: pair[0].encode("utf-8", "replace")[:-1] + pair[1]
    ),
)


@st.composite
def cut(draw: st.DrawFn, data: st.SearchStrategy[bytes] = awkward_bytes) -> list[bytes]:
    """Some bytes, cut into pieces at any places."""
    whole = draw(data)
    places = draw(st.lists(st.integers(0, len(whole)), max_size=8))
    borders = [0, *sorted(places), len(whole)]
    return [whole[a:b] for a, b in pairwise(borders) if a < b]
