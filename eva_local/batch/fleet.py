"""Rows over many processes, here and on other machines: each holds the whole ensemble."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Self

from eva_local.cluster import worker as elsewhere
from eva_local.cluster.worker import LostError, Worker
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.request import Request, Told
from eva_local.errors import ConfigError, EvaError, ModelError
from eva_local.models.store import checksum
from eva_local.opening import MOST, open_ensemble, open_widest

log = logging.getLogger("eva_local")

# So often progress is told; and how long an answer takes that is there.
_TICK_S, _FETCH_S = 0.2, 60.0
# A row is an error where so many workers died over it; nor are more replaced that died opening.
_TRIES = 4
# After so long without a worker, it is said what is waited for.
_LONG_S = 30.0


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


class Fleet(AbstractContextManager["Fleet"]):
    """Workers that answer the requests of a job as one `Ensemble` would, and a runner of them.

    A request is with one worker at a time. A worker that dies is replaced, and its requests are
    given out again. A context manager; raises ConfigError, and why none of the workers can begin.
    """

    def __init__(self, on: str, spec: EnsembleSpec, n: int | None, slots: int | None) -> None:
        """Open `n` workers (None: one for each machine of `on`), with so many slots each.

        Each gets an equal share of the smallest machine, and keeps to it.
        """
        self.spec = spec
        if placed := [member.name for member in spec.members if member.on]:
            raise ConfigError(f"--on opens all members in each worker: {placed[0]} has an `on` too")
        machines = elsewhere.nodes(on)
        on_each = -(-(n or len(machines)) // len(machines))
        shares = [min(counts) / on_each for counts in zip(*machines, strict=True)]
        # Ray counts whole ones above 1.
        cpus, gpus = (int(share) or share for share in shares)
        gpus = gpus if any(member.load.n_gpu_layers for member in spec.members) else 0
        members, sums = [], [checksum(member) for member in spec.members]
        for member in spec.members:
            threads = member.load.threads or max(int(cpus), 1)
            members.append(replace(member, load=replace(member.load, threads=threads)))
        told = replace(spec, members=tuple(members))
        self._opening = elsewhere.installed(), told, sums, slots
        self._hired = partial(Worker, on, RowHost, cpus=cpus, gpus=gpus, at_once=MOST)
        self._mappings: Mapping[str, str] | None = None
        # Slots of the workers that are open, and those of them that are free.
        self._open = Counter[Worker]()
        self._free = deque[Worker]()
        # What is waited for: who was asked, and the number of a request, or None: to open.
        self._asked: dict[Any, tuple[Worker, int | None]] = {}
        self._requests: Iterator[Request | None] = iter(())
        self._numbers, self._drawn = count(), False
        self._under_way: dict[int, Request] = {}
        self._again, self._tries, self._stillborn = deque[int](), Counter[int](), 0
        try:
            for _ in range(n or len(machines)):
                self._hire()
            began, said = time.monotonic(), False
            while not self._open:
                self.step()
                if not said and (said := time.monotonic() - began > _LONG_S):
                    room = f"{cpus:g} CPUs and {gpus:g} GPUs"
                    log.warning("no worker is open yet: each opens models, or waits for %s", room)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        for worker in {*self._open, *(worker for worker, _ in self._asked.values())}:
            worker.end()
        self._open.clear()
        self._asked.clear()

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

    def runner(self, requests: Iterable[Request | None]) -> Self:
        """Take these requests, numbered in their order; None is none at the moment."""
        self._requests, self._numbers, self._drawn = iter(requests), count(), False
        return self

    def step(self) -> list[tuple[int, Told]]:
        """Give out requests and wait a moment; return what was told of them, by number."""
        while self._free and (number := self._next()) is not None:
            worker = self._free.popleft()
            self._asked[worker.ask("answer", self._under_way[number])] = worker, number
        done = elsewhere.answered([*self._asked], _TICK_S)
        return [told for asked in done for told in self._hear(asked)]

    def close(self) -> None:
        """Forget the requests that are under way: what is told of them later is no answer."""
        for asked, (worker, number) in self._asked.items():
            self._asked[asked] = worker, None if number is None else -1
        self._under_way.clear()

    def _hire(self) -> None:
        worker = self._hired()
        self._asked[worker.ask("open", *self._opening)] = worker, None

    def _next(self) -> int | None:
        """Return the number of a request that is to be given out, if there is one now."""
        while self._again:
            if (number := self._again.popleft()) in self._under_way:
                return number
        request = next(self._requests, False)
        self._drawn = request is False
        if not isinstance(request, Request):
            return None
        number = next(self._numbers)
        self._under_way[number] = request
        return number

    def _hear(self, asked: Any) -> list[tuple[int, Told]]:
        """Return what was told of a request, if it was one that is answered."""
        worker, number = self._asked.pop(asked)
        try:
            found = elsewhere.result(asked, _FETCH_S)
        except EvaError as error:
            if number is None:
                self._refuse(worker, error)
                return []
            found = [error]
            if isinstance(error, LostError):
                self._lose(worker, error)
                self._tries[number] += 1
                if self._tries[number] < _TRIES:
                    self._again.append(number)
                    return []
                found = [ModelError(f"{_TRIES} workers died over it: {error}")]
        if number is None:
            self._join(worker, *found)
            return []
        self._free += [worker] if worker in self._open else []
        known = self._under_way.pop(number, None)
        return [(number, told) for told in found] if known else []

    def _join(self, worker: Worker, n_slots: int, mappings: Mapping[str, str]) -> None:
        if mappings != (self._mappings or mappings):
            self._refuse(worker, ConfigError("its mappings are not those of the first worker"))
            return
        self._mappings, self._open[worker], self._stillborn = mappings, n_slots, 0
        self._free += [worker] * n_slots

    def _refuse(self, worker: Worker, error: EvaError) -> None:
        worker.end()
        if isinstance(error, LostError) and self._stillborn < _TRIES:
            self._stillborn += 1
            log.warning("a worker died while it opened, and another takes its place: %s", error)
            self._hire()
            return
        if not self._open and not self._asked:
            raise error
        log.warning("a worker cannot join: %s", error)

    def _lose(self, worker: Worker, error: LostError) -> None:
        """Replace a worker, of which several requests may tell that it died."""
        if self._open.pop(worker, 0):
            worker.end()
            self._free = deque(other for other in self._free if other is not worker)
            log.warning("a worker is lost, and another takes its place: %s", error)
            self._hire()
