"""Thoughts of rows: in both forms of output, in a job that is killed, and in tables."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from batches import results
from tiny_thinkers import write_thinkers
from waiting import PATIENCE_S

from eva_local.batch.forms import Csv, JsonLines, Template, Wishes
from eva_local.types import Message, Sampling

# A job that ends itself, as `kill -9` ends it, once so many rows are written.
KILLED = """
import os, signal, sys
from eva_local.batch.job import Job
from eva_local.cli import main
write = Job._write
def killed(job, *result):
    write(job, *result)
    if job.progress.n_done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Job._write = killed
sys.exit(main(sys.argv[1:]))
"""
# The same in the middle of thoughts that are written apart, once a row is written.
KILLED_IN_THOUGHT = """
import os, signal, sys
from eva_local.batch.job import Job
from eva_local.cli import main
from eva_local.engine.apart import ApartSequence
write, step, written = Job._write, ApartSequence.step, []
def noting(job, *result):
    write(job, *result)
    written.append(result)
def killed(text):
    if written and text._thinkers and text.steps > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(text)
Job._write, ApartSequence.step = noting, killed
sys.exit(main(sys.argv[1:]))
"""
RUN = "import sys; from eva_local.cli import main; sys.exit(main(sys.argv[1:]))"
# Options of a row, and whether it thinks.
ROWS: list[tuple[dict[str, Any], bool]] = [
    ({"enable_thinking": True}, True),
    ({"reasoning_effort": "none"}, False),
    ({}, True),
    ({"thinking": "off"}, False),
    ({"reasoning_budget": 2}, True),
    ({"chat_template_kwargs": {"enable_thinking": False}}, False),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, templates: Mapping[str, str]) -> Path:
    return write_thinkers(tmp_path_factory.mktemp("thinkers"), templates)


OPTIONS = ("-e", "thinkers", "-n", "12", "--thinking", "on", "--thinking-budget", "4")
APART = ("-e", "panel", "-n", "6", "--temperature", "1", "--seed", "7", "--thinking-budget", "4")


def job(
    folder: Path, config: Path, script: str, *more: str, options: Sequence[str] = OPTIONS
) -> subprocess.CompletedProcess[bytes]:
    root = str(Path(__file__).parents[2])
    call = [sys.executable, "-c", script, "--config", str(config), "batch", "in.jsonl"]
    return subprocess.run(
        [*call, *options, "--parallel", "2", *more],
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "EVA_LOCAL_CACHE": str(folder / "cache")},
        check=False,
        timeout=PATIENCE_S,
    )


def native(number: int, options: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": f"Hello {number}", **options}


def openais(number: int, options: dict[str, Any]) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": f"Hello {number}"}], **options}
    return {"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": body}


def told(row: dict[str, Any]) -> tuple[str, str | None, int]:
    """Return the id of a result, its thought and how many steps that took."""
    if "custom_id" in row:
        body = row["response"]["body"]
        message = body["choices"][0]["message"]
        n_thought = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
        return row["custom_id"], message.get("reasoning_content"), n_thought
    return row["id"], row.get("reasoning"), row["usage"]["reasoning_steps"]


@pytest.mark.parametrize("form", [native, openais])
def test_rows_think_as_they_say_and_a_killed_job_goes_on(config, tmp_path, form) -> None:
    rows = [form(number, options) for number, (options, _) in enumerate(ROWS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert job(tmp_path, config, KILLED, "out.jsonl").returncode == -9
    assert len(results(tmp_path / "out.jsonl")) == 2
    other = job(tmp_path, config, RUN, "out.jsonl", "--thinking", "off")
    assert (other.returncode, other.stderr.count(b"\n")) == (2, 1)
    assert b'thinking was "on" and is "off"' in other.stderr
    done = job(tmp_path, config, RUN, "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert b"2 were answered before" in done.stderr
    found = sorted(map(told, results(tmp_path / "out.jsonl")))
    assert [name for name, *_ in found] == [f"r{number}" for number in range(len(ROWS))]
    for (_, thought, n_thought), (_, thinks) in zip(found, ROWS, strict=True):
        assert bool(thought) == (n_thought > 0) == thinks
    assert found[4][2] <= 2


@pytest.mark.parametrize("space", ["pivot", "bytes"])
def test_a_job_killed_in_thoughts_apart_goes_on_to_the_same_texts(config, tmp_path, space) -> None:
    rows = [native(number, {}) for number in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = [*APART, "--space", space]
    assert job(tmp_path, config, KILLED_IN_THOUGHT, "out.jsonl", options=how).returncode == -9
    before = results(tmp_path / "out.jsonl")
    assert 0 < len(before) < len(rows)
    done = job(tmp_path, config, RUN, "out.jsonl", options=how)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} were answered before" in done.stderr.decode()
    whole = job(tmp_path, config, RUN, "whole.jsonl", options=how)
    assert whole.returncode == 0, whole.stderr
    found, expected = (
        sorted((row["id"], row["text"], row["reasoning"]) for row in results(tmp_path / name))
        for name in ("out.jsonl", "whole.jsonl")
    )
    assert found == expected
    assert [name for name, *_ in found] == [f"r{number}" for number in range(len(rows))]
    for _, _, thought in found:
        assert all(f"{name}:\n" in thought for name in ("calm", "qwen35", "gpt-oss"))


def test_a_column_of_a_table_is_an_option_unless_the_template_names_it() -> None:
    table = (
        b"prompt,thinking,enable_thinking,chat_template,thinking_mark\n"
        b"a,,true,[INST]{{ messages }},42\n"
    )
    (row,) = Csv(Wishes(Sampling())).rows(io.BytesIO(table))
    assert row.asked is not None
    assert row.asked.sampling.thinking == "on"
    assert row.asked.sampling.chat_template == "[INST]{{ messages }}"
    assert row.asked.sampling.thinking_mark == "42"
    wishes = Wishes(Sampling(), template=Template("{thinking}"))
    (row,) = Csv(wishes).rows(io.BytesIO(b"thinking\nHm. Let me see.\n"))
    assert row.asked is not None
    assert row.asked.prompt == [Message("user", "Hm. Let me see.")]


def test_a_raw_prompt_has_no_thought() -> None:
    form = JsonLines(Wishes(Sampling(thinking="on"), raw=True))
    on, off, untold = form.rows(
        io.BytesIO(
            b'{"prompt": "a", "enable_thinking": true}\n{"prompt": "a", "thinking": "off"}\n'
            b'{"prompt": "a"}\n'
        )
    )
    assert on.problem.startswith("enable_thinking is for messages")
    assert off.asked is not None
    assert untold.asked is not None
