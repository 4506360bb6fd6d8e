"""Rows of the input, what each asks for, and the template and options that hold for all."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass

from eva_local.errors import InputError
from eva_local.openai.request import Asked
from eva_local.types import Message, Sampling

# The bare number of a line may well be the id of another row.
LINE = "line "


@dataclass(slots=True)
class Row:
    """One row: `asked`, or a `problem` in plain words. `line` is where it begins, from 1.

    A row without an id of its own has an `id` that tells the line, and a `mark`: the hash of
    what it says, by which a change is noticed.
    """

    line: int
    id: str | int
    mark: str = ""
    asked: Asked | None = None
    problem: str = ""
    endpoint: str = ""

    @property
    def key(self) -> str:
        """What no other row of the input may have: an own id is never one that tells a line."""
        return f"{self.mark}:{self.id}"


class Template:
    """A prompt template: `{column}` stands for a value, `{{` and `}}` for braces.

    What Python's own format would do beyond that (attributes, indices, widths) is refused: rows
    are data. Raises InputError where the braces do not match or name no column.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise InputError(f"the prompt template cannot be read: {error}") from error
        for _, column, form, conversion in parts:
            if column is not None and (not column or form or conversion):
                raise InputError(
                    "the prompt template may only have {column}; write {{ and }} for braces"
                )
        self._parts = [(fixed, column or "") for fixed, column, _, _ in parts]
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column))
        if not self.columns:
            raise InputError("the prompt template names no {column}: all prompts would be the same")

    def fill(self, values: Mapping[str, object]) -> str:
        """Return the prompt of a row; raise InputError where it lacks a value."""
        words = {"": ""}
        for column in self.columns:
            if column not in values:
                raise InputError(f"has no {column}, which the prompt template names")
            value = values[column]
            words[column] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            )
        return "".join(fixed + words[column] for fixed, column in self._parts)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What holds for all rows: the options of the command.

    `n_top` as in `Asked`. `raw` prompts are gone on with as they are, others are a user's message.
    `system` stands before all messages, unless they have a system message of their own.
    """

    sampling: Sampling
    system: str | None = None
    raw: bool = False
    template: Template | None = None
    n_top: int | None = None

    def asked(self, prompt: str | list[Message], sampling: Sampling) -> Asked:
        """Return what a row asks for; raise InputError for messages where prompts are `raw`."""
        if self.raw and not isinstance(prompt, str):
            raise InputError("has messages, and --raw takes a prompt: leave --raw out")
        if not self.raw:
            prompt = [Message("user", prompt)] if isinstance(prompt, str) else prompt
            if self.system is not None and all(message.role != "system" for message in prompt):
                prompt = [Message("system", self.system), *prompt]
        return Asked(prompt, sampling, self.n_top)


def checked_id(value: object) -> str | int:
    """Return a row's own id; raise InputError for what can be none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError("id must be a text or a whole number")
    return value
