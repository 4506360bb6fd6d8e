"""Conversations as each member's own chat template writes them, as tokens."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from eva_local.llama.model import Model
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Vocabulary
from eva_local.llama.words import LookAlikes, Words
from eva_local.types import Message

if TYPE_CHECKING:
    from eva_local.llama.chat_template import ChatTemplate

log = logging.getLogger("eva_local")

Prompt = str | Sequence[Message]

# What a model without a chat template is given: a dialogue that it can go on with.
_PLAIN_NAMES = {"system": "", "user": "User: ", "assistant": "Assistant: "}
# Templates look for these in messages, so they are what they are there too.
_THOUGHT = ("<think>", "</think>")
# Characters that mean nothing; one that no message has guards what looks like a control token.
_PRIVATE = range(0xF0000, 0xFFFFE)
# What llama.cpp strips beside tokens that want it.
_WHITE = " \t\n\v\f\r"


class PromptWriter:
    """Turn prompts into the tokens of one member."""

    def __init__(self, model: Model, name: str = "") -> None:
        """Write for `model`; errors give its `name`, or else that of its file."""
        self._name = name or model.path.name
        self._vocabulary = model.vocabulary
        self._tokenizer = model.tokenizer
        self._source = model.chat_template or ""
        self._control = _control(model.vocabulary, self._source)
        self._finder = Words(self._control)
        speakable = model.vocabulary.speakable
        # Tokenisers find these in any text.
        self._typable = Words(
            [
                word
                for word, token_id in self._control.items()
                if speakable[token_id] and word not in _THOUGHT
            ]
        )

    def tokens(
        self, prompt: Prompt | bytes, arguments: Mapping[str, object] | None = None
    ) -> list[int]:
        """Return the tokens of a conversation (opened for the answer) or of a plain text.

        `arguments` are keyword arguments of the chat template. Where the last message is an
        answer, that is left open. A text in bytes may begin or end within a character.
        Exactly one BOS stands in front where the model wants one. Control tokens come from
        the template alone: in a message they are spelled out as text.
        Raises PromptError where the template refuses the conversation or fails at it.
        """
        if isinstance(prompt, bytes):
            return self._with_bos(self._tokenizer.encode(_expressible(prompt, self._tokenizer)))
        ids: list[int] = []
        for segment in self._segments(prompt, arguments or {}):
            ids += [segment] if isinstance(segment, int) else self._encode(segment)
        return self._with_bos(ids)

    def least(self, prompt: Prompt | bytes, arguments: Mapping[str, object] | None = None) -> int:
        """Return how many tokens a prompt has at least, by its control tokens and its bytes."""
        n_control, said = 0, b""
        if isinstance(prompt, bytes):
            said = prompt
        else:
            segments = list(self._segments(prompt, arguments or {}))
            n_control = sum(isinstance(segment, int) for segment in segments)
            texts = (segment for segment in segments if isinstance(segment, str))
            # SentencePiece reads U+2581, three bytes, as a space.
            said = "".join(texts).replace("\u2581", " ").encode("utf-8", "replace")
        # What cannot be spelled is read as another character, of a quarter of its bytes at least.
        n_bytes = len(said) // (1 if self._tokenizer.missing_bytes.isdisjoint(said) else 4)
        return n_control + self._tokenizer.least(n_bytes)

    def _segments(self, prompt: Prompt, arguments: Mapping[str, object]) -> Iterator[int | str]:
        """Yield a prompt as the control tokens of its template and the texts between them."""
        if isinstance(prompt, str) or not self._source:
            yield prompt if isinstance(prompt, str) else _plain(prompt)
            return
        text, guard = self._render(prompt, arguments)
        vocabulary = self._vocabulary
        at, before = 0, None
        for start, end in [*self._finder.find(text), (len(text), len(text))]:
            between, after = text[at:start].replace(guard, ""), self._control.get(text[start:end])
            if before in vocabulary.strips_right:
                between = between.lstrip(_WHITE)
            if after in vocabulary.strips_left:
                between = between.rstrip(_WHITE)
            yield between
            if after is not None:
                yield after
            at, before = end, after

    def _render(
        self, messages: Sequence[Message], arguments: Mapping[str, object]
    ) -> tuple[str, str]:
        """Return a conversation as its template writes it, and the guard that stands in it."""
        look_alikes = self._look_alikes
        known = [self._source, *(message.content for message in messages)]
        guard = next(
            character
            for character in map(chr, _PRIVATE)
            if not any(character in text for text in known)
        )
        guarded = [
            replace(message, content=look_alikes.guarded(message.content, guard))
            for message in messages
        ]
        given = look_alikes.broken(arguments, guard)
        return self._template.write(guarded, given, guard), guard

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        """The chat template, compiled when it is needed: plain texts go without."""
        from eva_local.llama.chat_template import ChatTemplate

        spelled, vocabulary = self._vocabulary.spelled, self._vocabulary
        tokens = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id}
        names = {name: spelled(i) for name, i in tokens.items() if i is not None}
        return ChatTemplate(self._source, self._name, names)

    @functools.cached_property
    def _look_alikes(self) -> LookAlikes:
        """What in a message is not to be taken for the template's."""
        words = [word for word in self._control if word not in _THOUGHT]
        return LookAlikes(words, self._template.literals)

    def _encode(self, text: str) -> list[int]:
        """Encode text between control tokens in one go, as llama.cpp does.

        It is cut within every word that would be read as a token of the template.
        """
        if not text:
            return []
        starts = [0, *(start + 1 for start, _ in self._typable.find(text)), len(text)]
        first, *rest = (
            _expressible(text[start:end].encode("utf-8", "replace"), self._tokenizer)
            for start, end in pairwise(starts)
        )
        ids = self._tokenizer.read(first)
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
    return {
        word: token_id
        for word, token_id in vocabulary.markers.items()
        if len(word) > 1
        and not word.isspace()
        and (not vocabulary.speakable[token_id] or word in template)
    }


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
    return b"".join(
        piece if missing.isdisjoint(piece) else mark
        for piece in (
            character.encode("utf-8", "surrogateescape")
            for character in data.decode("utf-8", "surrogateescape")
        )
    )
