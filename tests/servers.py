"""A server on fake models in a thread of its own, and a plain client for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
from waiting import PATIENCE_S, until

from eva_local.api import Ensemble
from eva_local.errors import EvaError
from eva_local.server.serve import Server


class Reply:
    """What came back; `body` is JSON where it is."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.data = response.read()

    @property
    def body(self) -> Any:
        return json.loads(self.data)

    @property
    def problem(self) -> str:
        error = self.body["error"]
        assert set(error) == {"message", "type", "param", "code"}
        for hidden in ("Traceback", ".py", "/home", "/tmp", "/work"):
            assert hidden not in error["message"]
        return error["message"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of a stream, which must be whole."""
        events = [e for e in self.data.decode().split("\n\n") if e and not e.startswith(":")]
        assert events[-1] == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


class Client:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = int(server.url.rpartition(":")[2])

    def open(self, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        """Send a request, and leave the answer to who wants it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        data = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body)
        method = headers.pop("method", "GET" if body is None else "POST")
        connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
        return connection

    def ask(self, path: str, body: Any = None, **headers: str) -> Reply:
        with contextlib.closing(self.open(path, body, **headers)) as connection:
            return Reply(connection.getresponse())

    def chat(self, content: str = "the unbelievable", **options: Any) -> Reply:
        messages = [{"role": "user", "content": content}]
        return self.ask("/v1/chat/completions", {"messages": messages, **options})

    def complete(self, prompt: Any = "the unbelievable", **options: Any) -> Reply:
        return self.ask("/v1/completions", {"prompt": prompt, **options})


@contextlib.contextmanager
def serving(
    *openers: Callable[[], Ensemble], n_waiting: int = 64, ready: bool = True, **door: Any
) -> Iterator[Client]:
    """Run a server for the length of a `with` block."""
    listens = threading.Event()
    server = Server(openers, n_waiting=n_waiting, told=lambda _: listens.set(), **door)
    failed: list[EvaError] = []

    def run() -> None:
        try:
            asyncio.run(server.serve())
        except EvaError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert listens.wait(PATIENCE_S)
        if ready:
            until(lambda: server.service.is_ready)
        yield Client(server)
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def openai_client(served: Client) -> openai.OpenAI:
    """Return the openai client for a server, who closes it."""
    url = f"{served.server.url}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)
