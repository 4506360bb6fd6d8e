"""Load a server with many clients, of whom some leave in mid-answer; hold it against a batch job.

    .venv/bin/python -m tools.server_load [--ensemble demo] [--clients 32] [--seconds 60]

The clients ask short questions, streamed and not, one after another. Told to come again (503),
they do. Those who leave close the connection after a part of the answer. Said in the end: what
was answered and how often it was refused, whether places, memory or files were kept, whether the
last answer is the first one, and tokens a second against `eva-local batch` with as many places
before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVA = (sys.executable, "-m", "eva_local")
PATIENCE_S = 300.0
# Between the lines of who reads slowly.
_SLOWNESS_S = 0.1
THINGS = ("apples", "red pens", "old coins", "cats", "tickets", "loaves of bread")


def question(number: int) -> str:
    """Return one of many questions that share no long beginning."""
    thing, count = THINGS[number % len(THINGS)], 3 + number % 17
    return (
        f"{'Tom' if number % 2 else 'Ada'} has {count} {thing} and finds {number % 11 + 2} more. "
        f"How many {thing} are there now? Explain step by step."
    )


@dataclass
class Load:
    """Clients on one server, and what became of their questions."""

    port: int
    tokens: int
    leaving: float
    #: How many of those who stay read slowly, and what their chances begin with.
    slow: float = 0.0
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, clients: int, seconds: float) -> None:
        """Ask from `clients` threads for some seconds, and wait for the last answers."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(n, end)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, end: float) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        while time.monotonic() < end:
            leaves = chance.random() < self.leaving
            streams = leaves or chance.random() < 0.5
            try:
                outcome = self._ask(chance, streams=streams, leaves=leaves)
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = "failed"
                self.problems.append(repr(error))
            with self.lock:
                self.counts[outcome] += 1

    def _ask(self, chance: random.Random, *, streams: bool, leaves: bool) -> str:
        content = question(chance.randrange(10_000))
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            "stream": streams,
        }
        with posted(self.port, body) as response:
            if response.status == 503:
                time.sleep(float(response.headers["Retry-After"]))
                return "told to come again"
            if response.status != 200:
                raise ValueError(f"status {response.status}: {response.read()[:200]!r}")
            if streams and not leaves and chance.random() < self.slow:
                # Longer than the server writes, so that what it writes waits for who reads.
                while response.readline():
                    time.sleep(_SLOWNESS_S)
                return "read slowly"
            if leaves:
                for _ in range(chance.randrange(1, self.tokens)):
                    response.readline()
                return "left"
            data = response.read()
        if streams and not data.endswith(b"data: [DONE]\n\n"):
            raise ValueError("the stream has no end")
        if not streams:
            json.loads(data)
        return "answered"


@contextlib.contextmanager
def posted(port: int, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    """Ask for a chat completion; the connection is closed at the end, wherever it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        yield connection.getresponse()


def answer(port: int, tokens: int) -> str:
    """Return the answer to one question."""
    messages = [{"role": "user", "content": question(0)}]
    with posted(port, {"messages": messages, "max_tokens": tokens}) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def metrics(port: int) -> dict[str, float]:
    """Return the numbers of /metrics, over all models."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]  # a sum
    return dict(found)


@contextlib.contextmanager
def server(
    options: argparse.Namespace,
    environment: Mapping[str, str] | None = None,
    processes: list[subprocess.Popen[str]] | None = None,
) -> Iterator[int]:
    """Run a server for the length of a `with` block, and return its port.

    In an `environment` of its own, if one is given; its process is put into `processes`.
    """
    call = [*EVA, "serve", "-e", options.ensemble, "--port", "0", "--queue", str(options.queue)]
    call += ["--parallel", str(options.parallel), "--n-ctx", str(options.n_ctx)]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        if processes is not None:
            processes.append(process)
        try:
            port = re.search(r":(\d+), loading", process.stderr.readline())
            while not (line := process.stderr.readline()).startswith("ready: "):
                if not line:
                    raise SystemExit("the server did not begin")
            assert port is not None
            yield int(port[1])
        finally:
            process.terminate()
            rest = process.stderr.read()
            if process.wait() or rest:
                print(f"the server ended with {process.returncode}: {rest}")


def batch_rate(options: argparse.Namespace, rows: int) -> float:
    """Return the tokens a second of a batch job on the same questions."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        lines = (json.dumps({"prompt": question(n)}) for n in range(rows))
        source.write_text("\n".join(lines), encoding="utf-8")
        call = [*EVA, "batch", str(source), str(target), "-e", options.ensemble]
        call += ["--parallel", str(options.parallel), "--n-ctx", str(options.n_ctx)]
        call += ["--max-tokens", str(options.tokens)]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
    # The last line says what all of it took; a job that is slow has said something before.
    return float(re.findall(r"([\d.]+) tokens/s", done.stderr)[-1])


def main() -> int:
    """Load a server, print what was found, and return 1 where something is not as it should be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ensemble", default="demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--leaving", type=float, default=1 / 3)
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--queue", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--batch-rows", type=int, default=48, help="0 leaves the batch jobs out")
    options = parser.parse_args()
    batch = [batch_rate(options, options.batch_rows)] if options.batch_rows else []
    with server(options) as port:
        good, rate = loaded(options, port)
    if options.batch_rows:
        batch.append(batch_rate(options, options.batch_rows))
        mean = sum(batch) / len(batch)
        print(
            f"batch: {batch[0]:.1f} tokens/s before, {batch[1]:.1f} after; the server writes "
            f"{rate / mean:.2f} of their mean"
        )
    return 0 if good else 1


def loaded(options: argparse.Namespace, port: int) -> tuple[bool, float]:
    """Load the server at a port; return whether all is well, and tokens a second."""
    first = answer(port, options.tokens)
    # What is allocated once is there after a while of the same.
    warm = Load(port, options.tokens, options.leaving)
    warm.run(options.clients, options.seconds / 6)
    load = Load(port, options.tokens, options.leaving)
    clients = threading.Thread(target=load.run, args=(options.clients, options.seconds))
    clients.start()
    # What is written while all are there: neither the first prompts nor the last answers.
    time.sleep(options.seconds / 6)
    before, began = metrics(port), time.monotonic()
    time.sleep(options.seconds * 5 / 6)
    after, taken = metrics(port), time.monotonic() - began
    clients.join()
    time.sleep(1)
    idle = metrics(port)
    last = answer(port, options.tokens)
    rate = (after["eva_local_tokens_total"] - before["eva_local_tokens_total"]) / taken
    held = {name: idle[f"eva_local_answers_{name}"] for name in ("taken", "running", "waiting")}
    grown = {
        name: idle[f"process_{name}"] - before[f"process_{name}"]
        for name in ("resident_memory_bytes", "open_fds")
    }
    print(f"{options.clients} clients for {options.seconds:.0f} s: {dict(load.counts)}")
    print(f"places kept: {held}; grown since the first sixth: {grown}")
    print(f"the last answer is the first one: {last == first}")
    print(f"server: {rate:.1f} tokens/s, {options.parallel} side by side")
    for problem in sorted(set(warm.problems + load.problems)):
        print(f"problem: {problem}")
    well = not load.problems and not warm.problems and not any(held.values()) and last == first
    return well, rate


if __name__ == "__main__":
    sys.exit(main())
