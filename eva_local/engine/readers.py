"""The members as readers: what is asked of them, in tokens and symbols."""

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from eva_local.config.specs import MemberSpec
from eva_local.engine.conversation import told
from eva_local.engine.engine import Engine
from eva_local.engine.request import AnyPrompt
from eva_local.errors import ClosedError, InputError
from eva_local.llama.model import Model
from eva_local.llama.prompt import PLAIN_STOP, Prompt, PromptWriter, Thought
from eva_local.types import Message, Sampling, Thinking

log = logging.getLogger("eva_local")

# Chat templates of requests that are kept compiled.
_TEMPLATES = 8


class Readers:
    """Turns prompts into each member's tokens, and texts into symbols, for any thread.

    `only`, the number of a member, reads as that one does when it writes alone. Everything
    raises ClosedError after `close`.
    """

    def __init__(
        self, models: Sequence[Model], engine: Engine, members: Sequence[MemberSpec]
    ) -> None:
        self._models = tuple(models)
        self._engine = engine
        self._roles = tuple(members)
        self._writer = functools.lru_cache(_TEMPLATES * len(models))(self._new_writer)
        # What was said once, of whom.
        self._said: set[tuple[str, str]] = set()
        # Held while tokenisers are at work, so that nobody frees them meanwhile.
        self._at_work = threading.Lock()
        self._closed = False

    def close(self, free: Callable[[], None]) -> None:
        """Read nothing more; `free` is called when nobody reads."""
        with self._at_work:
            self._closed = True
            free()

    def read(
        self,
        prompt: AnyPrompt,
        sampling: Sampling,
        only: int | None = None,
        *,
        fitting: bool = False,
    ) -> list[tuple[list[int], Thought | None]]:
        """Return a prompt as each member reads it, and the thought that it leaves open, if any.

        Raises InputError and PromptError where it cannot be put to a member. With `fitting` it
        raises ContextError for a prompt that does not fit.
        """
        plain = told(self._plain(prompt, only), sampling)
        members = self._members(only)
        thinking = sampling.thinking
        if thinking == "auto" and len(members) > 1:
            thinking = "off"
        if sampling.thinking_budget == 0:
            thinking = "off"
        with self._at_work:
            if self._closed:
                raise ClosedError()
            writers = {member: self._writer(member, sampling.chat_template) for member in members}
            said = {member: self._in_role(member, plain) for member in members}
            if fitting:
                self._say_untold(plain, writers, thinking)
            unmarked: set[int] = set()
            if thinking == "apart":
                thinking, unmarked = "on", self._instruct(said, writers, sampling)
            arguments = sampling.chat_template_kwargs
            found = []
            for member, writer in writers.items():
                tokens, thought = writer.read(said[member], arguments, thinking)
                if member in unmarked:
                    is_text = isinstance(plain, str | bytes)
                    thought = writer.marked(sampling.thinking_mark, is_text=is_text)
                found.append((tokens, thought))
        if fitting:
            lengths = {member: len(tokens) for member, (tokens, _) in zip(said, found, strict=True)}
            self._engine.refuse_too_long("prompt", lengths)
        return found

    def _instruct(
        self,
        said: dict[int, Prompt | bytes],
        writers: Mapping[int, PromptWriter],
        sampling: Sampling,
    ) -> set[int]:
        """Tell members whose templates know no thoughts how to think; return which these are."""
        mark = sampling.thinking_mark
        instruction = sampling.thinking_instruction.replace("{mark}", mark)
        unmarked: set[int] = set()
        for member, prompt in said.items():
            if isinstance(prompt, str | bytes):
                unmarked.add(member)
            elif not writers[member].can_think and prompt[-1].role == "user":
                unmarked.add(member)
                text = f"{prompt[-1].content}\n\n{instruction}"
                said[member] = [*prompt[:-1], replace(prompt[-1], content=text)]
        return unmarked

    def stops(self, prompt: AnyPrompt, sampling: Sampling, only: int | None = None) -> Sampling:
        """Return how to write, where a member that reads a dialogue would go on with the user."""
        if isinstance(prompt, str) or not isinstance(prompt[0], Message):
            return sampling
        plain = any(self._writer(m, sampling.chat_template).is_plain for m in self._members(only))
        return replace(sampling, stop=(*sampling.stop, PLAIN_STOP)) if plain else sampling

    def spell(self, text: bytes, only: int | None = None) -> list[int]:
        """Return symbols whose pieces join to `text`."""
        with self._at_work:
            if self._closed:
                raise ClosedError()
            return self._engine.panel(only).space.spell(text)

    def bytes_of(self, symbols: Sequence[int], only: int | None = None) -> bytes:
        """Return what symbols stand for; raise InputError where it is no text."""
        space = self._engine.panel(only).space
        for symbol in symbols:
            if not space.is_text(symbol):
                raise InputError(
                    f"{symbol} is no text here: it must be a symbol under {space.end} that is "
                    "no control token; put conversations as messages"
                )
        return b"".join(map(space.piece, symbols))

    def writable(self, text: str | Sequence[int], only: int | None = None) -> Sequence[int]:
        """Return the symbols of a text; raise InputError or ContextError where it cannot be."""
        data = (
            text.encode("utf-8", "replace") if isinstance(text, str) else self.bytes_of(text, only)
        )
        readers = {member: self._models[member].tokenizer for member in self._members(only)}
        least = {member: tokenizer.least(len(data)) for member, tokenizer in readers.items()}
        self._engine.refuse_too_long("text to be scored", least, "at least ")
        if any(not each.missing_bytes.isdisjoint(data) for each in readers.values()):
            raise InputError("a member has no token for a character of the text to be scored")
        return self.spell(data, only) if isinstance(text, str) else text

    def _new_writer(self, member: int, template: str | None) -> PromptWriter:
        model, role = self._models[member], self._roles[member]
        own = template or role.chat_template
        return PromptWriter(model, role.name, own, role.chat_template_kwargs)

    def _in_role(self, member: int, plain: Prompt | bytes) -> Prompt | bytes:
        role = self._roles[member]
        if isinstance(plain, str | bytes):
            prefix = role.prefix
            return prefix + plain if isinstance(plain, str) else prefix.encode() + plain
        messages = list(plain)
        for who, text in (("user", role.prefix), ("system", f"{role.system}\n\n")):
            at = next((n for n, each in enumerate(messages) if each.role == who), None)
            if at is not None and text.strip():
                messages[at] = replace(messages[at], content=text + messages[at].content)
            elif who == "system" and role.system:
                messages.insert(0, Message("system", role.system))
        return messages

    def _say_untold(
        self, plain: Prompt | bytes, writers: Mapping[int, PromptWriter], thinking: Thinking
    ) -> None:
        """Say once of each member what it does not do, or know, of what is asked for."""
        for member, writer in writers.items():
            problems: dict[str, object] = {
                "%s has no chat template: it is given conversations as a plain dialogue "
                "(User: … Assistant: …)": writer.is_plain,
                "%s cannot think by itself: its chat template knows no thoughts, so it reads them "
                "as the beginning of its answer": thinking == "on" and not writer.can_think,
            }
            if isinstance(plain, str | bytes):
                # Who gives symbols means them.
                system = isinstance(plain, str) and self._roles[member].system
                problems = {
                    "%s: its system message is not told: a plain text has none": system,
                    "%s does not think: a plain text is gone on with": thinking == "on",
                }
            for problem in filter(problems.get, problems):
                if (told := (problem, writer.name)) not in self._said:
                    self._said.add(told)
                    log.warning(*told)

    def _members(self, only: int | None) -> Sequence[int]:
        return range(len(self._models)) if only is None else [only]

    def _plain(self, prompt: AnyPrompt, only: int | None) -> Prompt | bytes:
        if isinstance(prompt, str):
            return prompt
        if not prompt:
            raise InputError("a conversation needs at least one message")
        messages = [each for each in prompt if isinstance(each, Message)]
        symbols = [each for each in prompt if isinstance(each, int)]
        if len(messages) == len(prompt):
            return messages
        if len(symbols) == len(prompt):
            return self.bytes_of(symbols, only)
        raise InputError("a prompt is a text, a list of Message, or a list of symbols")
