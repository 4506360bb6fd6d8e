"""Bytes to text that is safe to show: whole characters only, and no part of a stop string."""

import codecs
from collections.abc import Collection, Sequence

from eva_local.errors import InputError

#: No text has a NUL this near its beginning, but for UTF-16, where plain letters have one each.
HEAD = 8000
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# C0 and C1 control characters but tab and newline, and marks that reorder what is shown.
_UNSAFE = (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\N{SYMBOL FOR DELETE}",
    **{code: f"<U+{code:04X}>" for code in _UNSAFE},
}


def refuse_utf16(data: bytes, name: str) -> None:
    """Raise InputError where the beginning of `data` is that of UTF-16."""
    if data.startswith(_UTF16) or b"\0" in data[:HEAD]:
        raise InputError(
            f"{name} is no UTF-8 text but perhaps UTF-16: convert it (iconv -f UTF-16 -t UTF-8)"
        )


def harmless(text: str) -> str:
    """Return `text` with the characters that a terminal would obey made visible."""
    return text.translate(_VISIBLE)


def harmless_line(text: str) -> str:
    """Return `text` as one line that is harmless to print: line ends become spaces."""
    return " ".join(harmless(text).split("\n"))


class TextStream:
    """Turn pieces into text as they come.

    Half characters wait for their other half; bytes that are no UTF-8 become U+FFFD. Text
    that may be the beginning of a stop string waits until that is decided. `stopped` says
    that a stop string was met; the text ends before it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._waiting = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Take the next bytes; return what can be shown."""
        if self.stopped:
            return ""
        self._waiting += self._decoder.decode(piece)
        starts = ((self._waiting.find(stop), len(stop)) for stop in self._stop)
        # The first that is complete, however the text came in pieces.
        found = [(start + length, start) for start, length in starts if start >= 0]
        if found:
            self.stopped = True
            shown, self._waiting = self._waiting[: min(found)[1]], ""
            return shown
        return self._release(len(self._waiting) - undecided(self._waiting, self._stop))

    def finish(self) -> str:
        """Return what waited; a half character at the end is left out."""
        return self._release(len(self._waiting))

    def _release(self, count: int) -> str:
        shown, self._waiting = self._waiting[:count], self._waiting[count:]
        return shown


def undecided(text: str, wholes: Collection[str]) -> int:
    """Return the length of the longest end of a text that begins one of `wholes`."""
    longest = max(map(len, wholes), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(whole.startswith(text[-size:]) for whole in wholes):
            return size
    return 0
