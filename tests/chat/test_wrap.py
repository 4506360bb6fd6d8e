"""Words at the edge of the screen, on a small model of a terminal."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from eva_local.chat.wrap import Wrap


class Terminal:
    """As much of a VT100 as Wrap uses: it wraps only when something comes after the last cell."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self.column = 0

    def write(self, text: str) -> None:
        for back, erase, character in re.findall(r"\x1b\[(\d+)D|(\x1b\[K)|(.|\n)", text):
            if back:
                assert self.column < self.width, "the place of the cursor would be uncertain"
                self.column -= int(back)
            elif erase:
                self.lines[-1] = cells(self.lines[-1], self.column)
            elif character == "\n":
                self.lines.append("")
                self.column = 0
            else:
                if self.column + cell_len(character) > self.width:
                    self.lines.append("")
                    self.column = 0
                self.lines[-1] += character
                self.column += cell_len(character)


def cells(text: str, count: int) -> str:
    while cell_len(text) > count:
        text = text[:-1]
    return text


def shown(text: str, width: int, pieces: int = 3) -> list[str]:
    wrap, terminal = Wrap(width), Terminal(width)
    for at in range(0, len(text), pieces):
        terminal.write(wrap.push(text[at : at + pieces]))
    assert wrap.rows == len(terminal.lines)
    return terminal.lines


words = st.text(alphabet="abé中 \n", max_size=60)


@example("aaaa bbbb cc", 10, 1)
@example("中中中中中中 a", 7, 2)
@example("b" * 30 + " a", 9, 4)
@given(text=words, width=st.integers(6, 20), pieces=st.integers(1, 7))
def test_nothing_is_lost_and_words_that_fit_stay_whole(text, width, pieces) -> None:
    lines = shown(text, width, pieces)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    placed = " ".join(lines).split()
    for line in text.split("\n"):
        if line.startswith("    "):
            continue
        for word in line.split():
            if cell_len(word) < width - 1 and "中" not in word:
                assert word in placed


def test_a_word_moves_to_the_next_row_while_it_comes() -> None:
    assert shown("a vast sea stretching out", 15) == ["a vast sea ", "stretching out"]


def test_code_keeps_its_lines() -> None:
    code = "```\nfor x in range: go\n```\nand some words"
    assert shown(code, 14)[1:3] == ["for x in range", ": go"]
    assert shown("    if a: return b", 14) == ["    if a: retu", "rn b"]
    assert shown(code, 14)[-2:] == ["and some ", "words"]
