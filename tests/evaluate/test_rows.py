"""Rows of tasks, and how they are put to models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from evaluations import ANSWER, ASKED, SHOT, write

from eva_local.errors import InputError
from eva_local.evaluate.forms import PLAIN, Conditions, prompt_of, sampling_of, scored_of, solution
from eva_local.evaluate.rows import Task, TaskRow, read_rows, read_tasks, read_texts
from eva_local.types import Message, Sampling

CHAT = Conditions(chat=True)
CHOICE = {"task": "tests", "prompt": "Question: who?\nAnswer:", "choices": ["he", "she"]}


def test_fields_tell_the_kind(tmp_path) -> None:
    write(tmp_path / "sums.jsonl", ANSWER, {**ANSWER, "id": 7})
    write(tmp_path / "picks.jsonl", {**CHOICE, "label": 1})
    write(tmp_path / "texts.jsonl", {"text": "the end"})
    write(tmp_path / "french.jsonl", {**ANSWER, "tgt_lang": "en"})
    names = ("sums", "picks", "texts", "french")
    tasks = read_tasks([tmp_path / f"{name}.jsonl" for name in names])
    assert [(one.name, one.kind) for one in tasks] == list(
        zip(names, ("generate", "choice", "bpb", "translate"), strict=True)
    )
    assert [row.name for row in tasks[0].rows] == ["1", "2"]
    assert len(read_tasks([tmp_path / "sums.jsonl"], limit=1)[0].rows) == 1


def test_a_byte_order_mark_is_no_part_of_a_row_or_text(tmp_path) -> None:
    (tmp_path / "sums.jsonl").write_text(json.dumps(ANSWER), encoding="utf-8-sig")
    (tmp_path / "sea.txt").write_text("the sea", encoding="utf-8-sig")
    (task,) = read_tasks([tmp_path / "sums.jsonl"])
    assert task.kind == "generate"
    (text,) = read_tasks([tmp_path / "sea.txt"], kind="bpb")[0].rows
    assert text.text == "the sea"


def test_examples_are_found_by_their_family_or_because_they_are_the_only_ones(tmp_path) -> None:
    sums = write(tmp_path / "sums.jsonl", ANSWER)
    picks = write(tmp_path / "picks.jsonl", {**CHOICE, "label": 0})
    shots = write(tmp_path / "a.jsonl", *[{**ANSWER, "id": str(i)} for i in range(3)])
    others = write(tmp_path / "b.jsonl", *[{**CHOICE, "label": 1}] * 3)
    tasks = read_tasks([sums, picks], None, None, [others, shots], 2)
    assert [[row.family for row in one.shots] for one in tasks] == [["sums"] * 2, ["tests"] * 2]
    foreign = write(tmp_path / "svamp.jsonl", {**ANSWER, "task": "svamp"})
    assert len(read_tasks([foreign], None, None, [shots], 2)[0].shots) == 2
    with pytest.raises(InputError, match="no file of examples is of the task 'svamp'"):
        read_tasks([foreign], None, None, [shots, others], 2)
    with pytest.raises(InputError, match="4 examples are wanted, and there are 3"):
        read_tasks([sums], None, None, [shots], 4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no row"),
        ("{\n", "line 1"),
        ('{"prompt": "a"}\n{"pro', "line 2"),
        ("[]", "no JSON object"),
        ('{"prompt": "a"}', "has no answers"),
        ('{"prompt": 1, "answers": ["a"]}', "prompt must be a text, not 1"),
        ('{"prompt": "a", "answers": "a"}', "answers must be a list of texts, not"),
        ('{"prompt": "a", "choices": ["a"]}', "needs a label"),
        ('{"prompt": "a", "choices": ["a", ""], "label": 0}', "none of which is empty"),
        ('{"prompt": "a", "choices": ["a"], "label": 1}', "label 1 of 1"),
    ],
)
def test_bad_rows_are_named(tmp_path, content, problem) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=problem):
        read_tasks([path])


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl"])
def test_utf_16_is_no_text_to_be_judged(tmp_path, name) -> None:
    (tmp_path / name).write_text('{"text": "one"}', encoding="utf-16-le")
    with pytest.raises(InputError, match="is no UTF-8 text but perhaps UTF-16"):
        read_texts(tmp_path / name)


def test_files_of_one_name_and_absent_files_are_refused(tmp_path) -> None:
    (tmp_path / "other").mkdir()
    paths = [write(folder / "r.jsonl", ANSWER) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(InputError, match="another file is called r"):
        read_tasks(paths)
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="has no choices"):
        read_tasks([paths[0]], "choice")


def test_prompts_with_examples() -> None:
    of = Task("t", "generate", (ASKED,), (SHOT,))
    line = "Two and two. make 4. The answer is 4."
    assert solution(SHOT) == line
    assert prompt_of(ASKED, of) == f"Question: 2+2?\nAnswer: {line}\n\nQuestion: 1+1?\nAnswer:"
    assert prompt_of(ASKED, of, CHAT) == [
        Message("user", SHOT.prompt),
        Message("assistant", line),
        Message("user", ASKED.prompt),
    ]
    assert solution(TaskRow("c", choices=("a", "b\nc"), label=1)) == "b c"
    assert solution(ASKED) == "2"


def test_answers_end_where_they_should() -> None:
    bare, shown = Task("t", "generate", (ASKED,)), Task("t", "generate", (ASKED,), (SHOT,))
    assert sampling_of(bare).stop == ("\n\n", "\nQuestion:")
    assert sampling_of(shown).stop == ("\n",)
    assert sampling_of(shown, CHAT).stop == ()
    lengths = [
        sampling_of(replace(bare, metric=metric)).max_tokens
        for metric in ("number", "exact", "chrF")
    ]
    assert lengths == [200, 16, 80]
    assert sampling_of(Task("t", "translate", (ASKED,))).max_tokens == 100
    assert sampling_of(bare, Conditions(max_tokens=5)).max_tokens == 5
    assert sampling_of(bare).temperature == 0
    given = Sampling(thinking="apart", thinking_mark="So:", temperature=0.7, max_tokens=7)
    drawn = sampling_of(bare, PLAIN, given)
    assert (drawn.thinking, drawn.thinking_mark, drawn.seed) == ("apart", "So:", 0)
    assert (drawn.temperature, drawn.max_tokens) == (0, sampling_of(bare).max_tokens)


def test_what_is_scored_of_a_row() -> None:
    row = TaskRow("r", prompt="p", choices=("né", "no"), text="one two three")
    picks, texts, none = Task("t", "choice", (row,)), Task("t", "bpb", (row,)), frozenset()
    assert scored_of(row, picks, none) == [("p", " né"), ("p", " no")]
    assert scored_of(row, picks, frozenset([0xC3])) == [("p", " n"), ("p", " no")]
    said = [Message("user", "p")]
    assert scored_of(row, picks, none, CHAT) == [(said, "né"), (said, "no")]
    prompt = "Question: 1+1?\nAnswer:"
    assert scored_of(ASKED, Task("t", "generate", (ASKED,)), none) == [(prompt, " 2")]
    assert scored_of(row, texts, none, Conditions(text_bytes=8)) == [("", "one two")]
    assert scored_of(row, texts, none, Conditions(prompt_bytes=8)) == [("one two", " three")]
    assert scored_of(row, texts, none, Conditions(text_bytes=8, prompt_bytes=7)) == []
