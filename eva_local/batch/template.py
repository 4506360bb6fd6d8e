"""A prompt with places for the columns of a row: `… {column} …`, and nothing else."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping

from eva_local.errors import InputError
from eva_local.reading import did_you_mean


class Template:
    """A prompt template: `{column}` stands for a value, `{{` and `}}` for braces.

    What Python's own format would do beyond that (attributes, indices, widths) is refused: rows
    are data.
    """

    def __init__(self, text: str) -> None:
        """Raise InputError where the braces do not match or name no column."""
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
        self._parts = [(fixed, column) for fixed, column, _, _ in parts]
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column))
        if not self.columns:
            raise InputError("the prompt template names no {column}: all prompts would be the same")

    def refuse_unknown(self, columns: Iterable[str]) -> None:
        """Raise InputError where the template names a column that is not there."""
        known = list(columns)
        for column in self.columns:
            if column not in known:
                hint = did_you_mean(column, known)
                raise InputError(f"the prompt template names {{{column}}}; {hint}")

    def fill(self, values: Mapping[str, object]) -> str:
        """Return the prompt of a row; raise InputError where it lacks a value."""
        filled = []
        for fixed, column in self._parts:
            filled.append(fixed)
            if column is None:
                continue
            if column not in values:
                raise InputError(f"has no {column}, which the prompt template names")
            value = values[column]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            filled.append(text)
        return "".join(filled)
