"""The command `run` as a person uses it: in a process of its own, on the real models."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REAL_MODELS, real_path

from eva_local.config.config import shipped
from tools.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.real

FRANCE = "What is the capital of France? Answer in one sentence."
COMMAND = [sys.executable, "-m", "eva_local", "--config", str(shipped("models.toml"))]
NO_NETWORK = """
import sys
def hook(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise SystemExit(f"the network was used: {event}")
sys.addaudithook(hook)
from eva_local.cli import main
sys.exit(main(sys.argv[1:]))
"""


# The peak that getrusage knows would include that of the process that started this one.
PEAK = """
import sys
from pathlib import Path
from eva_local.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
sys.exit(code)
"""


# Ctrl-C from another thread, when a share of the n-th file is there.
INTERRUPTED = """
import os, signal, sys, threading
from eva_local.llama import llama_model as model
from eva_local.cli import main
share, number = float(sys.argv[1]), int(sys.argv[2])
reached = threading.Event()
def send():
    reached.wait()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=send, daemon=True).start()
init, opened = model.LlamaModel.__init__, []
def watched(self, *arguments, progress, **options):
    opened.append(self)
    def told(loaded):
        progress(loaded)
        if loaded >= share and len(opened) == number:
            reached.set()
    init(self, *arguments, progress=told, **options)
model.LlamaModel.__init__ = watched
sys.exit(main(sys.argv[3:]))
"""


def eva(
    *arguments: str, config: Path | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    command = COMMAND if config is None else [*COMMAND[:3], "--config", str(config)]
    return subprocess.run(
        [*command, *arguments], input=text, capture_output=True, text=True, timeout=300, check=False
    )


def test_demo_knows_the_capital_of_france() -> None:
    done = eva("run", "-e", "demo", "--max-tokens", "40", FRANCE)
    assert done.returncode == 0
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert done.stderr == "" or "loading" in done.stderr


def test_trio_goes_on_with_a_text() -> None:
    done = eva("run", "-e", "trio", "--raw", "-n", "8", "The capital of France is")
    assert done.stdout.startswith(" Paris")


def test_standard_input_is_the_prompt_or_goes_after_it() -> None:
    done = eva("run", "-n", "12", text=FRANCE)
    assert "Paris" in done.stdout
    done = eva("run", "--raw", "-n", "4", "--json", "The opposite of hot", text="is")
    alone = eva("run", "--raw", "-n", "4", "--json", "The opposite of hot\n\nis")
    assert json.loads(done.stdout)["text"] == json.loads(alone.stdout)["text"]


def test_json_and_stats() -> None:
    done = eva("run", "-n", "5", "--json", "--stats", "Count to three.")
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["steps"] == 5
    assert answer["usage"]["members"] == ["qwen2.5-coder-0.5b", "smollm2-135m"]
    assert re.search(r"5 tokens, [\d.]+ tokens/s.*smollm2-135m [\d.]+ ms.*filtered", done.stderr)


def test_one_model_alone_and_its_stop_string() -> None:
    done = eva("run", "-e", "smollm2-135m", "--raw", "--stop", ",", "-n", "30", "One, two, three")
    assert done.stdout.strip("\n") == "" or "," not in done.stdout


def test_law_9_running_opens_no_connection() -> None:
    arguments = [*COMMAND[3:], "run", "-e", "demo", "-n", "2", "Hello"]
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, "network" in done.stderr) == (0, False)


def test_ctrl_c_ends_with_what_was_written() -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "-n", "400", "Tell me a very long story about the sea."],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(first) > 0
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in complaints


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 1.0])
def test_ctrl_c_is_never_lost_while_models_load(share: float, number: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(share), str(number), *COMMAND[3:]]
    done = subprocess.run(
        [*command, "run", "-n", "3", "Count to three."],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr or done.stdout
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_enough_ends_the_answer() -> None:
    command = " ".join(f"'{part}'" for part in COMMAND)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} run -n 30 'Count.' </dev/null | head -c 1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == "" or "loading" in done.stderr


def test_peak_memory_is_files_and_caches_and_300_mb() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "--config", COMMAND[-1], "-v", "run", "-n", "20", "Hello"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    peak = int(done.stderr.split()[-1]) * 1024
    caches = sum(float(size) for size in re.findall(r"KV buffer size = +([\d.]+) MiB", done.stderr))
    assert caches > 100
    files = sum(real_path(name).stat().st_size for name in REAL_MODELS[:2])
    assert peak <= files + caches * 2**20 + 300e6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a models.toml of good and bad files."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "text.gguf").write_text("This is no model.")
    (tmp_path / "empty.gguf").touch()
    real = real_path("smollm2-135m")
    whole = real.read_bytes()
    (tmp_path / "truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.gguf").write_bytes(whole[:1000])
    (tmp_path / "noise.gguf").write_bytes(whole[:64] + random.Random(0).randbytes(100_000))
    write_encoder(tmp_path / "encoder.gguf")
    names = ("tiny", "text", "empty", "truncated", "header", "noise", "encoder", "absent")
    lines = ["schema = 1", f"[models.smol]\npath = '{real}'"]
    lines += [f"[models.{name}]\npath = '{name}.gguf'" for name in names]
    lines += [
        "[ensembles.foreign]\nmembers = ['smol', 'tiny']\npivot = 'tiny'",
        "[ensembles.pair]\nmembers = ['smol', 'tiny']\npivot = 'smol'",
    ]
    (tmp_path / "models.toml").write_text("\n".join(lines))
    return tmp_path


def write_encoder(path: Path) -> None:
    """A GGUF file that holds no language model, as image encoders do."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "clip")
    writer.add_name("an image encoder")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-e", "text"], "text.gguf"),
        (["-e", "empty"], "empty.gguf"),
        (["-e", "truncated"], "truncated.gguf"),
        (["-e", "header"], "header.gguf"),
        (["-e", "noise"], "noise.gguf"),
        (["-e", "encoder"], "encoder.gguf: the part of a model that sees"),
        (["-e", "absent"], "absent.gguf"),
        (["-e", "smal"], "smol"),
        (["-e", "smol", "--n-ctx", "40", "long " * 60], r"smol needs \d+ tokens of 40"),
        (["-e", "pair", "--n-ctx", "40", "long " * 60], r"smol needs \d+ .* tiny needs \d+ tokens"),
        (["--temperature", "warm"], "temperature"),
        (["--top-p", "2"], "--top-p"),
        (["--raw", "--system", "s"], "--raw"),
        (["-e", "smol", "--n-batch", "0"], "--n-batch"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, arguments, problem) -> None:
    prompt = [] if arguments[-1].startswith("long") else ["Hello"]
    done = eva("run", *arguments, *prompt, config=folder / "models.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("eva-local: ")
    assert re.search(problem, last), last
    assert "Traceback" not in done.stderr


def test_an_empty_prompt_is_refused(folder) -> None:
    done = eva("run", "-e", "smol", config=folder / "models.toml")
    assert (done.returncode, "no prompt" in done.stderr) == (2, True)


def test_members_with_hardly_a_piece_in_common_get_a_warning_with_the_share(folder) -> None:
    environment = dict(os.environ, EVA_LOCAL_CACHE=str(folder / "cache"))
    done = subprocess.run(
        [
            *COMMAND[:3],
            "--config",
            str(folder / "models.toml"),
            "run",
            "-e",
            "foreign",
            "-n",
            "2",
            "a",
        ],
        stdin=subprocess.DEVNULL,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    assert re.search(r"WARNING: only \d\.\d% of the pieces of smol are pieces of tiny", done.stderr)
