"""The forms of input that are understood, and the rows of output that answer each."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from eva_local.batch.rows import Row, Wishes, checked_id, line_of, problem_of, row_of
from eva_local.batch.table import delimiter_of, read_table
from eva_local.engine.detokenizer import HEAD, refuse_utf16
from eva_local.errors import EvaError, InputError
from eva_local.openai.answer import Answer, Counts, chat_completion, chat_tokens, text_completion
from eva_local.openai.keys import given, once, refuse_other_keys
from eva_local.openai.request import (
    CHAT,
    COMPLETION,
    IGNORED,
    KEYS,
    OPTION_KEYS,
    Asked,
    misspelled,
    read_body,
    read_messages,
    read_options,
    refuse_undone,
)

_BOM = b"\xef\xbb\xbf"
# What a row of JSON lines can say, and what it could say of an answer elsewhere.
_ROW_KEYS = ("id", "prompt", "messages", *OPTION_KEYS)
_ELSEWHERE = KEYS.difference(_ROW_KEYS, IGNORED)
# What is JSON in a table, where it is; and what is a text even where it looks like a number.
_OPTION_COLUMNS = {"messages", *OPTION_KEYS, *_ELSEWHERE}
_TEXTS = ("stop", "grammar", "json_schema")
_OPENAI_KEYS = ("custom_id", "method", "url", "body")

# A row of the output, and how it is known again: its id, or line and mark; and whether it failed.
Result = dict[str, object]
Shares = Mapping[str, float]


class Form(Protocol):
    """A form of input, with the form of output that goes with it."""

    name: str

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows of a file, in their order; a row that is wrong has a problem."""

    def answered(self, row: Row, answer: Answer, model: str, shares: Shares | None) -> Result:
        """Return the row of output that answers a row."""

    def failed(self, row: Row, problem: str) -> Result:
        """Return the row of output for a row that failed."""

    def identity(self, result: Mapping[str, Any]) -> tuple[str | int, str]:
        """Return id and mark of the row that a row of output belongs to.

        Raises KeyError and ValueError where it is no such row.
        """


class _Own:
    """The output of all forms but OpenAI's."""

    def answered(self, row: Row, answer: Answer, _model: str, shares: Shares | None) -> Result:
        result = _named(row)
        result |= {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": asdict(answer.usage),
        }
        if row.asked is not None and row.asked.n_top is not None:
            result["logprobs"] = chat_tokens(answer.tokens)
        if shares is not None:
            result["shares"] = dict(shares)
        return result

    def failed(self, row: Row, problem: str) -> Result:
        return _named(row) | {"error": {"message": problem, "line": row.line}}

    def identity(self, result: Mapping[str, Any]) -> tuple[str | int, str]:
        if not ("text" in result or "error" in result):
            raise KeyError("text")
        mark = result.get("row_hash", "")
        if not isinstance(mark, str):
            raise ValueError("row_hash is no text")
        return line_of(result["id"]) if mark else checked_id(result["id"]), mark


class _Keyed(_Own):
    """The forms whose rows have keys: a prompt, options of sampling, and data of any name."""

    def __init__(self, wishes: Wishes) -> None:
        """Read rows as `wishes` say."""
        self._wishes = wishes
        # What the template names is data, whatever its name.
        self._data = () if wishes.template is None else wishes.template.columns

    def _asked(self, values: dict[str, object]) -> Asked:
        template = self._wishes.template
        options = {key: value for key, value in values.items() if key not in self._data}
        for key, value in options.items():
            if key in _ROW_KEYS:
                continue
            if key in _ELSEWHERE:
                refuse_undone(key, value)
            elif meant := misspelled(key, _ROW_KEYS):
                raise InputError(f"has {key}, which is no option; did you mean {meant}?")
        sampling = read_options(options, self._wishes.sampling)
        if template is not None:
            return self._wishes.asked(template.fill(values), sampling)
        if values.get("messages") is not None:
            if values.get("prompt") is not None:
                raise InputError("has both prompt and messages: give one")
            return self._wishes.asked(read_messages(values["messages"]), sampling)
        prompt = values.get("prompt")
        if not isinstance(prompt, str):
            raise InputError("needs a prompt that is a text, or messages")
        return self._wishes.asked(prompt, sampling)


class JsonLines(_Keyed):
    """One JSON object a line: `prompt` or `messages`, perhaps `id` and options of sampling."""

    name = "jsonl"

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows."""
        for line, content in _lines(file):
            yield self._row(line, content)

    def _row(self, line: int, content: bytes) -> Row:
        row_id: str | int | None = None
        try:
            values = _object(content)
            if values.get("id") is not None:
                row_id = checked_id(values["id"])
            return row_of(line, row_id, content, self._asked(values))
        except (EvaError, ValueError, RecursionError) as error:
            if row_id is None:
                row_id = _id_beside_doubles(content, "id", str, int)
            return row_of(line, row_id, content, problem=problem_of(error))


class OpenAI:
    """OpenAI's batch format, in and out: `custom_id`, `method`, `url`, `body`."""

    name = "openai"
    _prefix = "batch_req_"

    def __init__(self, wishes: Wishes) -> None:
        """Read rows as `wishes` say."""
        self._wishes = wishes

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows."""
        for line, content in _lines(file):
            yield self._row(line, content)

    def _row(self, line: int, content: bytes) -> Row:
        row_id: str | int | None = None
        try:
            values = _object(content)
            custom = values.get("custom_id")
            if not isinstance(custom, str) or not custom:
                raise InputError("custom_id must be a text")
            row_id = custom
            refuse_other_keys(given(values), _OPENAI_KEYS)
            asked, endpoint = self._asked(values)
            return row_of(line, row_id, content, asked, endpoint=endpoint)
        except (EvaError, ValueError, RecursionError) as error:
            if row_id is None:
                row_id = _id_beside_doubles(content, "custom_id", str)
            return row_of(line, row_id, content, problem=problem_of(error))

    def _asked(self, values: dict[str, object]) -> tuple[Asked, str]:
        if values.get("method", "POST") != "POST":
            raise InputError("method must be POST")
        body, url = values.get("body"), values.get("url")
        if not isinstance(body, dict) or not isinstance(url, str):
            raise InputError("needs a url and a body that is a JSON object")
        return read_body(body, url, self._wishes.sampling), url

    def answered(self, row: Row, answer: Answer, model: str, _shares: Shares | None) -> Result:
        """Return the row of output that answers a row."""
        assert row.asked is not None
        write = {CHAT: chat_completion, COMPLETION: text_completion}[row.endpoint]
        body = write(
            [answer],
            Counts.of([answer]),
            name=f"{'chatcmpl' if row.endpoint == CHAT else 'cmpl'}-{row.line}",
            created=int(time.time()),
            model=model,
            told=row.asked.n_top is not None,
        )
        response = {"status_code": 200, "request_id": f"req_{row.line}", "body": body}
        return self._result(row, response, None)

    def failed(self, row: Row, problem: str) -> Result:
        """Return the row of output for a row that failed."""
        return self._result(row, None, {"code": "invalid_request", "message": problem})

    def identity(self, result: Mapping[str, Any]) -> tuple[str | int, str]:
        """Return id and mark of the row that a row of output belongs to."""
        if result["custom_id"] is not None:
            return checked_id(result["custom_id"]), ""
        name = str(result["id"]).removeprefix(self._prefix)
        line, _, mark = name.partition("_")
        return int(line), mark

    def _result(self, row: Row, response: Result | None, error: Result | None) -> Result:
        name = f"{self._prefix}{row.line}"
        return {
            "id": f"{name}_{row.mark}" if row.mark else name,
            "custom_id": None if row.mark else row.id,
            "response": response,
            "error": error,
        }


class Csv(_Keyed):
    """A table with a head: a prompt from `prompt` or a template, perhaps `id` and options."""

    name = "csv"

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows; raise InputError where the columns do not give a prompt."""
        table = read_table(file)
        _, columns = next(table, (1, []))
        self._refuse_unfit(columns)
        for line, fields in table:
            if fields:
                yield self._row(line, columns, fields)

    def _refuse_unfit(self, columns: list[str]) -> None:
        if self._wishes.template is not None:
            self._wishes.template.refuse_unknown(columns)
        elif "prompt" not in columns:
            raise InputError(
                "the table has no column prompt; give --prompt-template with some of "
                f"{', '.join(map(repr, columns))} (--format text, if it is no table)"
            )
        if len(set(columns)) < len(columns):
            raise InputError("the table has two columns of the same name")

    def _row(self, line: int, columns: list[str], fields: list[str]) -> Row:
        content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
        values = dict(zip(columns, fields, strict=False))
        row_id = values.get("id") or None
        if row_id and not _is_utf8(row_id):
            row_id = None
        if len(fields) != len(columns):
            problem = f"has {len(fields)} fields, and the head has {len(columns)}"
            return row_of(line, row_id, content, problem=problem)
        if not _is_utf8("".join(fields)):
            return row_of(line, row_id, content, problem="is not UTF-8 text")
        try:
            return row_of(line, row_id, content, self._asked(self._meant(values)))
        except EvaError as error:
            return row_of(line, row_id, content, problem=str(error))

    def _meant(self, fields: dict[str, str]) -> dict[str, object]:
        """Return what fields say: those of options are JSON or a text, and empty ones nothing."""
        return {
            column: _value_of(column, field) if self._is_option(column) else field
            for column, field in fields.items()
        }

    def _is_option(self, column: str) -> bool:
        return column in _OPTION_COLUMNS and column not in self._data


class Text(_Own):
    """Plain text: one prompt a line."""

    name = "text"

    def __init__(self, wishes: Wishes) -> None:
        """Read rows as `wishes` say."""
        self._wishes = wishes

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows."""
        for line, content in _lines(file):
            try:
                prompt = content.decode()
            except UnicodeDecodeError:
                yield row_of(line, None, content, problem="is not UTF-8 text")
                continue
            asked = self._wishes.asked(prompt, self._wishes.sampling)
            yield row_of(line, None, content, asked)


FORMS: Mapping[str, type[JsonLines | OpenAI | Csv | Text]] = {
    form.name: form for form in (JsonLines, OpenAI, Csv, Text)
}


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
    first = next((content.strip() for _, content in _lines(file)), b"")
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
    lines = _lines(file)
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
        return "custom_id" in _object(line)
    except (EvaError, ValueError, RecursionError):
        return b'"custom_id"' in line


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers, without ends and byte order mark."""
    for number, line in enumerate(file, 1):
        content = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")
        if content.strip():
            yield number, content


def _object(content: bytes) -> dict[str, object]:
    values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
    if not isinstance(values, dict):
        raise InputError("is no JSON object")
    return values


def _id_beside_doubles(content: bytes, key: str, *kinds: type) -> str | int | None:
    """Return the id of an object in which another key comes twice, if it is of these kinds."""
    try:
        # Arrays stay lists.
        pairs = json.loads(content.decode("utf-8-sig"), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    found = [value for name, value in pairs if name == key] if isinstance(pairs, tuple) else []
    return found[0] if len(found) == 1 and type(found[0]) in kinds and found[0] != "" else None


def _is_utf8(text: str) -> bool:
    """Return whether a text was read from bytes that are UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _value_of(column: str, field: str) -> object:
    if not field:
        return None
    if column in _TEXTS and field[0] not in '["':
        return field
    try:
        return json.loads(field, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return field


def _named(row: Row) -> Result:
    return {"id": row.id, "row_hash": row.mark} if row.mark else {"id": row.id}
