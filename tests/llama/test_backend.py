"""Ctrl-C while llama.cpp is at work: never lost, whichever callback it falls into."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from eva_local.config.specs import LoadSettings
from eva_local.errors import ModelError
from eva_local.llama import backend
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run
from tools.tiny_gguf import write_tiny_gguf

LINES = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_gguf(path, n_layers=1)
    return path


class Moments:
    """Sends a signal at the start of the n-th Python function that runs inside of C code."""

    def __init__(self) -> None:
        self.number = signal.SIGINT
        self.at = -1
        self.seen = 0
        self.inside = False

    def during(self, call: Callable[..., Any]) -> Any:
        self.inside = True
        try:
            return call()
        finally:
            self.inside = False

    def watch(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not self.inside:
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), self.number)

    def send(self, moment: int, act: Callable[[], object]) -> bool:
        """Do something, with a signal at a moment; return whether it was sent."""
        self.at, self.seen, self.inside = moment, 0, False
        sys.setprofile(self.watch)
        try:
            act()
        finally:
            sys.setprofile(None)
        return self.seen >= moment


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moments]:
    """A llama.cpp that speaks and tells its progress a few times, through C."""
    llama = backend.library()
    load, decode = llama.llama_model_load_from_file, llama.llama_decode
    found = Moments()

    def speak() -> None:
        for number in range(LINES):
            backend._callbacks[0](2, b"line %d\n" % number, None)

    def load_in_steps(path: bytes, parameters: Any) -> Any:
        for number in range(LINES):
            found.during(speak)
            told = parameters.progress_callback
            if told and not found.during(partial(told, number / LINES, None)):
                return None
        return load(path, parameters)

    def decode_aloud(context: Any, batch: Any) -> int:
        found.during(speak)
        return int(decode(context, batch))

    monkeypatch.setattr(llama, "llama_model_load_from_file", load_in_steps)
    monkeypatch.setattr(llama, "llama_decode", decode_aloud)
    log = logging.getLogger("eva_local")
    log.setLevel(logging.DEBUG)
    # A command of another test has left one, whose stream is closed by now.
    monkeypatch.setattr(log, "handlers", [])
    before = signal.getsignal(signal.SIGINT)
    yield found
    log.setLevel(logging.NOTSET)
    assert signal.getsignal(signal.SIGINT) is before


def interrupted_at_every_moment(moments: Moments, act: Callable[[], object]) -> int:
    """Interrupt at each moment there is; return how many there were."""
    moment = 1
    while True:
        try:
            sent = moments.send(moment, act)
        except KeyboardInterrupt:
            moment += 1
        else:
            assert not sent, f"lost at moment {moment}"
            return moment - 1


@pytest.mark.parametrize("progress", [None, lambda _share: None])
def test_no_interruption_of_a_load_is_lost(
    moments: Moments, tiny: Path, progress: Callable[[float], None] | None
) -> None:
    def act() -> None:
        LlamaModel(tiny, LoadSettings(n_ctx=32), progress=progress).close()

    assert interrupted_at_every_moment(moments, act) > LINES * LINES


def test_no_interruption_of_a_decode_is_lost(moments: Moments, tiny: Path) -> None:
    with LlamaModel(tiny, LoadSettings(n_ctx=32)) as model:

        def act() -> None:
            model.remove(0, 0)
            model.decode([Run(0, 0, [1, 70])])

        assert interrupted_at_every_moment(moments, act) > LINES


def test_a_load_stops_where_its_progress_cannot_be_told(moments: Moments, tiny: Path) -> None:
    told: list[float] = []

    def progress(share: float) -> None:
        told.append(share)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        LlamaModel(tiny, progress=progress)
    assert told == [0.0]


def test_an_interruption_goes_before_what_llama_says(moments: Moments, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        LlamaModel(tmp_path / "none.gguf")
    with pytest.raises(KeyboardInterrupt):
        moments.send(1, lambda: LlamaModel(tmp_path / "none.gguf"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_takes_a_signal_for_a_wish_is_told_and_nothing_stops(
    moments: Moments, tiny: Path, number: signal.Signals
) -> None:
    wishes: list[int] = []
    before = signal.signal(number, lambda number, _frame: wishes.append(number))
    moments.number = number
    try:
        moments.send(5, lambda: LlamaModel(tiny, LoadSettings(n_ctx=32)).close())
    finally:
        signal.signal(number, before)
    assert wishes == [number]


def test_a_request_to_end_is_not_lost_either(moments: Moments, tiny: Path) -> None:
    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    moments.number = signal.SIGTERM
    try:
        with pytest.raises(SystemExit):
            moments.send(5, lambda: LlamaModel(tiny))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_where_llama_cpp_ends_the_process_a_line_says_so() -> None:
    code = (
        "from eva_local.llama.backend import library as l; l()._lib.ggml_abort(b'a/b.c', 7, b'no')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("eva-local: llama.cpp gives up (b.c:7: no); is a file damaged")
