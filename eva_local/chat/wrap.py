"""Words that would be cut at the edge of the screen move to the next line, while they come."""

from __future__ import annotations

from rich.cells import cell_len

_TAB = 8
_FENCE = "```"


class Wrap:
    """Lays out streamed text on a screen of `width` cells.

    A word is shown as it comes; when it reaches the edge it is taken back and goes on in the
    next row. Code (fenced or indented) keeps its lines. `rows` counts the rows that are used.
    """

    def __init__(self, width: int) -> None:
        """Begin at the left edge."""
        self.width = width
        self.rows = 1
        self._column = 0
        # The beginning of the line, the word that is being written, and whether it may move.
        self._line = ""
        self._word = ""
        self._movable = True
        self._fenced = False

    def push(self, text: str) -> str:
        """Take the next text, without control characters; return what the terminal is to get."""
        return "".join(map(self._placed, text))

    def _placed(self, character: str) -> str:
        if character == "\n":
            return self._next_line()
        if len(self._line) < len(_FENCE) + 1:
            self._line += character
        if character == "\t":
            self._column = min((self._column // _TAB + 1) * _TAB, self.width - 1)
            self._end_word()
            return character
        cells = cell_len(character)
        # The last cell stays free: a cursor beyond it could not be moved back exactly.
        if self._column + cells < self.width or self._is_code:
            return self._written(character, cells)
        if character == " ":
            return self._new_row()
        word, taken = self._word, cell_len(self._word)
        if not self._movable or self._column == taken:
            return self._written(character, cells)
        back = f"\x1b[{taken}D\x1b[K" if word else ""
        moved = f"{back}{self._new_row()}{word}"
        self._word, self._column = word, taken
        return moved + self._written(character, cells)

    @property
    def _is_code(self) -> bool:
        return self._fenced or self._line.startswith(("    ", "\t"))

    def _written(self, character: str, cells: int) -> str:
        if self._column + cells > self.width:
            # The terminal goes on in the next row by itself.
            self.rows += 1
            self._column = 0
        self._column += cells
        if character == " " or cells > 1:
            # Between wide characters, as of Chinese, a line may end anywhere.
            self._end_word()
        elif self._movable:
            self._word += character
            if cell_len(self._word) >= self.width - 1:
                self._word, self._movable = "", False
        return character

    def _next_line(self) -> str:
        if self._line.startswith(_FENCE):
            self._fenced = not self._fenced
        self._line = ""
        return self._new_row()

    def _new_row(self) -> str:
        self.rows += 1
        self._column = 0
        self._end_word()
        return "\n"

    def _end_word(self) -> None:
        self._word, self._movable = "", True
