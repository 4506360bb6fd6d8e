"""The command `serve` in processes of its own, on two tiny models with random weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from waiting import PATIENCE_S


def start(models: Path, *arguments: str) -> subprocess.Popen[str]:
    call = [sys.executable, "-m", "eva_local", "--config", str(models / "models.toml"), "serve"]
    environment = {**os.environ, "EVA_LOCAL_CACHE": str(models / "cache")}
    return subprocess.Popen(
        [*call, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def refused(models: Path, *arguments: str) -> str:
    """Return the one line with which a server does not begin, or ends at once."""
    with start(models, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (2, "")
    *before, line = err.splitlines()
    assert all(each.startswith("listening on ") for each in before)
    return line


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+), loading\n", line(process))
    assert found is not None
    return found[1]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def get(url: str, key: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_listens_answers_and_ends(models, number) -> None:
    process = start(models, "-e", "pair", "-e", "one", "--port", "0", "--parallel", "2")
    with process:
        url = url_of(process)
        assert get(f"{url}/health")[0] in (200, 503)
        assert line(process) == "ready: pair, pair/one, pair/two, one\n"
        names = [each["id"] for each in json.loads(get(f"{url}/v1/models")[1])["data"]]
        assert names == ["pair", "pair/one", "pair/two", "one"]
        body = json.dumps({"prompt": "the", "max_tokens": 3}).encode()
        with urllib.request.urlopen(f"{url}/v1/completions", body, timeout=PATIENCE_S) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 3
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_signal_while_it_loads_ends_it_too(models) -> None:
    with start(models, "-e", "pair", "--port", "0") as process:
        url_of(process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_keys_of_a_file(models, tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key\n\nsecond-key\n")
    arguments = ("--host", "0.0.0.0", "--port", "0", "--api-key-file", str(file))
    with start(models, "-e", "one", "--parallel", "1", *arguments) as process:
        port = re.search(r":(\d+),", line(process))
        assert port is not None
        url = f"http://127.0.0.1:{port[1]}"
        assert line(process) == "ready: one\n"
        assert get(f"{url}/v1/models")[0] == 401
        assert get(f"{url}/v1/models", "second-key")[0] == 200
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def test_what_it_does_not_begin_with(models, tmp_path) -> None:
    assert "--host 0.0.0.0 can be reached from other machines" in refused(
        models, "-e", "one", "--host", "0.0.0.0"
    )
    assert "cannot be read" in refused(models, "-e", "one", "--api-key-file", "/nowhere")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "holds no key" in refused(models, "-e", "one", "--api-key-file", str(empty))
    assert "did you mean pair" in refused(models, "-e", "pear")
    assert "names an ensemble twice" in refused(models, "-e", "pair", "-e", "pair")
    assert "--parallel must be auto or" in refused(models, "-e", "one", "--parallel", "0")
    assert "--port" in refused(models, "-e", "one", "--port", "70000")


def test_what_cannot_be_loaded_ends_it(models) -> None:
    assert "none.gguf" in refused(models, "-e", "broken", "--port", "0")


def test_a_port_that_is_taken(models) -> None:
    with start(models, "-e", "one", "--port", "0", "--parallel", "1") as process:
        port = url_of(process).rpartition(":")[2]
        problem = refused(models, "-e", "one", "--port", port)
        assert problem == (f"eva-local: cannot listen on 127.0.0.1:{port}: Address already in use")
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
