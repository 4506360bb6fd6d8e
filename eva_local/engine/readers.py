"""The members as readers: what is asked of them, in tokens and symbols."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from eva_local.engine.engine import Engine, too_long
from eva_local.engine.request import AnyPrompt
from eva_local.errors import ClosedError, InputError
from eva_local.llama.model import Model
from eva_local.llama.prompt import Prompt, PromptWriter
from eva_local.types import Message

log = logging.getLogger("eva_local")

# A character has no more in UTF-8.
_MOST_BYTES = 4
# Fewer bytes are read in no time, and then each member's exact number can be told.
_QUICKLY_READ = 1 << 18


class Readers:
    """Turns prompts into each member's tokens, and texts into symbols, for any thread.

    `only`, the number of a member, reads as that one does when it writes alone. Everything
    raises ClosedError after `close`.
    """

    def __init__(self, models: Sequence[Model], engine: Engine) -> None:
        """Read for the members of `engine`, which are `models`."""
        self._models = tuple(models)
        self._engine = engine
        self._writers = [
            PromptWriter(model, name) for model, name in zip(models, engine.names, strict=True)
        ]
        self._untaught = {i for i, model in enumerate(models) if not model.chat_template}
        # Held while tokenisers are at work, so that nobody frees them meanwhile.
        self._at_work = threading.Lock()
        self._closed = False

    def close(self, free: Callable[[], None]) -> None:
        """Read nothing more; `free` is called when nobody reads."""
        with self._at_work:
            self._closed = True
            free()

    def tokens(
        self, prompt: AnyPrompt, only: int | None = None, *, fitting: bool = False
    ) -> list[list[int]]:
        """Return a prompt as each member reads it.

        Raises InputError and PromptError where it cannot be put to a member. With `fitting` it
        raises ContextError, before anybody has read it, for a prompt whose bytes alone prove
        that it does not fit.
        """
        plain = self._plain(prompt, only)
        members = self._members(only)
        with self._at_work:
            self._refuse_closed()
            if not isinstance(plain, str | bytes):
                self._say_untaught(members)
            if fitting:
                self._refuse_long(plain, members)
            return [self._writers[member].tokens(plain) for member in members]

    def spell(self, text: bytes, only: int | None = None) -> list[int]:
        """Return symbols whose pieces join to `text`."""
        with self._at_work:
            self._refuse_closed()
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
        """Return the symbols of a text; raise InputError where a member cannot write it.

        Raises ContextError where its bytes alone prove that it does not fit.
        """
        data = (
            text.encode("utf-8", "replace") if isinstance(text, str) else self.bytes_of(text, only)
        )
        readers = {member: self._models[member].tokenizer for member in self._members(only)}
        self._refuse(
            "text to be scored",
            {member: tokenizer.least(len(data)) for member, tokenizer in readers.items()},
        )
        if any(not each.missing_bytes.isdisjoint(data) for each in readers.values()):
            raise InputError("a member has no token for a character of the text to be scored")
        return self.spell(data, only) if isinstance(text, str) else text

    def _say_untaught(self, members: Sequence[int]) -> None:
        """Say once of each member that has never seen a conversation what it is given."""
        for member in self._untaught.intersection(members):
            self._untaught.remove(member)
            log.warning(
                "%s has no chat template: it is given conversations as a plain dialogue "
                "(User: … Assistant: …)",
                self._engine.names[member],
            )

    def _members(self, only: int | None) -> Sequence[int]:
        return range(len(self._models)) if only is None else [only]

    def _refuse_long(self, plain: Prompt | bytes, members: Sequence[int]) -> None:
        texts = [plain] if isinstance(plain, str | bytes) else [each.content for each in plain]
        most = _MOST_BYTES * sum(map(len, texts))
        if most < _QUICKLY_READ:
            return
        # Only what may be too long is put into a template once more.
        doubtful = [
            member
            for member in members
            if self._models[member].tokenizer.least(most) >= self._models[member].n_ctx
        ]
        self._refuse("prompt", {member: self._writers[member].least(plain) for member in doubtful})

    def _refuse(self, what: str, least: Mapping[int, int]) -> None:
        """Raise ContextError where a text has at least more tokens than a member can hold."""
        found = [
            (self._engine.names[member], count, self._models[member].n_ctx)
            for member, count in least.items()
            if count >= self._models[member].n_ctx
        ]
        if found:
            raise too_long(what, found, "at least ")

    def _plain(self, prompt: AnyPrompt, only: int | None) -> Prompt | bytes:
        """Return a prompt with the bytes that symbols stand for."""
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

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClosedError()
