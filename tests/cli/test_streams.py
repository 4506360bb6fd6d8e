"""Standard streams that are closed or are no text, of commands in processes of their own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from batches import results, texts

RUN = "run the -e one -n 2"
BATCH = "batch in.txt out.jsonl -e one -n 2 --parallel 2"
ANSWERED = "2 of 2 rows"


@pytest.fixture
def eva(models, tmp_path):
    """Runs a command as a shell does: with streams closed, and with no input unless it is given."""
    (tmp_path / "in.txt").write_text("the\nlight\n")
    call = [sys.executable, "-m", "eva_local", "--config", str(models / "models.toml")]
    root = str(Path(__file__).parents[2])
    folders = {
        "EVA_LOCAL_CACHE": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }

    def run(arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", "-c", f"{shlex.join(call)} {arguments}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=tmp_path,
            env={**os.environ, **folders, "PYTHONPATH": root},
            check=False,
            timeout=120,
        )

    return run


def said(stderr: str) -> list[str]:
    """Return what is said beside that this model has no chat template."""
    return [line for line in stderr.splitlines() if "has no chat template" not in line]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("run -e one <&-", "there is no prompt, and standard input is closed"),
        ("batch - out.jsonl -e one <&-", "standard input: cannot be read"),
        ("chat -e one <&-", "standard input is closed"),
        (f"{RUN} >&-", "standard output: "),
        (f"{RUN} --json >&-", "standard output: "),
        (f"{RUN} <&- >&-", "standard output: "),
        ("batch in.txt - -e one -n 2 --parallel 2 >&-", "standard output: cannot be written"),
        ("chat -e one -n 2 < in.txt >&-", "standard output: "),
        ("list >&-", "standard output: "),
        ("list --json <&- >&-", "standard output: "),
        ("--version >&-", "standard output: "),
    ],
)
def test_what_needs_a_closed_stream_is_one_line_and_code_2(eva, arguments, problem) -> None:
    done = eva(arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = said(done.stderr)
    assert line.startswith(f"eva-local: {problem}")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_an_answer_needs_neither_input_nor_notes(eva, closed) -> None:
    answer = eva(RUN)
    assert answer.returncode == 0
    done = eva(f"{RUN} {closed}")
    assert (done.returncode, done.stdout, said(done.stderr)) == (0, answer.stdout, [])
    assert "pair" in eva(f"list {closed}").stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(eva, tmp_path, closed) -> None:
    done = eva(f"{BATCH} {closed}")
    assert done.returncode == 0
    assert set(texts(tmp_path / "out.jsonl")) == {"line 1", "line 2"}
    assert (ANSWERED in done.stderr) == ("2>&-" not in closed)
    assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text())["schema"] == 1


def test_problems_are_codes_where_nobody_can_be_told(eva, tmp_path) -> None:
    assert eva("run the -e none 2>&-").returncode == 2
    assert eva("run -e one <&- >&- 2>&-").returncode == 2
    (tmp_path / "in.txt").write_text("the\n" + 500 * "z" + "\n")
    assert eva(f"{BATCH} 2>&-").returncode == 1
    assert len(results(tmp_path / "out.jsonl")) == 2


# A command whose job tells of its progress with every step.
TELLING = """
import sys
from eva_local.cli import batch, main
batch.LINE_EVERY_S = 0.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("target", ["out.jsonl", "-"])
@pytest.mark.parametrize("place", ["full", "broken"])
def test_notes_that_nobody_takes_do_not_end_a_job(models, tmp_path, place, target) -> None:
    (tmp_path / "in.txt").write_text("".join(f"the {number}\n" for number in range(30)))
    call = [sys.executable, "-c", TELLING, "--config", str(models / "models.toml")]
    call += [
        "batch",
        str(tmp_path / "in.txt"),
        target,
        *["-e", "one", "-n", "2", "--parallel", "2"],
    ]
    root = str(Path(__file__).parents[2])
    reader, notes = os.pipe()
    os.close(reader)
    if place == "full":
        os.close(notes)
        notes = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        call,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=notes,
        cwd=tmp_path,
        env={**os.environ, "EVA_LOCAL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": root},
        check=False,
        timeout=120,
    )
    os.close(notes)
    assert done.returncode == 0
    rows = done.stdout if target == "-" else (tmp_path / target).read_bytes()
    assert len(rows.splitlines()) == 30


def test_a_problem_is_a_code_where_the_notes_find_no_room(eva) -> None:
    assert eva("run the -e none 2>/dev/full").returncode == 2
    assert eva("run 2>/dev/full").returncode == 2
    assert eva(f"{RUN} --stats 2>/dev/full").returncode == 0


def test_a_conversation_needs_no_notes(eva) -> None:
    done = eva("chat -e one -n 2 < in.txt 2>&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_prompt_in_utf_16_is_refused(eva, tmp_path) -> None:
    (tmp_path / "in.txt").write_text("the light\n", encoding="utf-16-le")
    done = eva("run -e one -n 2 < in.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("eva-local: standard input is no UTF-8 text but perhaps UTF-16")
