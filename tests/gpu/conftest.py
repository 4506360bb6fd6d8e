"""Tests of layers on a GPU: `make test-gpu BACKEND=vulkan`, or `pytest tests/gpu` by hand.

Nothing else runs them, for the usual build of llama.cpp has no device: where they are not asked
for, they are deselected, and the last lines say so. Where they are, and there is no device, they
fail.

A Vulkan driver that computes on the CPU (Mesa's lavapipe) is left out by llama.cpp unless it is
named. Where there is no other, GGML_VK_VISIBLE_DEVICES=0,0 is set here: the driver's one device
twice, so that what is said of several GPUs is tried, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eva_local.llama.backend import free_on_gpus

HERE = Path(__file__).parent
VISIBLE = "GGML_VK_VISIBLE_DEVICES"
_DEVICES = "from eva_local.llama.backend import free_on_gpus; print(len(free_on_gpus()))"

deselected = pytest.StashKey[int]()


def is_asked_for(config: pytest.Config) -> bool:
    paths = [Path(str(each).partition("::")[0]).resolve() for each in config.args]
    return any(path.is_relative_to(HERE) for path in paths)


def devices(**environment: str) -> int:
    """Return how many devices llama.cpp has in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", _DEVICES],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return int(told.stdout) if told.returncode == 0 else 0


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # llama.cpp looks for devices once, when it is loaded.
    asked = is_asked_for(config) and VISIBLE not in os.environ
    if asked and not devices() and devices(**{VISIBLE: "0,0"}):
        os.environ[VISIBLE] = "0,0"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    if not mine or is_asked_for(config):
        return
    config.stash[deselected] = len(mine)
    config.hook.pytest_deselected(items=mine)
    items[:] = [item for item in items if item not in mine]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if count := config.stash.get(deselected, 0):
        told = f"{count} tests in tests/gpu were not run: they need a GPU, or Vulkan's of the CPU"
        terminalreporter.write_line(f"{told} (make test-gpu BACKEND=vulkan)")


@pytest.fixture(scope="session", autouse=True)
def gpus() -> int:
    """How many devices there are."""
    count = len(free_on_gpus())
    if not count:
        pytest.exit("llama.cpp has no device: build it for one (make test-gpu BACKEND=vulkan)", 1)
    return count
