"""Many cases in few processes: each is timed and its memory watched, and who dies is replaced.

A worker that hangs or dies leaves the number of its case behind, from which the case can be made
again; another worker goes on with the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Protocol

from eva_local.errors import EvaError
from eva_local.llama.backend import library
from tools.fire.campaign import Campaign, Finding, Row, WrongError, check, check_message, counted

# A case: the longest answers take 2 s of a core, and the machine may have much else to do.
LIMIT_S = 120.0
# Workers need this to begin: imports, and models.
_BEGIN_S = 600.0
_GRACE_S = 5.0
# What no case may take in any way, so that the machine stands whatever is found.
_MOST_BYTES = 16 << 30
# Small processes: twice of little is little.
_LEAST_BYTES = 64 << 20
# A prompt is tokenised whole, however long, to say by how much it is too long: Python's numbers.
_PER_BYTE = 256
# In what a worker and its watcher share.
_NUMBER, _DONE, _REFUSED, _RIGHT, _BEGAN, _PEAK = range(6)


class Subject(Protocol):
    """What cases are put to; made in the worker, in a folder of its own."""

    #: Inputs without a fault, each of which is answered.
    samples: Sequence[bytes]

    def case(self, chance: Random) -> bytes:
        """Return the input of a case."""

    def judge(self, data: bytes) -> bool:
        """Return whether it was answered rightly, or raise EvaError; False where it was refused.

        WrongError and whatever else is raised is a finding.
        """

    def close(self) -> None:
        """Let go of what was opened."""


#: Makes a subject in a folder, beside the folder of the tiny models. A function of a module.
Maker = Callable[[Path, Path], Subject]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    shared: Any
    log: Path
    folder: Path
    numbers: range
    started: float = field(default_factory=time.monotonic)


def hammer(campaign: Campaign, part: str, what: str, maker: Maker, n: int, unit: int = 1) -> None:
    """Put `n` cases of `unit` trials to a subject; note what was found and a row of the table."""
    began = time.monotonic()
    n_before = len(campaign.findings)
    _ = campaign.models
    total: list[float] = [0, 0, 0, 0]
    bounds = [campaign.first + n * i // campaign.workers for i in range(campaign.workers + 1)]
    spans = pairwise(bounds)
    workers = [_begin(campaign, part, what, maker, range(*span), i) for i, span in enumerate(spans)]
    try:
        while workers:
            time.sleep(0.05)
            watched = [_watch(campaign, part, what, maker, worker, total) for worker in workers]
            workers = [each for each in watched if each is not None]
            done = int(total[0]) + sum(int(each.shared[_DONE]) for each in workers)
            campaign.told(part, what, done * unit, n * unit)
    finally:
        for worker in workers:
            worker.process.kill()
    found = len(campaign.findings) - n_before
    outcome = counted((("refused", unit * int(total[1])), ("right", unit * int(total[2]))))
    outcome += f"; peak {total[3]:.2f}x memory"
    campaign.rows.append(
        Row(part, what, unit * int(total[0]), outcome, found, time.monotonic() - began)
    )


def _begin(
    campaign: Campaign, part: str, what: str, maker: Maker, numbers: range, place: int
) -> _Worker:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    shared = spawn.Array(ctypes.c_double, 6, lock=False)
    shared[_NUMBER] = -1
    folder = campaign.scratch(part, what.replace(" ", "-"), place)
    log = folder / "worker.log"
    arguments = (campaign, f"{part}/{what}", maker, numbers, folder, shared, there, log)
    process = spawn.Process(target=_work, args=arguments, daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, shared, log, folder, numbers)


def _watch(
    campaign: Campaign, part: str, what: str, maker: Maker, worker: _Worker, total: list[float]
) -> _Worker | None:
    """Hear what a worker has found; return it, or another for one that died, or None."""
    shared = worker.shared

    def found(number: int, problem: str, data: bytes) -> None:
        name = f"{part}-{what}-{campaign.seed}-{number}".replace(" ", "-")
        saved = campaign.save(name, data)
        again = f"--part {part} --seed {campaign.seed} --first {number} --n 1"
        campaign.found(Finding(part, what, again, problem, saved))

    with contextlib.suppress(EOFError, OSError):
        while worker.pipe.poll():
            found(*worker.pipe.recv())
    alive, number = worker.process.is_alive(), int(shared[_NUMBER])
    began = shared[_BEGAN] if number >= 0 else worker.started
    limit = LIMIT_S if number >= 0 else _BEGIN_S
    if alive and time.monotonic() - began < limit:
        return worker
    problem = ""
    if alive:
        # Its stack goes to its log.
        os.kill(worker.process.pid, signal.SIGABRT)
        worker.process.join(_GRACE_S)
        worker.process.kill()
        problem = f"hangs: not done in {limit:.0f} s"
    worker.process.join()
    for index, key in enumerate((_DONE, _REFUSED, _RIGHT)):
        total[index] += shared[key]
    total[3] = max(total[3], shared[_PEAK])
    if not problem and worker.process.exitcode == 0:
        return None
    log = worker.log.read_text(encoding="utf-8", errors="replace")[-3000:]
    problem = problem or f"died of {worker.process.exitcode}"
    if number < 0:
        raise SystemExit(f"{part}, {what}: a worker does not begin: {problem}\n{log}")
    total[0] += 1
    found(number, f"{problem}\n{log}", (worker.folder / "case").read_bytes())
    rest = range(number + 1, worker.numbers.stop)
    return _begin(campaign, part, what, maker, rest, _place_of(worker)) if rest else None


def _place_of(worker: _Worker) -> int:
    return int(worker.folder.name.rpartition("-")[2])


def _work(
    campaign: Campaign,
    name: str,
    maker: Maker,
    numbers: range,
    folder: Path,
    shared: Any,
    pipe: Connection,
    log: Path,
) -> None:
    """Put cases to a subject: the life of a worker."""
    # What llama.cpp says, and stacks, go to a file.
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    faulthandler.enable(sys.stderr)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ |= campaign.environment()
    os.chdir(folder)
    library()
    subject = maker(folder, campaign.models)
    case = folder / "case"
    for sample in subject.samples:
        said = f"{sample[:200]!r}, {getattr(subject, 'said', '')}"
        check(subject.judge(sample), f"a sample without a fault is refused: {said}")
    rest = _resident("VmRSS")
    limit = max(2 * rest, rest + _LEAST_BYTES)
    for number in numbers:
        data = subject.case(campaign.chance(name, number))
        case.write_bytes(data)
        with contextlib.suppress(OSError):
            # The peak is that of this case.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        shared[_BEGAN], shared[_NUMBER] = time.monotonic(), number
        is_right, problem = tried(subject, data)
        shared[_RIGHT if is_right else _REFUSED] += not problem
        if problem:
            pipe.send((number, problem, data))
        shared[_DONE] += 1
        peak = _resident("VmHWM")
        shared[_PEAK] = max(shared[_PEAK], peak / rest)
        if peak > limit + _PER_BYTE * len(data):
            pipe.send((number, f"took {peak >> 20} MiB, at rest {rest >> 20} MiB", data))
            # What is kept is no matter of the next cases.
            rest = max(rest, _resident("VmRSS"))
            limit = max(2 * rest, rest + _LEAST_BYTES)
    subject.close()


def tried(subject: Subject, data: bytes) -> tuple[bool, str]:
    """Put a case to a subject; return whether it was answered, and what was wrong, if anything."""
    try:
        return subject.judge(data), ""
    except WrongError as error:
        return False, str(error)
    except EvaError as error:
        try:
            check_message(str(error))
            check(error.exit_code == 2, f"an error ends with {error.exit_code}: {error}")
        except WrongError as wrong:
            return False, str(wrong)
        return False, ""
    except Exception:  # noqa: BLE001  # whatever it is, it is a finding
        return False, traceback.format_exc()[-3000:]


def _resident(key: str) -> int:
    """Return what /proc says of the memory of this process, in bytes; 1 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    return 1
