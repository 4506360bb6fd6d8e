"""The forms of input that are understood, and the rows of output that answer each."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from eva_local.batch.rows import Row, Wishes, checked_id, mark_of, problem_of
from eva_local.errors import EvaError, InputError
from eva_local.wire.answer import Answer, Counts, chat_completion, chat_tokens, text_completion
from eva_local.wire.request import (
    CHAT,
    COMPLETION,
    OPTIONS,
    Asked,
    misspelled,
    read_body,
    read_messages,
    read_sampling,
)

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",\t;"
_OWN_KEYS = ("id", "prompt", "messages", *OPTIONS)

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
        return checked_id(result["id"]), mark


class JsonLines(_Own):
    """One JSON object a line: `prompt` or `messages`, perhaps `id` and options of sampling."""

    name = "jsonl"

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
            if values.get("id") is not None:
                row_id = checked_id(values["id"])
            asked = self._asked(values)
        except (EvaError, ValueError, RecursionError) as error:
            return _bad(line, row_id, content, problem_of(error))
        if row_id is not None:
            return Row(line, row_id, asked=asked)
        return Row(line, line, mark_of(content), asked)

    def _asked(self, values: dict[str, object]) -> Asked:
        for key in values:
            if key not in _OWN_KEYS and (meant := misspelled(key, _OWN_KEYS)):
                raise InputError(f"has {key}, which is no option; did you mean {meant}?")
        sampling = read_sampling(values, self._wishes.sampling)
        if self._wishes.template is not None:
            return self._wishes.asked(self._wishes.template.fill(values), sampling)
        if values.get("messages") is not None:
            if values.get("prompt") is not None:
                raise InputError("has both prompt and messages: give one")
            return self._wishes.asked(read_messages(values["messages"]), sampling)
        prompt = values.get("prompt")
        if not isinstance(prompt, str):
            raise InputError("needs a prompt that is a text, or messages")
        return self._wishes.asked(prompt, sampling)


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
            asked, endpoint = self._asked(values)
        except (EvaError, ValueError, RecursionError) as error:
            return _bad(line, row_id, content, problem_of(error))
        return Row(line, row_id, asked=asked, endpoint=endpoint)

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


class Csv(_Own):
    """A table with a head: a prompt from `prompt` or a template, perhaps an `id`."""

    name = "csv"

    def __init__(self, wishes: Wishes) -> None:
        """Read rows as `wishes` say."""
        self._wishes = wishes

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows; raise InputError where the columns do not give a prompt."""
        csv.field_size_limit(2**31 - 1)
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        try:
            head = text.readline()
            text.seek(0)
            table = csv.reader(text, delimiter=_delimiter(head))
            columns = next(table, [])
            self._refuse_unfit(columns)
            line = table.line_num + 1
            for fields in table:
                if fields:
                    yield self._row(line, columns, fields)
                line = table.line_num + 1
        except csv.Error as error:
            raise InputError(f"line {line}: cannot be read as CSV: {error}") from error
        finally:
            text.detach()

    def _refuse_unfit(self, columns: list[str]) -> None:
        if self._wishes.template is not None:
            self._wishes.template.refuse_unknown(columns)
        elif "prompt" not in columns:
            raise InputError(
                "the table has no column prompt; give --prompt-template with some of "
                f"{', '.join(columns)}"
            )
        if len(set(columns)) < len(columns):
            raise InputError("the table has two columns of the same name")

    def _row(self, line: int, columns: list[str], fields: list[str]) -> Row:
        content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
        values = dict(zip(columns, fields, strict=False))
        row_id = values.get("id") or None
        if len(fields) != len(columns):
            problem = f"has {len(fields)} fields, and the head has {len(columns)}"
            return _bad(line, row_id, content, problem)
        try:
            content.decode()
        except UnicodeDecodeError:
            return _bad(line, None, content, "is not UTF-8 text")
        template = self._wishes.template
        prompt = values["prompt"] if template is None else template.fill(values)
        asked = self._wishes.asked(prompt, self._wishes.sampling)
        if row_id is not None:
            return Row(line, row_id, asked=asked)
        return Row(line, line, mark_of(content), asked)


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
                yield _bad(line, None, content, "is not UTF-8 text")
                continue
            asked = self._wishes.asked(prompt, self._wishes.sampling)
            yield Row(line, line, mark_of(content), asked)


FORMS: Mapping[str, type[JsonLines | OpenAI | Csv | Text]] = {
    form.name: form for form in (JsonLines, OpenAI, Csv, Text)
}


def form_of(file: BinaryIO, name: str, wishes: Wishes, wanted: str | None = None) -> Form:
    """Return the form of a file, by its content where none is `wanted`; leaves it at its start.

    Raises InputError where the wishes do not go with the form.
    """
    found = wanted or _detected(file, name, wishes)
    file.seek(0)
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
    head = first.decode("utf-8", "replace")
    is_table = Path(name).suffix.lower() in (".csv", ".tsv") or "prompt" in _columns(head)
    return Csv.name if is_table or wishes.template is not None else Text.name


def _columns(head: str) -> list[str]:
    """Return the columns of a line, if it can be the head of a table."""
    try:
        return next(csv.reader([head], delimiter=_delimiter(head)), [])
    except csv.Error:
        return []


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
    values = json.loads(content)
    if not isinstance(values, dict):
        raise InputError("is no JSON object")
    return values


def _bad(line: int, row_id: str | int | None, content: bytes, problem: str) -> Row:
    if row_id is not None:
        return Row(line, row_id, problem=problem)
    return Row(line, line, mark_of(content), problem=problem)


def _named(row: Row) -> Result:
    return {"id": row.id, "row_hash": row.mark} if row.mark else {"id": row.id}


def _delimiter(head: str) -> str:
    return max(_DELIMITERS, key=head.count)
