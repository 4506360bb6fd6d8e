"""A model's chat template: a conversation as the text that it was taught with, and its thoughts.

The same text as `render_jinja_template` of transformers writes, which is what templates are
made for. Where that would leave a message out, or refuse the order of the roles, the
conversation is told in a way that the template takes.
"""

import datetime as dt
import functools
import itertools
import json
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from eva_local.errors import PromptError
from eva_local.llama.prompt import Words
from eva_local.types import Message, Thinking

# A complaint of a template may quote a whole conversation.
_LONGEST_REASON = 200
# Stands behind a last answer that is gone on with. Some templates know it: it is transformers'.
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
_THOUGHT_END = "</think>"
_PROBE = Message("user", "a message to be found")
_RESERVED = ("messages", "add_generation_prompt")
_NONE: Mapping[str, object] = {}
# What marks there are, and how they look in templates.
_MARKS = tomllib.loads(resources.files(__package__).joinpath("marks.toml").read_text("utf-8"))


class ChatTemplate:
    """A compiled template; whatever goes wrong in it is a PromptError that names its owner.

    `literals` are the strings in its code that are more than a word: what it may look for in
    messages, and take out of them. `variables` are what it asks for by name.
    """

    def __init__(self, source: str, owner: str, names: Mapping[str, str]) -> None:
        """Compile the template of `owner`; `names` (bos_token, eos_token) are told to it.

        Templates come with the model file and are not trusted: they run in jinja2's sandbox.
        """
        self.source = source
        self._owner = owner
        self._names = names
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: dt.datetime.now().strftime(form)
        try:
            tree = environment.parse(source)
            constants = (constant.value for constant in tree.find_all(nodes.Const))
            texts = (each for each in constants if isinstance(each, str) and each.strip())
            self.literals = frozenset(text for text in texts if not text.isidentifier())
            self.variables = meta.find_undeclared_variables(tree)
            self._template = environment.from_string(tree)
        except Exception as error:
            raise PromptError(
                f"{owner}: its chat template cannot be read: {_reason(error)}; "
                "give another as chat_template, or plain text instead of messages"
            ) from error
        self._cuts = Words(self.literals)

    def write(
        self, messages: Sequence[Message], arguments: Mapping[str, object], guard: str
    ) -> str:
        """Return a conversation as text, open for the answer or at the end of a last answer.

        `arguments` are the template's own (such as enable_thinking). A `guard` is a character
        that may stand anywhere in the messages and counts for nothing.
        Raises PromptError where no way of telling the conversation has all of its messages.
        """
        for name in _RESERVED:
            if name in arguments:
                raise PromptError(f"{self._owner}: a chat template's {name} cannot be set")
        problems: list[PromptError] = []
        for told in _ways(messages):
            try:
                text = self._render(told, arguments, parts=self._wants_parts)
                if self._has_all(text, told, guard) and self._takes_all(told, arguments):
                    return text
                raise PromptError(f"{self._owner}: its chat template leaves out a message")
            except PromptError as error:
                problems.append(error)
        raise problems[0]

    @functools.cached_property
    def _wants_parts(self) -> bool:

        def writes(*, parts: bool) -> bool:
            try:
                return _PROBE.content in self._render([_PROBE], {}, parts=parts)
            except PromptError:
                return False

        return not writes(parts=False) and writes(parts=True)

    def _render(
        self, messages: Sequence[Message], arguments: Mapping[str, object], *, parts: bool
    ) -> str:
        is_open = messages[-1].role == "assistant"
        texts = [message.content for message in messages]
        if is_open:
            texts[-1] += _OPEN_END
        contents = [[{"type": "text", "text": text}] if parts else text for text in texts]
        turns = [
            {"role": message.role, "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        given = {**self._names, **arguments}
        try:
            text = self._template.render(given, messages=turns, add_generation_prompt=not is_open)
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(
                f"{self._owner}: its chat template failed: {_reason(error)}"
            ) from error
        return self._opened(text) if is_open else text

    def _opened(self, text: str) -> str:
        at = text.rfind(_OPEN_END.rstrip())
        if at < 0:
            raise PromptError(f"{self._owner}: its chat template leaves out the last answer")
        # Where the space behind it is gone, the template strips its messages.
        return text[:at] if text.startswith(_OPEN_END, at) else text[:at].rstrip()

    def _has_all(self, text: str, messages: Sequence[Message], guard: str) -> bool:
        """Return whether a text has all messages, but for thoughts, white space and switches."""
        written = _solid(text, guard)
        for message in messages:
            if _solid(message.content, guard) in written:
                continue
            at = 0
            for part in self._parts(message):
                found = written.find(_solid(part, guard), at)
                at = found if found >= 0 else written.find(_solid(_to_json(part)[1:-1], guard), at)
                if at < 0:
                    return False
        return True

    def _takes_all(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> bool:
        """Return whether each message has a place: what one says may stand in another's text."""
        words = [f"word{number}{secrets.token_hex(16)}" for number in range(len(messages))]
        asked = [replace(each, content=word) for each, word in zip(messages, words, strict=True)]
        text = self._render(asked, arguments, parts=self._wants_parts).lower()
        said = zip(messages, words, strict=True)
        return all(word in text for message, word in said if message.content.strip())

    def _parts(self, message: Message) -> Sequence[str]:
        if message.role != "assistant":
            return [part for part, _ in self._cuts.split(message.content)]
        parts = self._cuts.split(message.content.rpartition(_THOUGHT_END)[2])
        # Some know thoughts by marks of their own, and the answer comes last.
        return [part for part, _ in parts if part.strip()][-1:]

    def _refuse(self, reason: object) -> None:
        said = _one_line(str(reason))
        raise PromptError(f"{self._owner}: its chat template refuses this conversation: {said}")


class _Generation(Extension):
    """`{% generation %}`: marks what the model wrote, for training; here it is a plain block."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any
) -> str:
    """Stand in for jinja2's filter, which writes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _ways(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield a conversation as it is, then as stricter and stricter templates take it."""
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    ways = (
        list(messages),
        _joined(messages),
        # System messages at the beginning only, then nowhere.
        _joined([*leading, *_by_user(messages[len(leading) :])]),
        _joined(_by_user(messages)),
    )
    for number, way in enumerate(ways):
        if way not in ways[:number]:
            yield way


def _by_user(messages: Sequence[Message]) -> list[Message]:
    return [replace(each, role="user") if each.role == "system" else each for each in messages]


def _joined(messages: Sequence[Message]) -> list[Message]:
    turns = itertools.groupby(messages, key=lambda message: message.role)
    return [Message(role, "\n\n".join(each.content for each in turn)) for role, turn in turns]


def _solid(text: str, guard: str) -> str:
    return "".join(text.replace(guard, "").split())


def _reason(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {_one_line(error.message or '')}"
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_REASON]


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before a thought, what ends it, and what leads from there to the answer."""

    begin: str
    end: str
    answer: str


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
    for known in _MARKS["thought"]:
        for found in re.finditer(known["form"], text):
            yield Marks(*(part.replace("{}", found[1]) for part in known["marks"]))
