"""Words in a text: control tokens as they are spelled, and what looks like them."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any


class Words:
    """Finds many words in a text, from the left, the longest first.

    A regular expression of thousands of words tries each of them wherever one may begin.
    """

    def __init__(self, words: Collection[str]) -> None:
        self._words = frozenset(words) - {""}
        lengths: dict[str, set[int]] = {}
        for word in self._words:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = _one_of(self._lengths)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where words begin and end."""
        at = 0
        for found in self._first.finditer(text):
            start = found.start()
            if start < at:
                continue
            for length in self._lengths[found[0]]:
                if text[start : start + length] in self._words:
                    at = start + length
                    yield start, at
                    break

    def split(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield what stands before each word, and the word; at last what is left, and no word."""
        at = 0
        for start, end in self.find(text):
            yield text[at:start], text[start:end]
            at = end
        yield text[at:], ""


class LookAlikes:
    """Puts a guard into whatever would be read as a control token in a rendered text.

    That is a word as it stands, and a part of one where the rest may come to stand beside it: at
    the ends of a message, and beside what a template may take out of it (`removable`). So each
    word that is found in the text was written by the template.
    """

    def __init__(self, words: Collection[str], removable: Collection[str]) -> None:
        self._words = Words(words)
        self._longest = max(map(len, words), default=1)
        self._beginnings = frozenset(word[:n] for word in words for n in range(1, len(word)))
        self._ends = frozenset(word[n:] for word in words for n in range(1, len(word)))
        self._first = _one_of({word[0] for word in words})
        self._last = _one_of({word[-1] for word in words})
        self._all = "\0".join(words)
        self._cuts = Words([each for each in removable if each not in self._all])

    def guarded(self, text: str, guard: str, marks: tuple[str, ...] = ()) -> str:
        """Return a message with guards in it, and one behind `marks` in which it ends."""
        text = self.broken(text, guard)
        if (said := text.rstrip()).endswith(marks):
            text = said + guard + text[len(said) :]
        parts = self._cuts.split(text)
        return "".join(self._guard_ends(between, guard) + word for between, word in parts)

    def broken(self, value: Any, guard: str) -> Any:
        """Return a value of JSON with a guard behind the first character of each word."""
        if isinstance(value, str):
            parts = self._words.split(value)
            guarded = (between + (word and word[0] + guard + word[1:]) for between, word in parts)
            return "".join(guarded)
        if isinstance(value, Mapping):
            pairs = value.items()
            return {self.broken(key, guard): self.broken(each, guard) for key, each in pairs}
        if isinstance(value, Sequence):
            return [self.broken(each, guard) for each in value]
        return value

    def _guard_ends(self, text: str, guard: str) -> str:
        """Guard a text that begins or ends as a word goes on or begins, or lies within one."""
        said = text.strip()
        if not said:
            return text
        head, tail = said[: self._longest], said[-self._longest :]
        is_within = len(said) < self._longest and said in self._all
        is_end = any(head[: each.end()] in self._ends for each in self._last.finditer(head))
        is_beginning = any(
            tail[each.start() :] in self._beginnings for each in self._first.finditer(tail)
        )
        start = text.index(said)
        rest = text[start + len(said) :]
        before, behind = guard if is_within or is_end else "", guard if is_beginning else ""
        return text[:start] + before + said + behind + rest


def _one_of(characters: Collection[str]) -> re.Pattern[str]:
    return re.compile(f"[{''.join(map(re.escape, characters))}]" if characters else "(?!)")
