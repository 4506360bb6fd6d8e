"""A server under load for a while: memory stays, answers stay, SIGTERM ends it in peace."""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from tools.fire.campaign import Campaign, Finding, Row, WrongError, check
from tools.server_load import Load, answer, metrics, server

_CLIENTS, _LEAVING, _SLOW = 32, 1 / 3, 1 / 6
_SAMPLES = 240
# What an allocator may hold more at the end than after the first sixth, and a chart's jitter.
_GROWTH = 0.05
_MIB = 1 << 20
_TERM_S = 20.0


@dataclass
class Watch:
    """What the server says of itself, again and again: seconds, memory, files."""

    port: int
    every: float
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until `done`."""
        began = time.monotonic()
        while not self.done.wait(self.every):
            try:
                told = metrics(self.port)
            except (OSError, http.client.HTTPException):
                continue
            memory, files = told["process_resident_memory_bytes"], told["process_open_fds"]
            self.samples.append((time.monotonic() - began, memory, files))

    def slope(self) -> tuple[float, float]:
        """Return by how many bytes an hour memory grows after the first sixth, and its mean."""
        late = np.asarray([s for s in self.samples if s[0] > self.samples[-1][0] / 6])
        per_second = np.polyfit(late[:, 0], late[:, 1], 1)[0]
        return float(per_second * 3600), float(late[:, 1].mean())


def _options(campaign: Campaign) -> argparse.Namespace:
    chosen = {"ensemble": campaign.ensemble, "parallel": 16, "queue": 8, "tokens": 48}
    return argparse.Namespace(**chosen, n_ctx=512)


def soak(campaign: Campaign) -> None:
    """Load a server with many clients, of whom some leave and some read slowly."""
    began, seconds, options = time.monotonic(), campaign.seconds, _options(campaign)
    n_clients = _CLIENTS if campaign.n is None else campaign.n
    with server(options, campaign.environment()) as port:
        first = answer(port, options.tokens)
        watch = Watch(port, max(seconds / _SAMPLES, 0.2))
        watcher = threading.Thread(target=watch.run)
        watcher.start()
        load = Load(port, options.tokens, _LEAVING, slow=_SLOW, seed=campaign.seed)
        clients = threading.Thread(target=load.run, args=(n_clients, seconds))
        clients.start()
        while clients.is_alive():
            clients.join(5)
            campaign.told("load", f"{n_clients} clients", sum(load.counts.values()), -1)
        watch.done.set()
        watcher.join()
        time.sleep(1)
        idle = metrics(port)
        last = answer(port, options.tokens)
    slope, mean = watch.slope()
    files = watch.samples[-1][2] - watch.samples[len(watch.samples) // 6][2]
    problems = sorted(set(load.problems))
    if last != first:
        problems.append(f"the last answer is {last!r}, the first was {first!r}")
    if kept := [
        name for name in ("taken", "running", "waiting") if idle[f"eva_local_answers_{name}"]
    ]:
        problems.append(f"kept: {', '.join(kept)}")
    # A short soak says little of an hour: what counts is what it grew by.
    if slope * seconds / 3600 > _GROWTH * mean:
        problems.append(f"memory grows by {slope / _MIB:.1f} MiB an hour, of {mean / _MIB:.0f}")
    for problem in problems:
        campaign.found(Finding("load", "soak", f"--seconds {seconds:.0f}", problem))
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(load.counts.items()))
    outcome = (
        f"{counts}; {mean / _MIB:.0f} MiB, slope {slope / _MIB:+.1f} MiB/h; files {files:+.0f}"
    )
    what = f"{n_clients} clients, {seconds / 60:.1f} minutes"
    n = sum(load.counts.values())
    campaign.rows.append(Row("load", what, n, outcome, len(problems), time.monotonic() - began))


def ended(campaign: Campaign) -> None:
    """Tell a server under load to end: it does so soon, with 0, and says nothing but that."""
    n = 4 if campaign.n is None else campaign.n
    began, found, slowest = time.monotonic(), 0, 0.0
    for number in range(campaign.first, campaign.first + n):
        chance = campaign.chance("term", number)
        try:
            slowest = max(slowest, _ended_once(campaign, chance.uniform(0.5, 4)))
        except WrongError as error:
            found += 1
            again = f"--part term --seed {campaign.seed} --first {number} --n 1"
            campaign.found(Finding("load", "SIGTERM", again, str(error)))
        campaign.told("load", "SIGTERM", number - campaign.first + 1, n)
    outcome = f"ended with 0, the slowest after {slowest:.1f} s"
    seconds = time.monotonic() - began
    campaign.rows.append(Row("load", "SIGTERM with 16 clients", n, outcome, found, seconds))


def _ended_once(campaign: Campaign, after: float) -> float:
    options = _options(campaign)
    processes: list[subprocess.Popen[str]] = []
    with server(options, campaign.environment(), processes) as port:
        load = Load(port, options.tokens, _LEAVING, slow=_SLOW, seed=campaign.seed)
        clients = threading.Thread(target=load.run, args=(16, after + 2))
        clients.start()
        time.sleep(after)
        began = time.monotonic()
        os.kill(processes[0].pid, signal.SIGTERM)
        try:
            processes[0].wait(_TERM_S)
        except subprocess.TimeoutExpired:
            raise WrongError(f"it does not end in {_TERM_S:.0f} s") from None
        taken = time.monotonic() - began
        clients.join()
    check(processes[0].returncode == 0, f"it ended with {processes[0].returncode}")
    # What was under way breaks off, and nobody is let in afterwards; an answer of the server that
    # is no answer (a status of 500) is a fault.
    wrong = [each for each in load.problems if "status 5" in each and "status 503" not in each]
    check(not wrong, f"answers: {wrong[:3]}")
    return taken
