"""Rows of every form of input: what they ask for, and what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eva_local.batch.forms import FORMS, Csv, JsonLines, OpenAI, Row, Template, Text, Wishes
from eva_local.batch.job import Source, form_of
from eva_local.batch.results import _BEGINNING, Done
from eva_local.errors import EvaError, InputError
from eva_local.jsonl import json_line
from eva_local.openai.answer import Answer
from eva_local.types import Message, Sampling, Step, Usage

DEFAULTS = Sampling(max_tokens=9)
WISHES = Wishes(DEFAULTS)


def rows(form: type, data: bytes, **wishes: Any) -> list[Row]:
    return list(form(Wishes(DEFAULTS, **wishes)).rows(io.BytesIO(data)))


def row(form: type, value: object, **wishes: Any) -> Row:
    (only,) = rows(form, json.dumps(value).encode() + b"\n", **wishes)
    return only


def test_a_row_of_json_lines() -> None:
    found = row(JsonLines, {"id": "x", "prompt": "Hi", "temperature": 0.5, "stop": "\n", "seed": 3})
    assert (found.line, found.id, found.mark, found.problem) == (1, "x", "", "")
    assert found.asked.prompt == [Message("user", "Hi")]
    assert found.asked.sampling == Sampling(max_tokens=9, temperature=0.5, stop=("\n",), seed=3)


def test_prompts_are_messages_behind_the_system_message_or_raw() -> None:
    found = row(JsonLines, {"prompt": "Hi"}, system="Be kind.")
    assert found.asked.prompt == [Message("system", "Be kind."), Message("user", "Hi")]
    assert row(JsonLines, {"prompt": "Hi"}, raw=True).asked.prompt == "Hi"


def test_messages_stand_behind_the_system_message_unless_they_have_one() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    said = [Message("user", "Hi"), Message("assistant", "Ho")]
    assert row(JsonLines, {"messages": messages}).asked.prompt == said
    found = row(JsonLines, {"messages": messages}, system="Be kind.")
    assert found.asked.prompt == [Message("system", "Be kind."), *said]
    own = [{"role": "system", "content": "Be brief."}, *messages]
    found = row(JsonLines, {"messages": own}, system="Be kind.")
    assert found.asked.prompt == [Message("system", "Be brief."), *said]
    assert "leave --raw out" in row(JsonLines, {"messages": messages}, raw=True).problem


def test_columns_of_a_data_set_are_no_options() -> None:
    found = row(JsonLines, {"prompt": "Hi", "task": "gsm8k", "answers": ["18"], "split": "test"})
    assert not found.problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([1], "is no JSON object"),
        ({}, "needs a prompt"),
        ({"prompt": 7}, "needs a prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "both"),
        ({"messages": []}, "at least one message"),
        ({"messages": ["a"]}, "messages[0] is no JSON object"),
        (
            {"messages": [{"role": "king", "content": "b"}]},
            'messages[0].role must be "assistant" or',
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be a text"),
        ({"prompt": "a", "temprature": 1}, "did you mean temperature?"),
        ({"prompt": "a", "Max_Tokens": 1}, "did you mean max_tokens?"),
        ({"prompt": "a", "temperature": "hot"}, "temperature must be a number"),
        ({"prompt": "a", "temperature": -1}, "temperature must be in"),
        ({"prompt": "a", "temperature": True}, "temperature must be a number"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be at least 1"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"prompt": "a", "stop": 3}, "stop must be a text that is not empty or a list"),
        ({"prompt": "a", "logit_bias": {"a": "b"}}, "logit_bias must be a mapping of texts"),
        ({"prompt": "a", "logit_bias": {"a": 10**400}}, "must be a number or false, and finite"),
        ({"prompt": "a", "logit_bias": {"\ud800": 1}}, "half a surrogate pair"),
        ({"prompt": "\ud800"}, "prompt: half a surrogate pair is no text"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages: half a surrogate pair"),
        ({"prompt": "a", "grammar": "x", "json_schema": "{}"}, "exclude each other"),
        ({"prompt": "a", "json_schema": True}, "json_schema must be an object or a text of one"),
        ({"prompt": "a", "json_schema": []}, "json_schema must be an object or a text of one"),
        ({"prompt": "a", "id": 1.5}, "id must be a text or a whole number"),
        ({"prompt": "a", "id": True}, "id must be a text or a whole number"),
        ({"prompt": "a", "id": ""}, "id must be a text or a whole number"),
    ],
)
def test_a_wrong_row_says_what_is_wrong(value, problem) -> None:
    found = row(JsonLines, value)
    assert problem in found.problem
    assert found.asked is None


SCHEMA = {"type": "array"}


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({"max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"max_completion_tokens": 4, "max_tokens": 4}, {"max_tokens": 4}),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {"json_schema": json.dumps(SCHEMA)},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"tools": [], "n": 1, "stream": False, "suffix": None, "user": "me"}, {}),
        ({"logprobs": False, "top_logprobs": 0, "trace": False, "stream_options": {}}, {}),
    ],
)
def test_openais_names_of_options_are_known(more, changed) -> None:
    found = row(JsonLines, {"prompt": "a", **more})
    assert found.problem == ""
    assert found.asked.sampling == Sampling(**{"max_tokens": 9, **changed})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function is missing"),
        ({"suffix": "end"}, "suffix 'end' is not supported"),
        ({"n": 2}, "n 2 is not supported"),
        ({"n": True}, "n true is not supported"),
        ({"stream": 0}, "stream 0 is not supported"),
        ({"logprobs": 0}, "logprobs 0 is not supported"),
        ({"trace": True}, "trace true is not supported"),
        ({"logprobs": 3}, "logprobs 3 is not supported"),
        ({"weights": [1, 2]}, "weights"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_completion_tokens and max_tokens mean",
        ),
        ({"grammar": "x", "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"json_schema": {}, "response_format": {"type": "text"}}, "exclude each other"),
        ({"response_format": {"type": "json_object", "shema": {}, "b": 1}}, "response_format.b"),
    ],
)
def test_what_a_row_asks_for_and_cannot_be_done_is_named(more, problem) -> None:
    assert problem in row(JsonLines, {"prompt": "a", **more}).problem


@pytest.mark.parametrize("default", [{"grammar": 'root ::= "a"'}, {"json_schema": "true"}])
def test_a_row_that_asks_for_plain_text_gets_it(default) -> None:
    free = {"prompt": "a", "response_format": {"type": "text"}}
    body = {"custom_id": "1", "url": "/v1/completions", "body": free}
    for form, value in ((JsonLines, free), (OpenAI, body)):
        wishes = Wishes(Sampling(**default))
        (found,) = form(wishes).rows(io.BytesIO(json.dumps(value).encode()))
        assert found.asked.sampling == Sampling()


def test_half_a_character_is_no_prompt_in_openais_format() -> None:
    body = {"custom_id": "\ud800", "url": "/v1/completions", "body": {"prompt": "\ud800"}}
    assert row(OpenAI, body).problem.endswith("prompt: half a surrogate pair is no text")


def test_what_a_template_names_is_data() -> None:
    template = Template("{tools} {n} {suffix}")
    value = {"tools": "hammer", "n": 2, "suffix": "s"}
    assert row(JsonLines, value, template=template, raw=True).asked.prompt == "hammer 2 s"


def test_a_key_that_comes_twice_is_named() -> None:
    (found,) = rows(JsonLines, b'{"id": "x", "prompt": "a", "prompt": "b"}')
    assert (found.id, found.problem) == ("x", "has the key 'prompt' twice: give it once")
    (found,) = rows(OpenAI, b'{"custom_id": "x", "body": {"prompt": "a", "prompt": "b"}}')
    assert (found.id, found.problem) == ("x", "has the key 'prompt' twice: give it once")
    for unclear in (b'{"id": "x", "id": "y"}', b'{"id": ["x"], "a": 1, "a": 1}', b'[["id", "x"]]'):
        assert rows(JsonLines, unclear)[0].id == "line 1"


def test_a_wrong_row_keeps_its_id() -> None:
    assert row(JsonLines, {"id": "x", "prompt": 7}).id == "x"
    assert row(JsonLines, {"id": 0, "prompt": 7}).id == 0
    assert rows(JsonLines, b'{"id": 0, "a": 1, "a": 1}')[0].id == 0
    assert rows(OpenAI, b'{"custom_id": 1, "a": 1, "a": 1}')[0].id == "line 1"
    found = row(JsonLines, {"prompt": 7})
    assert (found.id, len(found.mark)) == ("line 1", 16)


@pytest.mark.parametrize(
    "line",
    [b"{bad", b'{"prompt": "\xff"}', b'{"a":' * 100_000, b"\x00", b'{"prompt": "a"} x', b"NaN"],
)
def test_a_line_that_is_no_json_is_a_row_with_a_problem(line) -> None:
    good = b'{"prompt": "a"}'
    found = rows(JsonLines, good + b"\n" + line + b"\n\r\n" + good)
    assert [bool(each.problem) for each in found] == [False, True, False]
    assert [each.line for each in found] == [1, 2, 4]
    assert [each.id for each in found] == ["line 1", "line 2", "line 4"]


@given(st.lists(st.binary(max_size=30)), st.sampled_from(list(FORMS)))
def test_whatever_the_bytes_are_every_line_is_one_row(lines, name) -> None:
    lines = [line.replace(b"\n", b"").replace(b"\r", b"") for line in lines]
    data = b"\n".join(lines)
    if name == "csv":
        found = rows(Csv, b"id,prompt\n" + data) if b'"' not in data else []
    else:
        found = rows(FORMS[name], data)
        data = data.removeprefix(b"\xef\xbb\xbf")
        assert len(found) == sum(bool(line.strip()) for line in data.split(b"\n"))
    for each in found:
        assert (each.asked is None) == bool(each.problem)


def test_a_row_of_openais_format() -> None:
    body = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
            },
        ],
        "max_completion_tokens": 5,
        "temperature": 0.3,
        "top_p": None,
        "logprobs": True,
        "top_logprobs": 3,
        "user": "me",
        "n": 1,
        "response_format": {"type": "json_object"},
    }
    value = {"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": body}
    found = row(OpenAI, value)
    assert found.problem == ""
    assert found.id == "q"
    assert found.asked.prompt == [Message("system", "Be kind."), Message("user", "Hi")]
    assert found.asked.sampling == Sampling(
        max_tokens=5, temperature=0.3, json_schema='{"type": "object"}'
    )
    assert found.asked.n_top == 3
    plain = {**value, "url": "/v1/completions", "body": {"prompt": ["Hi"], "logprobs": 2}}
    found = row(OpenAI, plain)
    assert (found.asked.prompt, found.asked.n_top) == ("Hi", 2)


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"custom_id": None}, "custom_id is missing"),
        ({"method": "GET"}, 'method must be "POST", not'),
        ({"url": "/v1/embeddings"}, 'url must be "/v1/chat/completions" or "/v1/completions", not'),
        ({"body": []}, "body is no JSON object"),
        ({"body": {}}, "messages is missing"),
        ({"body": {**CHAT, "n": 2}}, "n 2 is not supported here"),
        ({"body": {**CHAT, "stream": True}}, "stream true is not supported here"),
        ({"body": {**CHAT, "tools": [{"type": "function"}]}}, "tools"),
        ({"body": {**CHAT, "logit_bias": {"50256": -100}}}, "logit_bias names tokens by number"),
        ({"body": {**CHAT, "temprature": 1}}, "unknown option 'temprature'"),
        ({"body": {**CHAT, "text_bias": {"a": 1}}}, "unknown option 'text_bias'"),
        ({"body": {**CHAT, "top_logprobs": 3}}, "top_logprobs needs logprobs"),
        ({"body": {**CHAT, "logprobs": 3}}, "logprobs must be true or false"),
        ({"body": {**CHAT, "logprobs": True, "top_logprobs": 30}}, "from 0 to 20"),
        ({"body": {**CHAT, "response_format": {"type": "xml"}}}, "response_format must be"),
        ({"body": {**CHAT, "response_format": {"type": "json_schema"}}}, "json_schema is missing"),
        (
            {"body": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}},
            'content[0].type must be "input_text" or',
        ),
        ({"url": "/v1/completions", "body": {"prompt": [1, 2]}}, "prompt must be one text"),
        ({"priority": 5}, "unknown option 'priority'"),
        ({"body": {**CHAT, "prompt": "a"}}, "prompt is nothing that /v1/chat/completions knows"),
        (
            {"body": {"messages": [{"role": "user", "content": "Hi", "nmae": "me"}]}},
            "unknown option 'messages[0].nmae'; did you mean name?",
        ),
    ],
)
def test_what_openais_format_asks_for_and_cannot_be_done(change, problem) -> None:
    value = {"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    assert problem in row(OpenAI, {**value, **change}).problem


def test_a_table_with_quoted_fields_and_a_template() -> None:
    data = '\ufeffid,question,unit\r\na,"How ""far"",\nJohn?",km\r\n,x,y\r\nb,1\r\n'.encode()
    template = Template("{question} in {unit}, {{sic}}")
    found = rows(Csv, data, template=template, raw=True)
    assert found[0].asked.prompt == 'How "far",\nJohn? in km, {sic}'
    assert [(each.id, each.line) for each in found] == [("a", 2), ("line 4", 4), ("b", 5)]
    assert "has 2 fields, and the head has 3" in found[2].problem


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'id,prompt\na,"x\nb,y\nc,z\n', 2),
        (b'id,prompt\r\na,x\r\nb,"y\r\nc,z', 3),
        # Closed by the quote that the next row means to open.
        (b'id,prompt\na,"x\nb,"y"\n', 2),
        (b'id,prompt\na,"x\ny"\nb,"z', 4),
        # A field before it has several lines.
        (b'id,prompt\n"a\n""b""\n","x"y\n', 2),
        (b'id,"prompt\na,x\n', 1),
        (b'id;prompt\na;"x, ""y""\n', 2),
        (b'id,prompt\ra,x\rb,"y\r', 3),
        (b'id,prompt\na,"x" \n', 2),
    ],
)
def test_the_row_with_a_quote_that_does_not_end_its_field_is_named(data, line) -> None:
    with pytest.raises(InputError, match=f"^line {line}: cannot be read as CSV .*quote"):
        rows(Csv, data)


@given(st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), max_size=4))
def test_a_table_that_is_well_quoted_is_read(table) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["id", "prompt"], *table])
    found = rows(Csv, text.getvalue().encode("utf-8", "surrogatepass"), raw=True)
    prompts = [each.asked.prompt if each.asked else None for each in found]
    sound = [not any("\ud800" <= char <= "\udfff" for char in "".join(row)) for row in table]
    assert prompts == [row[1] if ok else None for row, ok in zip(table, sound, strict=True)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_may_have_a_column_prompt(delimiter) -> None:
    data = delimiter.join(["n", "prompt"]) + "\n" + delimiter.join(["1", "Hi"]) + "\n"
    (only,) = rows(Csv, data.encode(), raw=True)
    assert (only.id, only.asked.prompt) == ("line 2", "Hi")


def test_a_table_without_a_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="no column prompt; give --prompt-template"):
        rows(Csv, b"a,b\n1,2\n")
    with pytest.raises(InputError, match=r"some of 'id', ' Prompt' \(--format text, if it is no"):
        rows(Csv, b"id, Prompt\n1,2\n")
    with pytest.raises(InputError, match=r"names \{questoin\}; did you mean question"):
        rows(Csv, b"id,question\n1,2\n", template=Template("{questoin}"))
    with pytest.raises(InputError, match="two columns of the same name"):
        rows(Csv, b"prompt,prompt\n1,2\n")


def table(options: dict[str, str], **wishes: Any) -> Row:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["id", "prompt", *options], ["x", "Hi", *options.values()]])
    (only,) = rows(Csv, text.getvalue().encode(), **wishes)
    assert only.id == "x"
    return only


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"max_tokens": "3", "temperature": "0.5", "seed": "7"}, None),
        ({"max_completion_tokens": "3"}, {"max_tokens": 3}),
        ({"stop": "7"}, {"stop": ("7",)}),
        ({"stop": '["a", "\\n"]'}, {"stop": ("a", "\n")}),
        ({"grammar": 'root ::= "a"'}, None),
        ({"json_schema": '{"type": "array"}'}, None),
        (
            {"response_format": '{"type": "text"}', "logit_bias": '{"a": 1}'},
            {"logit_bias": {"a": 1}},
        ),
        (
            {"max_tokens": "", "stop": "", "n": "1", "stream": "false", "suffix": "", "task": "t"},
            {},
        ),
    ],
)
def test_options_of_a_table_are_those_of_json_lines(options, changed) -> None:
    if changed is None:
        texts = ("grammar", "json_schema")
        changed = {k: v if k in texts else json.loads(v) for k, v in options.items()}
    found = table(options)
    assert found.problem == ""
    assert found.asked.sampling == Sampling(**{"max_tokens": 9, **changed})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"temprature": "1"}, "did you mean temperature?"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"max_tokens": "1.5"}, "max_tokens must be a whole number"),
        ({"n": "2"}, "n 2 is not supported"),
        ({"suffix": "end"}, "suffix 'end' is not supported"),
        ({"messages": "[]"}, "both prompt and messages"),
        ({"logit_bias": '{"a": 1, "a": 2}'}, "has the key 'a' twice"),
    ],
)
def test_what_a_table_asks_for_and_cannot_be_done_is_named(options, problem) -> None:
    assert problem in table(options).problem


def test_a_column_that_the_template_names_is_no_option() -> None:
    options = {"max_tokens": "3", "n": "2", "temprature": "warm"}
    template = Template("{prompt} {max_tokens} {n} {temprature}")
    found = table(options, template=template, raw=True)
    assert (found.problem, found.asked.prompt) == ("", "Hi 3 2 warm")
    assert found.asked.sampling == DEFAULTS


def test_a_field_that_is_no_utf8_is_a_row_with_a_problem() -> None:
    found = rows(Csv, b"id,prompt\nx,\xff\ny,fine\n\xff,a\n\xff\n")
    assert [each.problem for each in found[:3]] == ["is not UTF-8 text", "", "is not UTF-8 text"]
    assert [each.id for each in found] == ["x", "y", "line 4", "line 5"]


def test_templates_take_values_of_json_lines() -> None:
    template = Template("{question} ({year})")
    found = row(JsonLines, {"question": "Who?", "year": 1999}, template=template, raw=True)
    assert found.asked.prompt == "Who? (1999)"
    assert "has no year" in row(JsonLines, {"question": "Who?"}, template=template).problem


@pytest.mark.parametrize(
    "text", ["{", "}", "{a.b!r}", "{a:>10}", "{}", "no place", "{a!s}", "{{a}}"]
)
def test_templates_can_do_nothing_but_name_columns(text) -> None:
    with pytest.raises(InputError):
        Template(text)


def test_a_template_reaches_no_attributes() -> None:
    template = Template("{a.__class__}{a[0]}")
    with pytest.raises(InputError, match=r"has no a\.__class__"):
        template.fill({"a": "x"})


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b'{"prompt": "a"}\n', "in", JsonLines),
        (b'\xef\xbb\xbf\n {"prompt": "a"}\n', "in", JsonLines),
        (b'\n{"prompt": "a"}\n', "in", JsonLines),
        (b"{bad\n", "in.txt", JsonLines),
        (b'{"custom_id": "a", "body": {}}\n', "in", OpenAI),
        (b'{"custom_id": bad\n', "in", OpenAI),
        (b"id,prompt\n1,a\n", "in", Csv),
        (b"a,b\n1,a\n", "in.csv", Csv),
        (b"Hello, prompt!\n", "in", Text),
        (b"Write a prompt, please\n", "in", Text),
        (b"What is this?\n", "in", Text),
        (b"a" * 200_000 + b"\nb\n", "in.txt", Text),
        (b"the first\rline\nsecond\n", "in.txt", Text),
        (b"id,prompt\r1,a\r", "in.txt", Csv),
        (b"id, Prompt\n1,a\n", "in", Csv),
        (b"PROMPT \n1,a\n", "in", Csv),
        (b'id;"prompt "\n1;a\n', "in", Csv),
        (b'id, "prompt"\n1,a\n', "in", Csv),
        (b'"a, b, or c";prompt\n1;a\n', "in", Csv),
        (b"id,prompt\r1,a\r", "in.csv", Csv),
        (b"", "in", Text),
    ],
)
def test_the_form_is_found_by_the_content(data, name, expected) -> None:
    # As in a new process: reading a table raises it.
    csv.field_size_limit(131_072)
    file = io.BytesIO(data)
    assert type(form_of(file, name, WISHES)) is expected
    assert file.tell() == 0
    if b"\r" not in data or b"\n" in data:
        assert type(form_of(file, name, WISHES, "text")) is Text


@pytest.mark.parametrize(
    "data", [b"the\rlight\r", b'{"prompt": "a"}\r{"prompt": "b"}\r', b"\na\rb"]
)
@pytest.mark.parametrize("form", [None, "text", "jsonl", "openai"])
def test_lines_that_end_with_carriage_returns_alone_are_refused(data, form) -> None:
    with pytest.raises(InputError, match="in ends its lines with carriage returns alone"):
        form_of(io.BytesIO(data), "in", WISHES, form)


def test_a_table_of_any_line_ends_is_read() -> None:
    for end in ("\n", "\r\n", "\r"):
        data = end.join(['"a, b, or c";prompt', "1;the", "2;light", ""]).encode()
        file = io.BytesIO(data)
        found = list(form_of(file, "in", Wishes(DEFAULTS, raw=True)).rows(file))
        assert [each.asked.prompt for each in found] == ["the", "light"]


def test_a_template_makes_a_table_of_text() -> None:
    wishes = Wishes(DEFAULTS, template=Template("{a}"))
    assert type(form_of(io.BytesIO(b"a,b\n"), "in", wishes)) is Csv
    with pytest.raises(InputError, match="goes with csv and jsonl"):
        form_of(io.BytesIO(b"a,b\n"), "in", wishes, "text")


@pytest.mark.parametrize(
    ("option", "wish"),
    [("--system", {"system": "Be kind."}), ("--raw", {"raw": True}), ("--logprobs", {"n_top": 0})],
)
def test_options_that_openais_format_has_no_place_for_are_refused(option, wish) -> None:
    file = io.BytesIO(b'{"custom_id": "a", "body": {}}\n')
    with pytest.raises(InputError, match=f"{option} goes with csv, jsonl and text, and in is op"):
        form_of(file, "in", Wishes(DEFAULTS, **wish))
    assert type(form_of(file, "in", Wishes(DEFAULTS, **wish), "jsonl")) is JsonLines


def test_a_json_array_is_refused() -> None:
    with pytest.raises(InputError, match="is a JSON array"):
        form_of(io.BytesIO(b'[{"prompt": "a"}]'), "in", WISHES)


def answer(**options: Any) -> Answer:
    usage = Usage(("a",), (5,), (0,), (0,), (0.1,), (0.1,), 2, 0.2, 0.1)
    pieces = options.pop("pieces", [b"H", b"\xc3", b"\xa9", b" stop"])
    steps = [Step(piece, "", 0.5, (True,)) for piece in pieces]
    steps.append(Step(b"", options.pop("text", "Hé"), 0.25, (True,), "stop", usage))
    found = Answer(told=True)
    for step in steps:
        found.push(step)
    return found


def test_tokens_that_the_text_does_not_hold_are_left_out() -> None:
    tokens = answer().tokens
    assert [token.piece for token in tokens] == [b"H", b"\xc3", b"\xa9"]
    assert [token.start for token in tokens] == [0, 1, 1]


@pytest.mark.parametrize("form", [JsonLines(WISHES), Text(WISHES)])
def test_own_results_are_known_again(form) -> None:
    for asked, known in ((Row(3, "x"), ("x", "")), (Row(3, "line 3", "0123"), (3, "0123"))):
        for result in (form.answered(asked, answer(), "m"), form.failed(asked, "is bad")):
            assert form.identity(json.loads(json.dumps(result))) == known
    # As earlier versions wrote it.
    assert form.identity({"id": 3, "row_hash": "0123", "text": ""}) == (3, "0123")
    assert form.failed(Row(3, "x"), "is bad")["error"] == {"message": "is bad", "line": 3}


def test_results_in_openais_format() -> None:
    form = OpenAI(WISHES)
    value = {"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    asked = row(OpenAI, {**value, "body": {**CHAT, "logprobs": True}})
    result = form.answered(asked, answer(), "demo")
    assert result["custom_id"] == "q"
    assert result["error"] is None
    assert result["response"]["status_code"] == 200
    body = result["response"]["body"]
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hé", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["content"][1]["bytes"] == [0xC3]
    details = {"completion_tokens_details": {"reasoning_tokens": 0}}
    details |= {"prompt_tokens_details": {"cached_tokens": 0}}
    counts = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert body["usage"] == counts | details
    assert body["model"] == "demo"
    assert form.identity(result) == ("q", "")
    plain = row(OpenAI, {**value, "url": "/v1/completions", "body": {"prompt": "a", "logprobs": 0}})
    (choice,) = form.answered(plain, answer(), "demo")["response"]["body"]["choices"]
    assert choice["text"] == "Hé"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]
    bad = row(OpenAI, {"custom_id": 5})
    result = form.failed(bad, "is bad")
    assert result["custom_id"] is None
    assert result["response"] is None
    assert result["error"]["message"] == "is bad"
    assert form.identity(result) == (1, bad.mark)


@given(st.lists(st.integers(0, 9), min_size=1))
def test_ids_that_come_more_than_once_are_refused(ids) -> None:
    data = "".join(json.dumps({"id": each, "prompt": "a"}) + "\n" for each in ids).encode()
    source = Source("in", JsonLines(WISHES), io.BytesIO(data))
    if len(set(ids)) == len(ids):
        done = Done(1, 0, frozenset([f":{ids[0]}"]))
        assert source.count(done) == len(ids) - 1
        assert [found.id for found in source.left(done)] == ids[1:]
    else:
        with pytest.raises(InputError, match="ids must differ"):
            source.count(Done())


@pytest.mark.parametrize("form", [form(WISHES) for form in FORMS.values()])
def test_rows_of_all_forms_begin_alike(form) -> None:
    for each in (Row(3, "x"), Row(3, "line 3", "0123")):
        assert json_line(form.failed(each, "is bad")).startswith(_BEGINNING)


def test_errors_of_rows_are_eva_errors() -> None:
    with pytest.raises(EvaError):
        form_of(io.BytesIO(b"[\n"), "in", WISHES)
