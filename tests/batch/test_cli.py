"""The command `batch` in processes of its own, on two tiny models with random weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from batches import results, texts
from waiting import PATIENCE_S


@pytest.fixture
def eva(models, tmp_path):
    """Runs `eva-local batch` in an empty folder."""

    def run(*arguments: str, data: bytes = b"", **options: Any) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(models, *arguments),
            input=data,
            capture_output=True,
            cwd=tmp_path,
            env=environment(tmp_path),
            check=False,
            timeout=PATIENCE_S,
            **options,
        )

    return run


def command(models: Path, *arguments: str) -> list[str]:
    call = [sys.executable, "-m", "eva_local", "--config", str(models / "models.toml")]
    return [*call, "batch", *arguments]


def environment(folder: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "EVA_LOCAL_CACHE": str(folder / "cache")}


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")


# Runs a command, and waits for the end of its input once three rows are written.
PAUSING = """
import sys
from eva_local.batch.job import Job
from eva_local.cli import main
write = Job._write
def pausing(job, *result):
    write(job, *result)
    if job.progress.n_done == 3:
        print("PAUSE", flush=True)
        sys.stdin.read()
Job._write = pausing
sys.exit(main(sys.argv[1:]))
"""
ROWS = "".join(json.dumps({"id": f"r{n}", "prompt": f"the {n}"}) + "\n" for n in range(6))


def test_a_job_says_what_it_did(eva, tmp_path) -> None:
    write(tmp_path, "in.jsonl", ROWS)
    done = eva("in.jsonl", "out.jsonl", "-e", "pair", "-n", "4", "--parallel", "3")
    assert done.returncode == 0
    assert done.stdout == b""
    assert re.search(
        rb"6 of 6 rows in 0:00:0\d, 3 side by side: \d+ tokens, [\d.]+ tokens/s", done.stderr
    )
    assert set(texts(tmp_path / "out.jsonl")) == {f"r{n}" for n in range(6)}
    again = eva("in.jsonl", "out.jsonl", "-e", "pair", "-n", "4")
    assert again.returncode == 0
    assert b"nothing to do: 6 rows are answered in out.jsonl" in again.stderr
    other = eva("in.jsonl", "out.jsonl", "-e", "pair", "-n", "5")
    assert other.returncode == 2
    assert b"max_tokens was 4 and is 5" in other.stderr
    assert other.stderr.count(b"\n") == 1
    third = eva("in.jsonl", "out.jsonl", "-e", "pair", "-n", "5", "--restart", "--ordered")
    assert third.returncode == 0
    assert [row["id"] for row in results(tmp_path / "out.jsonl")] == [f"r{n}" for n in range(6)]


def test_rows_that_failed_are_told_by_the_exit_code(eva, tmp_path) -> None:
    write(tmp_path, "in.jsonl", ROWS + '{bad\n{"id": "long", "prompt": "' + "z" * 300 + '"}\n')
    arguments = ("in.jsonl", "out.jsonl", "-e", "pair", "-n", "4", "--parallel", "2")
    done = eva(*arguments)
    assert done.returncode == 1
    assert b"2 failed (--retry-errors tries them again)" in done.stderr
    assert eva(*arguments).returncode == 1
    write(tmp_path, "in.jsonl", ROWS)
    assert eva(*arguments, "--retry-errors").returncode == 0
    assert len(texts(tmp_path / "out.jsonl")) == 6


def test_standard_input_to_standard_output(eva) -> None:
    done = eva("-", "-", "-e", "one", "-n", "3", "--raw", data=b"the\n\nlight\n")
    assert done.returncode == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(row["id"] for row in rows) == ["line 1", "line 3"]


PIPED = {
    "jsonl": '\ufeff{"id": "a", "prompt": "the"}\n{"id": "b", "prompt": "light"}\n',
    "openai": "".join(
        json.dumps({"custom_id": name, "url": "/v1/completions", "body": {"prompt": "the"}}) + "\n"
        for name in "ab"
    ),
    "csv": "id,prompt\na,the\nb,light\n",
    "text": "the\nlight\n",
}


def ids_of(rows: bytes) -> set[str]:
    found = [json.loads(line) for line in rows.splitlines()]
    assert not any("error" in row and row["error"] for row in found)
    return {row.get("custom_id") or row["id"] for row in found}


WAYS = ("cat rows | {-}", "cat rows | {/dev/stdin}", "cat rows > fifo & {fifo}", "{<(cat rows)}")


@pytest.mark.parametrize(
    ("form", "way"), [*((form, WAYS[0]) for form in PIPED), *(("csv", way) for way in WAYS[1:])]
)
def test_what_comes_through_a_pipe_is_read_as_a_file_is(models, tmp_path, form, way) -> None:
    write(tmp_path, "rows", PIPED[form])
    os.mkfifo(tmp_path / "fifo")
    expected = {"line 1", "line 2"} if form == "text" else {"a", "b"}
    call = " ".join(command(models, r"\1", "- -e one -n 2 --parallel 2"))
    done = subprocess.run(
        ["bash", "-c", re.sub("{(.*)}", call, way)],
        capture_output=True,
        cwd=tmp_path,
        env=environment(tmp_path),
        check=False,
        timeout=120,
    )
    assert done.returncode == 0
    assert ids_of(done.stdout) == expected


@pytest.mark.parametrize(("ensemble", "n_ctx"), [("one", "1"), ("pair", "2"), ("one", "12")])
def test_a_context_that_holds_no_row_is_told_of_each(eva, tmp_path, ensemble, n_ctx) -> None:
    write(tmp_path, "in.txt", "the\nlight\n")
    done = eva("in.txt", "out.jsonl", "-e", ensemble, "-n", "2", "--n-ctx", n_ctx)
    assert done.returncode == 1
    for row in results(tmp_path / "out.jsonl"):
        assert "the prompt does not fit" in row["error"]["message"]


def test_openais_format_in_and_out(eva, tmp_path) -> None:
    row = {
        "custom_id": "request-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": "the light"}],
            "max_tokens": 3,
            "logprobs": True,
            "top_logprobs": 2,
        },
    }
    write(tmp_path, "in.jsonl", json.dumps(row) + "\n" + json.dumps({**row, "custom_id": 7}))
    done = eva("in.jsonl", "out.jsonl", "-e", "pair")
    assert done.returncode == 1
    bad, good = sorted(results(tmp_path / "out.jsonl"), key=lambda row: row["error"] is None)
    assert good["custom_id"] == "request-1"
    choice = good["response"]["body"]["choices"][0]
    assert choice["finish_reason"] in ("length", "stop")
    for token in choice["logprobs"]["content"]:
        assert len(token["top_logprobs"]) == 2
    assert bad["custom_id"] is None
    assert "custom_id must be a text" in bad["error"]["message"]
    assert eva("in.jsonl", "out.jsonl", "-e", "pair").returncode == 1


def test_a_table_with_a_template(eva, tmp_path) -> None:
    write(tmp_path, "in.csv", 'id,word,n\na,"the ""light""",1\nb,and,2\n')
    done = eva("in.csv", "out.jsonl", "-e", "one", "-n", "2", "--prompt-template", "{word}: {n}")
    assert done.returncode == 0
    assert set(texts(tmp_path / "out.jsonl")) == {"a", "b"}
    done = eva("in.csv", "-", "-e", "one")
    assert done.returncode == 2
    assert b"give --prompt-template with some of 'id', 'word', 'n'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("none.jsonl", "out"), "none.jsonl: cannot be read: No such file"),
        (("in.txt", "out", "--parallel", "0"), "--parallel must be auto or a whole number"),
        (("in.txt", "out", "--parallel", "many"), "--parallel must be auto or a whole number"),
        (("in.txt", "out", "--restart", "--retry-errors"), "leave --retry-errors out"),
        (("in.txt", "-", "--retry-errors"), "--retry-errors needs an output that is a file"),
        (("in.txt", "out", "--raw", "-s", "Hi"), "--raw has no system message"),
        (("in.txt", "out", "--prompt-template", "{"), "the prompt template cannot be read"),
        (("in.txt", "out", "--prompt-template", "{a}"), r"in.txt: the prompt template names \{a\}"),
        (("in.txt", "out", "--logprobs", "21"), "0<=x<=20"),
        (("in.txt", "out", "--temperature", "hot"), "temperature"),
        (("in.txt", "no/out"), "no/out: cannot be written: No such file"),
        (("in.txt", "in.txt"), "in.txt is the input itself"),
        (("in.txt", "/dev/full", "--raw"), "/dev/full: cannot be written: No space left on device"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(eva, tmp_path, arguments, problem) -> None:
    write(tmp_path, "in.txt", "the\n")
    done = eva(*arguments, "-e", "one", "-n", "2")
    assert done.returncode == 2
    shown = done.stderr.decode().splitlines()
    assert re.search(problem, shown[-1]), shown
    assert len(shown) == 1


def test_who_reads_the_rows_may_stop(models, eva, tmp_path) -> None:
    write(tmp_path, "in.txt", "the\n" * 2000)
    with subprocess.Popen(
        command(models, "in.txt", "-", "-e", "one", "-n", "2", "--parallel", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(tmp_path),
    ) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.wait(PATIENCE_S) == 0
        assert b"Traceback" not in run.stderr.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_job_ends_in_order_and_goes_on(models, eva, tmp_path, number, code) -> None:
    count = 12
    rows = (json.dumps({"id": n, "prompt": f"the {n}"}) for n in range(count))
    write(tmp_path, "in.jsonl", "\n".join(rows))
    arguments = ("in.jsonl", "out.jsonl", "-e", "pair", "-n", "30", "--parallel", "4")
    with subprocess.Popen(
        [sys.executable, "-c", PAUSING, *command(models, *arguments)[3:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(tmp_path),
    ) as run:
        assert run.stdout.readline() == b"PAUSE\n"
        run.send_signal(number)
        run.stdin.close()
        shown = run.stderr.read().decode()
    assert run.returncode == code
    out = tmp_path / "out.jsonl"
    assert "interrupted: the same command goes on" in shown
    # Beside that, only that each member is given a plain dialogue.
    assert shown.count("\n") - shown.count("no chat template") == 1
    assert 0 < len(texts(out)) < count
    done = eva(*arguments)
    assert done.returncode == 0
    assert b"were answered before" in done.stderr
    assert len(texts(out)) == count


def test_lines_of_progress_where_stderr_is_no_terminal(models, tmp_path) -> None:
    write(tmp_path, "in.txt", "the light\n" * 5)
    script = (
        "import sys; import eva_local.cli.batch as b; b.LINE_EVERY_S = 0.0; "
        "from eva_local.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = command(models, "in.txt", "out.jsonl", "-e", "one", "-n", "30", "--parallel", "2")
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments[3:]],
        capture_output=True,
        cwd=tmp_path,
        env=environment(tmp_path),
        check=False,
    )
    assert done.returncode == 0
    # The first one is that this member has no chat template.
    lines = done.stderr.decode().splitlines()[1:]
    # One for every step, and the last of all.
    assert len(lines) > 5 * 30 / 2
    for line in lines[:-1]:
        assert re.fullmatch(r"\d+ of 5 rows, [\d.]+ tokens/s(, (\d+:)+\d\d left)?", line)


def test_a_folder_has_an_output_for_each_file(eva, tmp_path) -> None:
    write(tmp_path, "in/a.jsonl", ROWS)
    write(tmp_path, "in/b.txt", "the\nun\n")
    write(tmp_path, "in/c.jsonl", '{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n')
    done = eva("in/", "out", "-e", "pair", "-n", "3", "--parallel", "2")
    assert done.returncode == 1
    assert b"in/c.jsonl: ids must differ" in done.stderr
    assert done.stderr.count(b"2 side by side") == 2
    assert b"\nin/a.jsonl: 6 of 6 rows" in done.stderr
    assert len(texts(tmp_path / "out" / "a.jsonl")) == 6
    assert list(texts(tmp_path / "out" / "b.txt.jsonl")) == ["line 1", "line 2"]
    write(tmp_path, "in/c.jsonl", '{"id": 1, "prompt": "a"}\n')
    again = eva("in/", "out", "-e", "pair", "-n", "3")
    assert again.returncode == 0
    assert again.stderr.count(b"nothing to do") == 2
    assert len(texts(tmp_path / "out" / "c.jsonl")) == 1
