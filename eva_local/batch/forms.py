"""The forms of input that are understood: their rows, and the rows of output that answer each."""

import contextlib
import csv
import hashlib
import io
import json
import re
import string
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Literal

from msgspec import Struct

from eva_local.engine.conversation import read_messages
from eva_local.errors import EvaError, InputError
from eva_local.openai import request
from eva_local.openai.answer import Answer, Letterhead, chat_tokens
from eva_local.reading import Words, did_you_mean, read
from eva_local.types import Message, Sampling

# How the id of a row without one begins: a bare number may well be the id of another row.
_LINE = "line "
_BOM = b"\xef\xbb\xbf"
# What bytes of a table that are no UTF-8 are read as.
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_DELIMITERS = ",\t;"
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"?')
# What a row of JSON lines can say, and what it could say of an answer elsewhere.
_ROW_KEYS = ("id", "prompt", "messages", *request.OPTION_KEYS)
_ELSEWHERE = request.KEYS.difference(_ROW_KEYS, request.IGNORED)
# What is JSON in a table, where it is; and what is a text even where it looks like a number.
_OPTION_COLUMNS = {"messages", *request.OPTION_KEYS, *_ELSEWHERE}
_TEXTS = ("stop", "grammar", "json_schema", "chat_template", "thinking_mark")

# A row of the output.
Result = dict[str, object]


@dataclass(slots=True)
class Row:
    """One row: `asked`, or a `problem` in plain words. `line` is where it begins, from 1.

    A row without an id of its own has an `id` that tells the line, and a `mark`: the hash of
    what it says, by which a change is noticed.
    """

    line: int
    id: str | int
    mark: str = ""
    asked: request.Asked | None = None
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

    def asked(self, prompt: str | list[Message], sampling: Sampling) -> request.Asked:
        """Return what a row asks for; raise InputError for messages where prompts are `raw`."""
        if self.raw and not isinstance(prompt, str):
            raise InputError("has messages, and --raw takes a prompt: leave --raw out")
        if not self.raw:
            prompt = [Message("user", prompt)] if isinstance(prompt, str) else prompt
            if self.system is not None and all(message.role != "system" for message in prompt):
                prompt = [Message("system", self.system), *prompt]
        return request.Asked(prompt, sampling, self.n_top)


def _checked_id(value: object) -> str | int:
    """Return a row's own id; raise InputError for what can be none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError("id must be a text or a whole number")
    return value


class Form(ABC):
    """A form of input, read as `wishes` say, with our own form of output."""

    name: str
    _made_of = "JSON"

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        # What the template names is data, whatever its name.
        self._data = () if wishes.template is None else wishes.template.columns

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """Yield the rows of a file, in their order; a row that is wrong has a problem."""
        for line, content in lines_of(file):
            yield self._row(line, content, content)

    def _row(self, line: int, content: bytes, data: Any) -> Row:
        row = Row(line, f"{_LINE}{line}", hashlib.blake2b(content, digest_size=8).hexdigest())
        try:
            row.asked = self._read(row, data)
        except EvaError as error:
            row.problem = str(error)
        except (ValueError, RecursionError) as error:
            row.problem = f"is no {self._made_of}: {error}"
        return row

    @abstractmethod
    def _read(self, row: Row, data: Any) -> request.Asked:
        """Return what a row asks for, and tell it its id and endpoint."""

    def answered(self, row: Row, answer: Answer, _model: str) -> Result:
        """Return the row of output that answers a row."""
        assert answer.usage is not None
        result = self._named(row) | {
            **({"reasoning": answer.reasoning} if answer.reasoning else {}),
            "text": answer.text,
            **({"tool_calls": answer.calls} if answer.calls else {}),
            "finish_reason": answer.finish_reason,
            "usage": asdict(answer.usage),
            **answer.dispute,
        }
        if answer.told:
            result["logprobs"] = chat_tokens(answer.tokens, disputed=True)
        return result

    def failed(self, row: Row, problem: str) -> Result:
        """Return the row of output for a row that failed."""
        return self._named(row) | {"error": {"message": problem, "line": row.line}}

    def identity(self, result: Mapping[str, Any]) -> tuple[str | int, str]:
        """Return id or line, and mark, of the row that a result answers; KeyError, ValueError."""
        if not ("text" in result or "error" in result):
            raise KeyError("text")
        row_id, mark = result["id"], str(result.get("row_hash", ""))
        return int(str(row_id).removeprefix(_LINE)) if mark else _checked_id(row_id), mark

    def _named(self, row: Row) -> Result:
        return {"id": row.id, "row_hash": row.mark} if row.mark else {"id": row.id}

    def _asked(self, _row: Row, values: Mapping[str, object]) -> request.Asked:
        options = {key: value for key, value in values.items() if key not in self._data}
        for key, value in options.items():
            if key in _ELSEWHERE:
                request.refuse_undone(key, value)
            elif key not in _ROW_KEYS and (meant := request.misspelled(key, _ROW_KEYS)):
                raise InputError(f"has {key}, which is no option; did you mean {meant}?")
        sampling = request.read_options(options, self._wishes.sampling, told=not self._wishes.raw)
        template, prompt = self._wishes.template, values.get("prompt")
        if template is not None:
            prompt = template.fill(values)
        elif values.get("messages") is not None:
            if prompt is not None:
                raise InputError("has both prompt and messages: give one")
            return self._wishes.asked(read_messages(values["messages"]), sampling)
        if not isinstance(prompt, str):
            raise InputError("needs a prompt that is a text, or messages")
        return self._wishes.asked(prompt, sampling)


class JsonLines(Form):
    """One JSON object a line: `prompt` or `messages`, perhaps `id` and options of sampling."""

    name = "jsonl"
    _id_key = "id"

    def _read(self, row: Row, data: bytes) -> request.Asked:
        values, twice = request.parsed(data.decode("utf-8-sig"))
        if not isinstance(values, dict):
            raise InputError("is no JSON object")
        if values.get(self._id_key) is not None and self._id_key not in twice:
            self._identify(row, values[self._id_key])
        request.refuse_twice(twice)
        return self._asked(row, values)

    def _identify(self, row: Row, own_id: object) -> None:
        row.id, row.mark = _checked_id(own_id), ""


class _OpenAIRow(Struct, kw_only=True, forbid_unknown_fields=True):
    custom_id: Words
    method: Literal["POST"] = "POST"
    url: request.Endpoint
    body: dict[str, Any]


class OpenAI(JsonLines):
    """OpenAI's batch format, in and out: `custom_id`, `method`, `url`, `body`."""

    name = "openai"
    _id_key = "custom_id"
    _prefix = "batch_req_"

    def _identify(self, row: Row, own_id: object) -> None:
        if own_id and isinstance(own_id, str):
            row.id, row.mark = own_id, ""

    def _asked(self, row: Row, values: Mapping[str, object]) -> request.Asked:
        found = read(request.given(values), _OpenAIRow)
        row.endpoint = found.url
        return request.read_body(found.body, found.url, self._wishes.sampling)

    def answered(self, row: Row, answer: Answer, model: str) -> Result:
        """Return the row of output that answers a row."""
        kind = "chatcmpl" if row.endpoint == request.CHAT else "cmpl"
        head = Letterhead(row.endpoint, f"{kind}-{row.line}", int(time.time()), model)
        whole = head.whole([answer])
        response = {"status_code": 200, "request_id": f"req_{row.line}", "body": whole}
        return self._result(row, response, None)

    def failed(self, row: Row, problem: str) -> Result:
        """Return the row of output for a row that failed."""
        return self._result(row, None, {"code": "invalid_request", "message": problem})

    def identity(self, result: Mapping[str, Any]) -> tuple[str | int, str]:
        """Return id and mark of the row that a row of output belongs to."""
        if result["custom_id"] is not None:
            return _checked_id(result["custom_id"]), ""
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
        table = _table(file)
        _, columns = next(table, (1, []))
        if unknown := next((name for name in self._data if name not in columns), None):
            hint = did_you_mean(unknown, columns)
            raise InputError(f"the prompt template names {{{unknown}}}; {hint}")
        if not self._data and "prompt" not in columns:
            raise InputError(
                "the table has no column prompt; give --prompt-template with some of "
                f"{', '.join(map(repr, columns))} (--format text, if it is no table)"
            )
        if len(set(columns)) < len(columns):
            raise InputError("the table has two columns of the same name")
        for line, fields in table:
            if fields:
                content = "\x1f".join(fields).encode("utf-8", "surrogateescape")
                yield self._row(line, content, (columns, fields))

    def _read(self, row: Row, data: tuple[list[str], list[str]]) -> request.Asked:
        columns, fields = data
        values = dict(zip(columns, fields, strict=False))
        own_id = values.get("id", "")
        if own_id and not _NO_UTF8.search(own_id):
            row.id, row.mark = own_id, ""
        if len(fields) != len(columns):
            raise InputError(f"has {len(fields)} fields, and the head has {len(columns)}")
        if any(map(_NO_UTF8.search, fields)):
            raise InputError("is not UTF-8 text")
        # Fields of options are JSON or a text, and empty ones nothing.
        options = _OPTION_COLUMNS.difference(self._data)
        meant = {key: _value_of(key, each) for key, each in values.items() if key in options}
        return self._asked(row, {**values, **meant})


class Text(Form):
    """Plain text: one prompt a line."""

    name = "text"
    _made_of = "UTF-8 text"

    def _read(self, _row: Row, data: bytes) -> request.Asked:
        return self._wishes.asked(data.decode(), self._wishes.sampling)


FORMS: Mapping[str, type[Form]] = {form.name: form for form in (JsonLines, OpenAI, Csv, Text)}


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers, without ends and byte order mark."""
    for number, line in enumerate(file, 1):
        content = (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")
        if content.strip():
            yield number, content


def delimiter_of(head: str) -> str:
    """Return what stands between the columns of a head: not what is within quotes."""
    return max(_DELIMITERS, key=_QUOTED.sub("", head).count)


def _table(file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Yield the line in which a row begins and its fields; InputError for a quote left open."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    line = 1
    try:
        delimiter = delimiter_of(text.readline())
        text.seek(0)
        table = csv.reader(text, delimiter=delimiter, strict=True)
        for fields in table:
            yield line, fields
            line = table.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"line {line}: cannot be read as CSV ({error}); close what begins with a quote, and "
            "write a quote within it twice"
        ) from error
    finally:
        # Who leaves off in the middle may have closed the file by now.
        with contextlib.suppress(ValueError):
            text.detach()


def _value_of(column: str, field: str) -> object:
    if not field:
        return None
    if column in _TEXTS and field[0] not in '["':
        return field
    try:
        value, twice = request.parsed(field)
    except (ValueError, RecursionError):
        return field
    request.refuse_twice(twice)
    return value
