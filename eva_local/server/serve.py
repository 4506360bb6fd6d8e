"""The server itself: it listens, opens the models meanwhile, answers, and ends cleanly."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from eva_local.api import Ensemble
from eva_local.errors import InputError
from eva_local.server.app import make_app
from eva_local.server.guard import refuse_open_door
from eva_local.server.service import Service

# How long answers that are under way may take once the server is to end.
GRACE_S = 2


class Server(uvicorn.Server):
    """One server, from its port to its end; `url` is where it listens, once it does.

    Each of the `openers` opens an ensemble, before which `n_waiting` answers wait for a slot. Port
    0 takes one that is free. `told` hears where it listens, and when it can answer. The `door` is
    that of `make_app`. InputError is raised for a server that is open to everyone.
    """

    def __init__(
        self,
        openers: Sequence[Callable[[], Ensemble]],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        n_waiting: int,
        trust_templates: bool = False,
        unknown_keys: str = "refuse",
        told: Callable[[str], None] = lambda _: None,
        **door: Sequence[str],
    ) -> None:
        refuse_open_door(host, door.get("keys", ()))
        self.service, self.url = Service(trust_templates, unknown_keys == "warn"), ""
        self._openers, self._n_waiting, self._told = openers, n_waiting, told
        self._loading: asyncio.Task[None] | None = None
        self._resources = contextlib.ExitStack()
        config = uvicorn.Config(
            make_app(self.service, **door),
            host=host,
            port=port,
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
        super().__init__(config)

    async def serve(self, sockets: list[Any] | None = None) -> None:
        """Answer until `stop`; raise InputError where it cannot listen, and what openers raise."""
        with self._resources:
            await super().serve(sockets)
            if self._loading is not None:
                # llama.cpp is not stopped in the middle of a file.
                await self._loading

    def stop(self) -> None:
        """Answer no new request, and end soon."""
        self.should_exit = True

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and load, now that requests can come."""
        host = self.config.host
        # A socket that is bound beforehand would lack TCP_NODELAY: 40 ms for each answer.
        try:
            await super().startup(sockets)
        except SystemExit as error:
            problem = f"cannot listen on {host}:{self.config.port}: {_reason(error)}"
            raise InputError(problem) from None
        port = self.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._told(f"listening on {self.url}, loading")
        self._loading = asyncio.create_task(self._load())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to who runs it: uvicorn would send them again at the end."""
        yield

    async def _load(self) -> None:
        ensembles = []
        try:
            for opener in self._openers:
                if self.should_exit:
                    return
                opened = await asyncio.to_thread(opener)
                ensembles.append(self._resources.enter_context(opened))
        except BaseException:
            self.stop()
            raise
        if not self.should_exit:
            self.service.open(ensembles, self._n_waiting)
            self._told(f"ready: {', '.join(model.name for model in self.service.models)}")


def _reason(end: SystemExit) -> str:
    cause = end.__context__
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    return getattr(cause, "strerror", None) or str(cause)
