"""Rows over many processes, here and on other machines: each holds the whole ensemble."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from eva_local.cluster import worker as elsewhere
from eva_local.cluster.worker import LostError, Worker
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.request import Request, Told
from eva_local.errors import ConfigError, EvaError, ModelError
from eva_local.models.store import checksum
from eva_local.opening import MOST, open_ensemble, open_widest

log = logging.getLogger("eva_local")

# So often progress is told; and so long nobody wonders where the workers are.
_TICK_S, _PATIENCE_S = 0.2, 30.0
# A row is an error where so many workers died over it. Those that die as they open, one after
# the other, are replaced so often each.
_TRIES = 4


class RowHost:
    """An ensemble in a process of its own, which answers requests side by side."""

    async def open(
        self, versions: str, spec: EnsembleSpec, sums: Sequence[str], parallel: int | None
    ) -> tuple[int, Mapping[str, str]]:
        """Open `spec` from files with these checksums; return the slots, and `mapping_files`."""
        for member, wanted in zip(spec.members, sums, strict=True):
            elsewhere.joined(versions, member, wanted)
        opened = open_ensemble(spec, parallel=parallel) if parallel else open_widest(spec)
        self._ensemble = opened
        opened.for_throughput()
        return opened.n_slots, opened.mapping_files()

    async def answer(self, request: Request) -> list[Told]:
        """Return all that is told of a request."""
        return [told async for _, told in self._ensemble.arun_many([request])]


class Fleet:
    """Workers that answer the requests of a job as one `Ensemble` would, and a runner of them.

    A request is with one worker at a time. A worker that dies is replaced, and its requests are
    given out again. Raises ConfigError, and why none of the workers can begin.
    """

    def __init__(self, on: str, spec: EnsembleSpec, n: int | None, slots: int | None) -> None:
        """Open `n` workers (None: one for each machine of `on`), with so many slots each.

        Each gets an equal share of the smallest machine, and keeps to it.
        """
        self.spec = spec
        machines = elsewhere.nodes(on)
        self._most = _TRIES * (n := n or len(machines))
        shares = [min(count) / -(-n // len(machines)) for count in zip(*machines, strict=True)]
        # Ray counts whole ones above 1.
        cpus, gpus = (int(share) or share for share in shares)
        gpus = gpus if any(member.load.n_gpu_layers for member in spec.members) else 0
        self._hired = partial(Worker, on, RowHost, cpus=cpus, gpus=gpus, at_once=MOST)
        sums = [checksum(member) for member in spec.members]
        members = []
        for member in spec.members:
            threads = member.load.threads or max(int(cpus), 1)
            members.append(replace(member, load=replace(member.load, threads=threads)))
        told = replace(spec, members=tuple(members))
        self._opening = (elsewhere.installed(), told, sums, slots)
        self._mappings: Mapping[str, str] | None = None
        # Slots of the workers that are open, and those of them that are free.
        self._open = Counter[Worker]()
        self._free = deque[Worker]()
        # What is waited for: who was asked, and the number of a request, or None: to open.
        self._asked: dict[Any, tuple[Worker, int | None]] = {}
        self._requests: Iterator[Request | None] = iter(())
        self._under_way: dict[int, Request] = {}
        self._waiting = deque[int]()
        self._n_drawn, self._n_lost, self._tries = 0, 0, Counter[int]()
        self._drawn = True
        try:
            for _ in range(n):
                self._hire()
            wondered = time.monotonic() + _PATIENCE_S
            while not self._open:
                self.step()
                if time.monotonic() > wondered:
                    wondered += 20 * _PATIENCE_S
                    log.warning("waiting for a worker of %s CPUs, %s GPUs on %s", cpus, gpus, on)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_slots(self) -> int:
        """How many requests are answered side by side."""
        return self._open.total()

    @property
    def done(self) -> bool:
        """Whether there is no request left, and none under way."""
        return self._drawn and not self._under_way

    def mapping_files(self) -> Mapping[str, str]:
        """Return the mappings' files and checksums, which are the same for all workers."""
        return self._mappings or {}

    def for_throughput(self) -> None:
        """Do nothing: all workers are made for it."""

    def runner(self, requests: Iterable[Request | None]) -> Self:
        """Take these requests, numbered in their order; None is none at the moment."""
        self._requests, self._drawn = iter(requests), False
        return self

    def step(self) -> list[tuple[int, Told]]:
        """Give out requests and wait a moment; return what was told of them, by number."""
        while self._free and (self._waiting or self._draws()):
            worker, number = self._free.popleft(), self._waiting.popleft()
            self._asked[worker.ask("answer", self._under_way[number])] = worker, number
        told: list[tuple[int, Told]] = []
        for asked in elsewhere.answered([*self._asked], _TICK_S):
            worker, asks = self._asked.pop(asked)
            if asks is None:
                self._join(worker, asked)
            elif (found := self._told(worker, asks, asked)) is not None:
                del self._under_way[asks]
                told += [(asks, each) for each in found]
        return told

    def close(self) -> None:
        """End the workers."""
        for worker in {*self._open, *(worker for worker, _ in self._asked.values())}:
            worker.end()
        self._open.clear()
        self._asked = {}

    def _draws(self) -> bool:
        """Draw a request, if there is one now."""
        request = None
        if not self._drawn:
            try:
                request = next(self._requests)
            except StopIteration:
                self._drawn = True
        if request is not None:
            self._waiting.append(self._n_drawn)
            self._under_way[self._n_drawn] = request
            self._n_drawn += 1
        return request is not None

    def _hire(self) -> None:
        worker = self._hired()
        self._asked[worker.ask("open", *self._opening)] = worker, None

    def _join(self, worker: Worker, asked: Any) -> None:
        try:
            n_slots, mappings = elsewhere.result(asked, _PATIENCE_S)
            if mappings != (self._mappings or mappings):
                raise ConfigError("its mappings are other files than the first worker's")
        except LostError as error:
            self._replace(worker, error)
        except EvaError as error:
            worker.end()
            if not self._open and not self._asked:
                raise
            log.warning("a worker cannot join: %s", error)
        else:
            self._n_lost, self._mappings, self._open[worker] = 0, mappings, n_slots
            self._free += [worker] * n_slots

    def _told(self, worker: Worker, number: int, asked: Any) -> list[Told] | None:
        """Return what was told of a request; None where it is given out again."""
        try:
            found: list[Told] = elsewhere.result(asked, _PATIENCE_S)
        except LostError as error:
            if self._open.pop(worker, 0):
                self._free = deque(other for other in self._free if other is not worker)
                self._replace(worker, error)
            self._tries[number] += 1
            if self._tries[number] == _TRIES:
                return [ModelError(f"{_TRIES} workers died over it: {error}")]
            self._waiting.append(number)
            return None
        except EvaError as error:
            found = [error]
        self._free.append(worker)
        return found

    def _replace(self, worker: Worker, error: LostError) -> None:
        worker.end()
        self._n_lost += 1
        if self._n_lost == self._most:
            raise ModelError(f"workers die one after the other, the last so: {error}")
        log.warning("a worker is lost, and another takes its place: %s", error)
        self._hire()
