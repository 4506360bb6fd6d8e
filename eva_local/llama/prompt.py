"""Conversations as each member's own chat template writes them, as tokens."""

import functools
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eva_local.errors import PromptError
from eva_local.llama.model import Model
from eva_local.llama.tokenizer import Tokenizer, without
from eva_local.llama.vocab import Vocabulary
from eva_local.types import Message, Thinking

if TYPE_CHECKING:
    from eva_local.llama.chat_template import ChatTemplate, Thinker

log = logging.getLogger("eva_local")

Prompt = str | Sequence[Message]

# What a model without a chat template is given: a dialogue that it can go on with.
_PLAIN_NAMES = {"system": "", "user": "User: ", "assistant": "Assistant: "}
#: What such a model writes where it has answered and goes on with the dialogue.
PLAIN_STOP = "\nUser:"
# Or what many models know, where the vocabulary has its marks (OpenAI's ChatML).
_CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Templates look for these in messages, so they are what they are there too.
_THOUGHT = ("<think>", "</think>")
# Characters that mean nothing; one that no message has guards what looks like a control token.
_PRIVATE = range(0xF0000, 0xFFFFE)
# What llama.cpp strips beside tokens that want it.
_WHITE = " \t\n\v\f\r"


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought that is left open at the end of a prompt: what ends it, and what then follows it.

    `end` is the text that ends it and `end_id` the token, where there is one. The tokens
    `closing` lead to the answer; where the thought does not end a line, `line` comes first.
    With `is_text` what ends the answer ends it, too.
    """

    end: str
    end_id: int | None
    line: Sequence[int]
    closing: Sequence[int]
    is_text: bool = False

    def behind(self, text: bytes) -> list[int]:
        """Return the tokens that end a thought of `text`, and lead to the answer."""
        return [*(() if text.endswith(b"\n") else self.line), *self.closing]


class PromptWriter:
    """Turn prompts into the tokens of one member.

    Errors give its `name`, or else that of its file. `template` stands in place of the model's
    own chat template, and is told `arguments`; `is_plain` where there is none, so that
    conversations are dialogues.
    """

    def __init__(
        self,
        model: Model,
        name: str = "",
        template: str | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        self.name = name or model.path.name
        self._vocabulary = model.vocabulary
        self._tokenizer = model.tokenizer
        self._given = arguments or {}
        self._source = template or model.chat_template or ""
        if not self._source and all(mark in model.vocabulary.markers for mark in _CHATML_MARKS):
            self._source = _CHATML
        self.is_plain = not self._source
        self._control = _control(model.vocabulary, self._source)
        self._finder = Words(self._control)
        speakable = model.vocabulary.speakable
        # Tokenisers find these in any text.
        found = (word for word, token_id in self._control.items() if speakable[token_id])
        self._typable = Words([word for word in found if word not in _THOUGHT])

    def read(
        self,
        prompt: Prompt | bytes,
        arguments: Mapping[str, object] | None = None,
        thinking: Thinking | None = None,
    ) -> tuple[list[int], Thought | None]:
        """Return the tokens of a conversation (opened for the answer) or of a plain text.

        With them goes the thought that they leave open, where the answer begins with one. Where
        `thinking` is None nothing stands behind what the template writes.
        `arguments` are keyword arguments of the chat template. Where the last message is an
        answer, that is left open. A text in bytes may begin or end within a character.
        Exactly one BOS stands in front where the model wants one. Control tokens come from
        the template alone: in a message they are spelled out as text.
        Raises PromptError where the template refuses the conversation or fails at it.
        """
        if isinstance(prompt, bytes):
            ids = self._tokenizer.encode(_expressible(prompt, self._tokenizer))
            return self._with_bos(ids), None
        segments, is_open = self._segments(prompt, thinking, arguments or {})
        return self._with_bos(self._ids(segments)), self._thought() if is_open else None

    @property
    def can_think(self) -> bool:
        """Whether its chat template knows thoughts."""
        return not self.is_plain and self._thinker.marks is not None

    def _segments(
        self, prompt: Prompt, thinking: Thinking | None, arguments: Mapping[str, object]
    ) -> tuple[Iterator[int | str], bool]:
        """Return control tokens and the texts between them, and whether a thought is open."""
        if isinstance(prompt, str):
            return iter([prompt]), False
        if self.is_plain:
            return iter([_plain(prompt)]), thinking == "on" and prompt[-1].role != "assistant"
        told = {} if thinking is None else self._thinker.arguments(thinking)
        # Who says that there is to be a thought says it to the template too.
        free = {k: v for k, v in arguments.items() if k not in told or not isinstance(v, bool)}
        text, guard = self._render(prompt, {**self._given, **told, **free})
        if thinking is None or prompt[-1].role == "assistant":
            return self._split(text, guard), False
        text, is_open = self._thinker.ended(text, thinking)
        return self._split(text, guard), is_open or thinking == "on"

    def _split(self, text: str, guard: str = "") -> Iterator[int | str]:
        """Yield the control tokens of what a template wrote, and the texts between them."""
        vocabulary = self._vocabulary
        before: int | None = None
        for part, word in self._finder.split(text):
            between, after = part.replace(guard, ""), self._control.get(word)
            if before in vocabulary.strips_right:
                between = between.lstrip(_WHITE)
            if after in vocabulary.strips_left:
                between = between.rstrip(_WHITE)
            yield between
            if after is not None:
                yield after
            before = after

    def _thought(self) -> Thought:
        """Return how an open thought ends; who knows none reads it as part of its answer."""
        marks = None if self.is_plain else self._thinker.marks
        if marks is None:
            return Thought("", None, (), self._encode("\n\n", begins=False))
        first = self._control.get(marks.end)
        line = self._encode("\n", begins=False) if marks.begin.endswith("\n") else ()
        closing = self._ids(self._split(marks.end + marks.answer), begins=False)
        return Thought(marks.end, first, line, closing)

    def marked(self, mark: str, *, is_text: bool) -> Thought:
        """Return a thought that ends where a text says so, in words that are no marks.

        In a conversation the mark has a line of its own.
        """
        line = "" if is_text else "\n"
        encode = functools.partial(self._encode, begins=False)
        return Thought(mark, None, encode(line), encode(mark + line), is_text)

    def _ids(self, segments: Iterator[int | str], *, begins: bool = True) -> list[int]:
        ids: list[int] = []
        for segment in segments:
            begins |= bool(ids)
            ids += [segment] if isinstance(segment, int) else self._encode(segment, begins=begins)
        return ids

    def _render(
        self, messages: Sequence[Message], arguments: Mapping[str, object]
    ) -> tuple[str, str]:
        look_alikes = self._look_alikes
        known = "".join([self._source, *(message.content for message in messages)])
        guard = next(each for each in map(chr, _PRIVATE) if each not in known)
        # What a prompt ends in says whether there is a thought, but where a message says it.
        marks = self._thinker.marks
        ends = (marks.begin.rstrip(), marks.end) if marks else ()
        guarded = [
            replace(message, content=look_alikes.guarded(message.content, guard, ends))
            for message in messages
        ]
        try:
            given = look_alikes.broken(arguments, guard)
        except (RecursionError, TypeError) as error:
            raise PromptError(f"{self.name}: chat_template_kwargs: {error}") from error
        return self._template.write(guarded, given, guard), guard

    @functools.cached_property
    def _template(self) -> "ChatTemplate":
        """The chat template, compiled when it is needed: plain texts go without."""
        from eva_local.llama.chat_template import ChatTemplate

        spelled, vocabulary = self._vocabulary.spelled, self._vocabulary
        tokens = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id}
        names = {name: spelled(i) for name, i in tokens.items() if i is not None}
        return ChatTemplate(self._source, self.name, names)

    @functools.cached_property
    def _thinker(self) -> "Thinker":
        from eva_local.llama.chat_template import Thinker

        return Thinker(self._template, self._given)

    @functools.cached_property
    def _look_alikes(self) -> "LookAlikes":
        """What in a message is not to be taken for the template's."""
        words = [word for word in self._control if word not in _THOUGHT]
        return LookAlikes(words, self._template.literals)

    def _encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Encode text that `begins` behind a control token, or goes on, in one go as llama.cpp.

        It is cut within every word that would be read as a token of the template.
        """
        if not text:
            return []
        starts = [0, *(start + 1 for start, _ in self._typable.find(text)), len(text)]
        first, *rest = (
            _expressible(text[start:end].encode("utf-8", "replace"), self._tokenizer)
            for start, end in pairwise(starts)
        )
        ids = self._tokenizer.read(first) if begins else self._tokenizer.encode(first)
        for part in rest:
            ids += self._tokenizer.encode(part)
        return ids

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos_id = self._vocabulary.bos_id
        if bos_id is not None and self._vocabulary.add_bos and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        if not ids:
            # A model predicts after a token only; END of a text before is the usual start.
            ends = (bos_id, self._vocabulary.eos_id, min(self._vocabulary.end_ids, default=0))
            ids.append(next(token_id for token_id in ends if token_id is not None))
        return ids


def _control(vocabulary: Vocabulary, template: str) -> dict[str, int]:
    """Return the tokens that a template writes by their spelling.

    Beside what no text can be, these are borders of turns in files whose added tokens are not
    marked as control tokens. What is white space is no border.
    """
    words = ((w, i) for w, i in vocabulary.markers.items() if len(w) > 1 and not w.isspace())
    return {word: i for word, i in words if not vocabulary.speakable[i] or word in template}


def _plain(messages: Sequence[Message]) -> str:
    lines = [_PLAIN_NAMES[message.role] + message.content.strip() for message in messages]
    if messages[-1].role != "assistant":
        lines.append("Assistant:")
    return "\n\n".join(lines)


def _expressible(data: bytes, tokenizer: Tokenizer) -> bytes:
    """Put U+FFFD, or else a question mark, for characters that the vocabulary cannot spell."""
    missing = tokenizer.missing_bytes
    if not missing or missing.isdisjoint(data):
        return data
    mark = "\N{REPLACEMENT CHARACTER}".encode()
    if not missing.isdisjoint(mark):
        mark = b"?"
    log.warning("a member has no token for a character of the prompt; it reads %r there", mark)
    return without(data, missing, mark)


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
