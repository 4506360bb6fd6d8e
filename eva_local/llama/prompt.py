"""Conversations as each member's own chat template writes them, as tokens."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from eva_local.errors import PromptError
from eva_local.llama.model import Model
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Vocabulary
from eva_local.types import Message

log = logging.getLogger("eva_local")

Prompt = str | Sequence[Message]

# What a model without a chat template is given: a dialogue that it can go on with.
_PLAIN_NAMES = {"system": "", "user": "User: ", "assistant": "Assistant: "}
_SPACE = "\N{EM SPACE}"
# A complaint of a template may quote a whole conversation.
_LONGEST_REASON = 200


class PromptWriter:
    """Turn prompts into the tokens of one member."""

    def __init__(self, model: Model, name: str = "") -> None:
        """Write for `model`; errors give its `name`, or else that of its file."""
        self._name = name or model.path.name
        self._vocabulary = model.vocabulary
        self._tokenizer = model.tokenizer
        self._source = model.chat_template or ""
        self._markers = _pattern(model.vocabulary.markers)
        self._guarded = _pattern(_typable(model.vocabulary, self._source))

    def tokens(self, prompt: Prompt | bytes) -> list[int]:
        """Return the tokens of a conversation (opened for the answer) or of a plain text.

        A text in bytes may begin or end within a character.
        Exactly one BOS stands in front where the model wants one. Control tokens come from
        the template alone: in a message they are spelled out as text.
        Raises PromptError where the template refuses the conversation or fails at it.
        """
        if isinstance(prompt, bytes):
            return self._with_bos(self._encode_bytes(prompt))
        return self._with_bos(self._encode(self._parts(prompt)))

    def least(self, prompt: Prompt | bytes) -> int:
        """Return how many tokens a prompt has at least, by what the template keeps of its bytes."""
        if isinstance(prompt, bytes):
            said = prompt
        else:
            texts = (text for text, is_template in self._parts(prompt) if not is_template)
            said = "".join(texts).encode("utf-8", "replace")
        # What cannot be spelled is read as another character, of a quarter of its bytes at least.
        missing = self._tokenizer.missing_bytes
        return self._tokenizer.least(len(said) // (1 if missing.isdisjoint(said) else 4))

    def _parts(self, prompt: Prompt) -> list[tuple[str, bool]]:
        """Return a prompt as (text, written by the template) segments."""
        if isinstance(prompt, str):
            return [(prompt, False)]
        return self._render(prompt) if self._source else [(_plain(prompt), False)]

    @functools.cached_property
    def _template(self) -> Callable[[list[dict[str, str]]], str]:
        """The chat template, compiled when it is needed: plain texts go without."""
        spelled, vocabulary = self._vocabulary.spelled, self._vocabulary
        names = {"bos_token": spelled(vocabulary.bos_id), "eos_token": spelled(vocabulary.eos_id)}
        return _compile(self._source, names, self._name)

    def _render(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """Return the conversation as (text, written by the template) segments."""
        template = self._template
        contents = {f"STANDIN{secrets.token_hex(16)}": message.content for message in messages}
        turns = [
            {"role": message.role, "content": f"{_SPACE}{word}{_SPACE}"}
            for message, word in zip(messages, contents, strict=True)
        ]
        try:
            text = template(turns)
            refused = messages[0].role == "system" and next(iter(contents)) not in text
        except PromptError:
            if messages[0].role != "system":
                raise
            refused = True
        if refused:
            return self._render(_folded(messages))
        return list(_segments(text, contents))

    def _encode(self, segments: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode text between control tokens in one go, as llama.cpp does."""
        ids: list[int] = []
        text = ""
        for segment, is_template in segments:
            if not is_template:
                *parts, rest = self._harmless(segment)
                for part in parts:
                    ids += self._encode_text(text + part)
                    text = ""
                text += rest
                continue
            at = 0
            for found in _found(self._markers, segment):
                ids += self._encode_text(text + segment[at : found.start()])
                ids.append(self._vocabulary.markers[found[0]])
                text, at = "", found.end()
            text += segment[at:]
        return ids + self._encode_text(text)

    def _harmless(self, text: str) -> Iterator[str]:
        """Cut a person's text within every word that would be read as a token of the template."""
        at = 0
        for found in _found(self._guarded, text):
            yield text[at : found.start() + 1]
            at = found.start() + 1
        yield text[at:]

    def _encode_text(self, text: str) -> list[int]:
        return self._encode_bytes(text.encode("utf-8", "replace"))

    def _encode_bytes(self, data: bytes) -> list[int]:
        return self._tokenizer.encode(_expressible(data, self._tokenizer)) if data else []

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos_id = self._vocabulary.bos_id
        if bos_id is not None and self._vocabulary.add_bos and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        if not ids:
            # A model predicts after a token only; END of a text before is the usual start.
            ends = (bos_id, self._vocabulary.eos_id, min(self._vocabulary.end_ids, default=0))
            ids.append(next(token_id for token_id in ends if token_id is not None))
        return ids


def _segments(text: str, contents: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Put the contents of messages back where the words stand that stood for them.

    The rare spaces around such a word show whether the template strips what it is given.
    """
    at = 0
    for found in re.finditer(f"({_SPACE}?)(STANDIN[0-9a-f]{{32}})({_SPACE}?)", text):
        if (content := contents.get(found[2])) is None:
            continue
        yield text[at : found.start()], True
        content = content if found[1] else content.lstrip()
        yield content if found[3] else content.rstrip(), False
        at = found.end()
    yield text[at:], True


def _compile(
    source: str, names: Mapping[str, str], owner: str
) -> Callable[[list[dict[str, str]]], str]:
    """Return a function that renders the chat template of `owner`; `names` are told to it.

    Templates come with the model file and are not trusted: they run in jinja2's sandbox, and
    whatever they raise is a PromptError.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: object) -> None:
        said = _one_line(str(reason))
        raise PromptError(f"{owner}: its chat template refuses this conversation: {said}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: dt.datetime.now().strftime(form)
    try:
        template = environment.from_string(source)
    except Exception as error:
        raise PromptError(
            f"{owner}: its chat template cannot be read: {_reason(error)}; "
            "use another file of the model, or plain text instead of messages"
        ) from error

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return template.render(
                messages=messages, add_generation_prompt=True, tools=None, **names
            )
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(f"{owner}: its chat template failed: {_reason(error)}") from error

    return render


def _reason(error: Exception) -> str:
    """Say what went wrong in a template."""
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {_one_line(error.message or '')}"
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_REASON]


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Put the system message in front of the first user turn."""
    system, *rest = messages
    for position, message in enumerate(rest):
        if message.role == "user":
            rest[position] = replace(message, content=f"{system.content}\n\n{message.content}")
            return rest
    return [Message("user", system.content), *rest]


def _plain(messages: Sequence[Message]) -> str:
    lines = [_PLAIN_NAMES[message.role] + message.content.strip() for message in messages]
    return "\n\n".join([*lines, "Assistant:"])


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds words, the longest first."""
    spellings = sorted(filter(None, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings))) if spellings else None


def _found(pattern: re.Pattern[str] | None, text: str) -> Iterator[re.Match[str]]:
    return iter(()) if pattern is None else pattern.finditer(text)


def _typable(vocabulary: Vocabulary, template: str) -> list[str]:
    """Return the words of a template that are tokens also where a person types them.

    A tokeniser finds tokens that were added by the user of the model in any text, and some
    files have the borders of turns among them. What is white space is no border.
    """
    return [
        spelling
        for spelling, token_id in vocabulary.markers.items()
        if vocabulary.speakable[token_id]
        and len(spelling) > 1
        and not spelling.isspace()
        and spelling in template
    ]


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
