"""In which form an input is, by what it holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import BinaryIO

from eva_local.batch.forms import FORMS, Csv, Form, JsonLines, OpenAI, Text, lines_of
from eva_local.batch.rows import Wishes
from eva_local.batch.table import delimiter_of
from eva_local.engine.detokenizer import HEAD, refuse_utf16
from eva_local.errors import InputError


def form_of(file: BinaryIO, name: str, wishes: Wishes, wanted: str | None = None) -> Form:
    """Return the form of a file, by its content where none is `wanted`; leaves it at its start.

    Raises InputError where the wishes do not go with the form.
    """
    file.seek(0)
    refuse_utf16(file.read(HEAD), name)
    file.seek(0)
    found = wanted or _detected(file, name, wishes)
    file.seek(0)
    if found != Csv.name:
        _refuse_bare_returns(file, name)
    if wishes.template is not None and found not in (JsonLines.name, Csv.name):
        raise InputError(f"--prompt-template goes with csv and jsonl, and {name} is {found}")
    if found == OpenAI.name and (options := wishes.options()):
        raise InputError(f"{options[0]} goes with csv, jsonl and text, and {name} is {found}")
    return FORMS[found](wishes)


def _detected(file: BinaryIO, name: str, wishes: Wishes) -> str:
    first = next((content.strip() for _, content in lines_of(file)), b"")
    if first.startswith(b"{"):
        return OpenAI.name if _is_openai(first) else JsonLines.name
    if first == b"[" or first.startswith(b"[{"):
        raise InputError(f"{name} is a JSON array; give one object a line (jq -c '.[]' does that)")
    head = first.partition(b"\r")[0].decode("utf-8", "replace")
    is_table = Path(name).suffix.lower() in (".csv", ".tsv") or "prompt" in _columns(head)
    return Csv.name if is_table or wishes.template is not None else Text.name


def _columns(head: str) -> list[str]:
    """Return the columns of a line as a table would mean them, if it can be the head of one.

    One that does not name them well is then refused, where plain text would be answered.
    """
    try:
        columns = next(csv.reader([head], delimiter=delimiter_of(head), skipinitialspace=True), [])
    except csv.Error:
        return []
    return [column.strip().lower() for column in columns]


def _refuse_bare_returns(file: BinaryIO, name: str) -> None:
    """Raise InputError where all is one line because line ends are carriage returns alone."""
    lines = lines_of(file)
    _, first = next(lines, (1, b""))
    is_only = next(lines, None) is None
    file.seek(0)
    if is_only and b"\r" in first.strip():
        raise InputError(
            f"{name} ends its lines with carriage returns alone; write line feeds "
            "(tr '\\r' '\\n' does that)"
        )


def _is_openai(line: bytes) -> bool:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return b'"custom_id"' in line
    return isinstance(values, dict) and "custom_id" in values
