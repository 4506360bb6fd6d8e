"""How a model thinks before it answers: the marks of its thoughts, and how it is told to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eva_local.errors import PromptError
from eva_local.types import Message, Thinking

if TYPE_CHECKING:
    from eva_local.llama.chat_template import ChatTemplate

_NONE: Mapping[str, object] = {}
_PROBE = Message("user", "a message to be found")


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before a thought, what ends it, and what leads from there to the answer."""

    begin: str
    end: str
    answer: str


# How marks look in templates. What is in parentheses takes the place of {}.
_FORMS = (
    (
        r"<\|channel\|>(analysis)<\|message\|>",
        Marks(
            "<|channel|>{}<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>"
        ),
    ),
    (r"<\|channel>(thought)", Marks("<|channel>{}\n", "<channel|>", "")),
    (r"<\|START_(THINKING)\|>", Marks("<|START_{}|>", "<|END_{}|>", "")),
    (r"<\|begin_of_(thought)\|>", Marks("<|begin_of_{}|>\n\n", "<|end_of_{}|>", "\n\n")),
    (r"<\|(inner)_prefix\|>", Marks("<|{}_prefix|>", "<|{}_suffix|>", "")),
    (
        r"<\|open\|>(think)<\|sep\|>",
        Marks("<|open|>{}<|sep|>", "<|close|>{}<|sep|>", "<|open|>response<|sep|>"),
    ),
    (
        r"<\|(think)\|>(?=[\s\S]*<\|content\|>)",
        Marks("<|{}|>", "<|end|>", "<|begin|>assistant<|content|>"),
    ),
    (r"\[(THINK)\]", Marks("[{}]", "[/{}]", "")),
    (r"<((?:\w+:)?think(?:ing)?(?::\w+)?)>", Marks("<{}>\n", "</{}>", "\n\n")),
)


class Thinker:
    """What a chat template tells of thoughts: how they look, and what its model does untold.

    `marks` is None where it knows none. Then, and where a model cannot be told, it thinks or
    does not as the end of its prompt says: an open thought, or an empty one. Arguments that are
    `given` are always told.
    """

    def __init__(self, template: ChatTemplate, given: Mapping[str, object] = _NONE) -> None:
        self._known = template.variables
        modes: tuple[Thinking, ...] = ("auto", "off", "on")
        told = ({**given, **self.arguments(mode)} for mode in modes)
        try:
            written = [template.write([_PROBE], each, "") for each in told]
        except PromptError:
            written = ["", "", ""]
        own, off, on = written
        self._obeys = off != on
        self.marks = next(_marks_in("".join([template.source, *written])), None)
        #: Whether it thinks where nobody says anything.
        self.thinks = False
        if self.marks is not None:
            rest = off.rpartition(self.marks.end)[2] if self._is_closed(off) else self.marks.answer
            self.marks = Marks(self.marks.begin, self.marks.end, rest)
            self.thinks = self._is_open(own) or (not self._is_closed(own) and own == on)

    def arguments(self, thinking: Thinking) -> Mapping[str, object]:
        """Return the arguments by which the template is told, those that it knows."""
        on = thinking == "on"
        mode = "enabled" if on else "disabled"
        switches = {"enable_thinking": on, "thinking": on, "thinking_mode": mode}
        if thinking == "auto":
            return {}
        return {name: value for name, value in switches.items() if name in self._known}

    def ended(self, text: str, thinking: Thinking) -> tuple[str, bool]:
        """Return a prompt that ends in an open thought, or behind it, and which of the two."""
        marks = self.marks
        if marks is None:
            return text, False
        if thinking == "auto":
            # Whatever decided it: the template, or what it was told.
            opens = self._is_open(text) or (self.thinks and not self._is_closed(text))
            thinking = "on" if opens else thinking
        if thinking == "on":
            if self._is_closed(text):
                text = text[: text.rindex(marks.end)].rstrip().removesuffix(marks.begin.rstrip())
            return (text if self._is_open(text) else text + marks.begin), True
        if self._is_open(text):
            return text + self.closing(text), False
        if thinking == "auto" or self._obeys or self._is_closed(text):
            return text, False
        return text + marks.begin + self.closing(marks.begin), False

    def closing(self, text: str) -> str:
        """Return what closes an empty thought behind `text`, and leads to the answer."""
        assert self.marks is not None
        line = "\n" if text.endswith("\n") else ""
        return f"{line}{self.marks.end}{self.marks.answer}"

    def _is_open(self, text: str) -> bool:
        return self.marks is not None and text.rstrip().endswith(self.marks.begin.rstrip())

    def _is_closed(self, text: str) -> bool:
        if self.marks is None:
            return False
        at = text.rfind(self.marks.end)
        return at >= 0 and text[at + len(self.marks.end) :].strip() in ("", self.marks.answer)


def _marks_in(text: str) -> Iterator[Marks]:
    for form, marks in _FORMS:
        for found in re.finditer(form, text):
            parts: Sequence[str] = (marks.begin, marks.end, marks.answer)
            yield Marks(*(part.replace("{}", found[1]) for part in parts))
