"""The server itself: it listens, opens the models meanwhile, answers, and ends cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from eva_local.api import Ensemble
from eva_local.errors import InputError
from eva_local.server.app import make_app
from eva_local.server.guard import refuse_open_door
from eva_local.server.models import Models
from eva_local.server.service import Service

# How long answers that are under way may take once the server is to end.
GRACE_S = 2

# Opens one ensemble; called in a thread of its own.
Opener = Callable[[], Ensemble]


@dataclass(frozen=True, slots=True)
class Door:
    """Where the server listens, and who may ask. Port 0 takes one that is free."""

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for a door that is open to everyone."""
        refuse_open_door(self.host, self.keys)


def serve(
    openers: Sequence[Opener],
    door: Door,
    *,
    n_waiting: int,
    told: Callable[[str], None] = lambda _: None,
) -> None:
    """Answer requests until the process is asked to end; `told` hears where, and when it can.

    At most `n_waiting` answers wait for a place before each ensemble. Raises InputError where
    it cannot listen there, and what the openers raise.
    """
    asyncio.run(Server(openers, door, n_waiting=n_waiting, told=told).run())


class Server:
    """One server, from its port to its end; `url` is where it listens, once it does."""

    def __init__(
        self,
        openers: Sequence[Opener],
        door: Door,
        *,
        n_waiting: int,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Listen nowhere yet; see `serve`."""
        self.service = Service()
        self._openers = openers
        self._n_waiting = n_waiting
        self._told = told
        self._resources = contextlib.ExitStack()
        app = make_app(self.service, keys=door.keys, origins=door.origins)
        config = uvicorn.Config(
            app,
            host=door.host,
            port=door.port,
            http="h11",
            ws="none",
            lifespan="off",
            # What goes wrong is said by the application; what clients do is nobody's business.
            log_config=None,
            log_level=100,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Uvicorn(config, self._begin)
        self._loading: asyncio.Task[list[Ensemble]] | None = None
        self._host = f"[{door.host}]" if ":" in door.host else door.host
        self.url = ""

    async def run(self) -> None:
        """Answer until `stop`; raise InputError without a port, and what the openers raise."""
        with self._resources, _signals(self.stop):
            await self._server.serve()
            if self._loading is not None:
                # llama.cpp is not stopped in the middle of a file, unless by a second signal.
                await self._loading

    def stop(self) -> None:
        """Answer no new request, and end soon."""
        self._server.should_exit = True

    def _begin(self, port: int) -> None:
        """Load, now that requests can come."""
        self.url = f"http://{self._host}:{port}"
        self._told(f"listening on {self.url}, loading")
        self._loading = asyncio.create_task(self._load())
        self._loading.add_done_callback(self._loaded)

    async def _load(self) -> list[Ensemble]:
        """Open the ensembles, which the resources will close."""
        ensembles = []
        for opener in self._openers:
            if self._server.should_exit:
                break
            ensemble = await asyncio.to_thread(opener)
            self._resources.callback(ensemble.close)
            ensembles.append(ensemble)
        return ensembles

    def _loaded(self, loading: asyncio.Task[list[Ensemble]]) -> None:
        if loading.cancelled() or loading.exception() is not None:
            self.stop()
            return
        if self._server.should_exit:
            return
        models = Models(loading.result(), self._n_waiting)
        self.service.open(models)
        self._told(f"ready: {', '.join(model.name for model in models)}")


class _Uvicorn(uvicorn.Server):
    """uvicorn, which says when it listens and leaves the signals to others."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[int], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[Any] | None = None) -> None:
        # A socket that uvicorn binds beforehand would lack TCP_NODELAY: 40 ms for each answer.
        try:
            await super().startup(sockets)
        except SystemExit as error:
            where = f"{self.config.host}:{self.config.port}"
            raise InputError(f"cannot listen on {where}: {_reason(error)}") from None
        self._listening(self.servers[0].sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would send them again at the end.
        yield


def _reason(end: SystemExit) -> str:
    """Return why uvicorn wanted to end the process."""
    cause = end.__context__
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    return getattr(cause, "strerror", None) or str(cause)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Stop at the first signal, and end at once at the second; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop_once() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    before = [(number, signal.getsignal(number)) for number in numbers]
    for number in numbers:
        loop.add_signal_handler(number, stop_once)
    try:
        yield
    finally:
        for number, handler in before:
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
