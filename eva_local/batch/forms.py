"""The forms of input that are understood, and the rows of output that answer each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO, Literal

from msgspec import Struct

from eva_local.batch.rows import Row, Wishes, checked_id, id_of, line_of
from eva_local.batch.table import read_table
from eva_local.errors import EvaError, InputError
from eva_local.openai.answer import Answer, Letterhead, chat_tokens
from eva_local.openai.request import (
    CHAT,
    IGNORED,
    KEYS,
    OPTION_KEYS,
    Asked,
    Endpoint,
    given,
    misspelled,
    parsed,
    read_body,
    read_messages,
    read_options,
    refuse_twice,
    refuse_undone,
)
from eva_local.reading import Words, read

_BOM = b"\xef\xbb\xbf"
# What bytes of a table that are no UTF-8 are read as.
_NO_UTF8 = re.compile("[\udc80-\udcff]")
# What a row of JSON lines can say, and what it could say of an answer elsewhere.
_ROW_KEYS = ("id", "prompt", "messages", *OPTION_KEYS)
_ELSEWHERE = KEYS.difference(_ROW_KEYS, IGNORED)
# What is JSON in a table, where it is; and what is a text even where it looks like a number.
_OPTION_COLUMNS = {"messages", *OPTION_KEYS, *_ELSEWHERE}
_TEXTS = ("stop", "grammar", "json_schema")

# A row of the output, and how much each member carried of an answer.
Result = dict[str, object]
Shares = Mapping[str, float]


class Form:
    """A form of input, read as `wishes` say, with our own form of output."""

    name: str

    def __init__(self, wishes: Wishes) -> None:
        """Read rows as `wishes` say."""
        self._wishes = wishes
        # What the template names is data, whatever its name.
        self._data = () if wishes.template is None else wishes.template.columns

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows of a file, in their order; a row that is wrong has a problem."""
        raise NotImplementedError

    def answered(self, row: Row, answer: Answer, _model: str, shares: Shares | None) -> Result:
        """Return the row of output that answers a row."""
        assert answer.usage is not None
        result = _named(row) | {
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
        """Return the row of output for a row that failed."""
        return _named(row) | {"error": {"message": problem, "line": row.line}}

    def identity(self, result: Mapping[str, Any]) -> tuple[str | int, str]:
        """Return id, or line, and mark of the row that a row of output belongs to.

        Raises KeyError and ValueError where it is no such row.
        """
        if not ("text" in result or "error" in result):
            raise KeyError("text")
        mark = result.get("row_hash", "")
        if not isinstance(mark, str):
            raise ValueError("row_hash is no text")
        return line_of(result["id"]) if mark else checked_id(result["id"]), mark

    def _asked(self, values: Mapping[str, object]) -> Asked:
        """Return what the keys of a row ask for: a prompt, and options among data of any name."""
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


class JsonLines(Form):
    """One JSON object a line: `prompt` or `messages`, perhaps `id` and options of sampling."""

    name = "jsonl"
    _id_key = "id"

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows."""
        for line, content in lines_of(file):
            row_id: str | int | None = None
            asked, problem, endpoint = None, "", ""
            try:
                values, twice = parsed(content.decode("utf-8-sig"))
                if not isinstance(values, dict):
                    raise InputError("is no JSON object")
                if values.get(self._id_key) is not None and self._id_key not in twice:
                    row_id = self._own_id(values[self._id_key])
                refuse_twice(twice)
                asked, endpoint = self._read(values)
            except EvaError as error:
                problem = str(error)
            except (ValueError, RecursionError) as error:
                problem = f"is no JSON: {error}"
            yield Row(line, *id_of(line, row_id, content), asked, problem, endpoint)

    def _own_id(self, value: object) -> str | int | None:
        return checked_id(value)

    def _read(self, values: Mapping[str, object]) -> tuple[Asked, str]:
        """Return what a row asks for, and of which endpoint of OpenAI's."""
        return self._asked(values), ""


class _OpenAIRow(Struct, kw_only=True, forbid_unknown_fields=True):
    custom_id: Words
    method: Literal["POST"] = "POST"
    url: Endpoint
    body: dict[str, Any]


class OpenAI(JsonLines):
    """OpenAI's batch format, in and out: `custom_id`, `method`, `url`, `body`."""

    name = "openai"
    _id_key = "custom_id"
    _prefix = "batch_req_"

    def _own_id(self, value: object) -> str | None:
        return value if value and isinstance(value, str) else None

    def _read(self, values: Mapping[str, object]) -> tuple[Asked, str]:
        row = read(given(values), _OpenAIRow)
        return read_body(row.body, row.url, self._wishes.sampling), row.url

    def answered(self, row: Row, answer: Answer, model: str, _shares: Shares | None) -> Result:
        """Return the row of output that answers a row."""
        assert row.asked is not None
        kind = "chatcmpl" if row.endpoint == CHAT else "cmpl"
        head = Letterhead(row.endpoint, f"{kind}-{row.line}", int(time.time()), model)
        body = head.whole([answer], told=row.asked.n_top is not None)
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


class Csv(Form):
    """A table with a head: a prompt from `prompt` or a template, perhaps `id` and options."""

    name = "csv"

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows; raise InputError where the columns do not give a prompt."""
        table = read_table(file)
        _, columns = next(table, (1, []))
        if self._wishes.template is not None:
            self._wishes.template.refuse_unknown(columns)
        elif "prompt" not in columns:
            raise InputError(
                "the table has no column prompt; give --prompt-template with some of "
                f"{', '.join(map(repr, columns))} (--format text, if it is no table)"
            )
        if len(set(columns)) < len(columns):
            raise InputError("the table has two columns of the same name")
        for line, fields in table:
            if fields:
                yield self._row(line, columns, fields)

    def _row(self, line: int, columns: list[str], fields: list[str]) -> Row:
        content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
        values = dict(zip(columns, fields, strict=False))
        row_id = values.get("id", "")
        own_id = row_id if row_id and not _NO_UTF8.search(row_id) else None
        asked, problem = None, ""
        try:
            if len(fields) != len(columns):
                raise InputError(f"has {len(fields)} fields, and the head has {len(columns)}")
            if any(map(_NO_UTF8.search, fields)):
                raise InputError("is not UTF-8 text")
            # Fields of options are JSON or a text, and empty ones nothing.
            options = _OPTION_COLUMNS.difference(self._data)
            meant = {key: _value_of(key, each) for key, each in values.items() if key in options}
            asked = self._asked({**values, **meant})
        except EvaError as error:
            problem = str(error)
        return Row(line, *id_of(line, own_id, content), asked, problem)


class Text(Form):
    """Plain text: one prompt a line."""

    name = "text"

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows."""
        for line, content in lines_of(file):
            asked, problem = None, ""
            try:
                asked = self._wishes.asked(content.decode(), self._wishes.sampling)
            except UnicodeDecodeError:
                problem = "is not UTF-8 text"
            yield Row(line, *id_of(line, None, content), asked, problem)


FORMS: Mapping[str, type[Form]] = {form.name: form for form in (JsonLines, OpenAI, Csv, Text)}


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers, without ends and byte order mark."""
    for number, line in enumerate(file, 1):
        content = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")
        if content.strip():
            yield number, content


def _value_of(column: str, field: str) -> object:
    if not field:
        return None
    if column in _TEXTS and field[0] not in '["':
        return field
    try:
        value, twice = parsed(field)
    except (ValueError, RecursionError):
        return field
    refuse_twice(twice)
    return value


def _named(row: Row) -> Result:
    return {"id": row.id, "row_hash": row.mark} if row.mark else {"id": row.id}
