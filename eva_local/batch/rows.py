"""Rows of the input: what each asks for, or why it cannot be answered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from eva_local.batch.template import Template
from eva_local.errors import InputError
from eva_local.openai.request import Asked
from eva_local.types import Message, Sampling

_LINE = "line "


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `asked`, or a `problem` in plain words.

    `line` is where it begins, from 1. A row without an id of its own has an `id` that tells the
    line, and a `mark`: the hash of what it says, by which a change is noticed.
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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What holds for all rows: the options of the command.

    `n_top` as in `Asked`; `shares` asks how much each member carried. `raw` prompts are gone on
    with as they are, others are a user's message. `system` stands before all messages, unless
    they have a system message of their own.
    """

    sampling: Sampling
    system: str | None = None
    raw: bool = False
    template: Template | None = None
    n_top: int | None = None
    shares: bool = False

    def asked(self, prompt: str | list[Message], sampling: Sampling) -> Asked:
        """Return what a row asks for; raise InputError for messages where prompts are `raw`."""
        if self.raw and not isinstance(prompt, str):
            raise InputError("has messages, and --raw takes a prompt: leave --raw out")
        if not self.raw:
            prompt = [Message("user", prompt)] if isinstance(prompt, str) else prompt
            if self.system is not None and all(message.role != "system" for message in prompt):
                prompt = [Message("system", self.system), *prompt]
        return Asked(prompt, sampling, self.n_top)

    def options(self) -> list[str]:
        """Name the options that are given, beside those of sampling and the template."""
        given = {
            "--system": self.system is not None,
            "--raw": self.raw,
            "--logprobs": self.n_top is not None,
            "--shares": self.shares,
        }
        return [option for option, is_given in given.items() if is_given]


def id_of(line: int, own_id: str | int | None, content: bytes) -> tuple[str | int, str]:
    """Return id and mark of the row that says `content`, with an `own_id` or without."""
    if own_id is not None:
        return own_id, ""
    # The bare number may well be the id of another row.
    return f"{_LINE}{line}", hashlib.blake2b(content, digest_size=8).hexdigest()


def line_of(row_id: object) -> int:
    """Return the line that the id of a row tells; raise ValueError where it tells none."""
    return int(str(row_id).removeprefix(_LINE))


def checked_id(value: object) -> str | int:
    """Return a row's own id; raise InputError for what can be none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError("id must be a text or a whole number")
    return value
