"""Places and the queue: bounded, and free again within a step once a client is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import Any

import pytest
from batches import fake_ensemble, fake_spec
from servers import Client, Reply, serving, until

from eva_local.errors import InputError, ModelError
from eva_local.server.events import Events
from eva_local.server.places import Places
from eva_local.server.refusal import RefusedError

STEP_S = 0.03
LONG = {"prompt": "the", "max_tokens": 3000}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server with one place, one more that may wait, and slow members."""
    spec = fake_spec(tmp_path_factory.mktemp("fake"))
    with serving(lambda: fake_ensemble(spec, 1, delay=STEP_S / 2), n_waiting=1) as client:
        yield client


def scheduler(client: Client) -> Any:
    return client.server.service.models.ensembles[0].scheduler


def is_idle(client: Client) -> bool:
    busy = scheduler(client)
    (model, *_) = client.server.service.models
    return busy.n_running == busy.n_waiting == model.places.taken == 0


@pytest.fixture(autouse=True)
def idle(client):
    yield
    until(lambda: is_idle(client))
    # Nothing is left behind: who comes next is answered as the first.
    assert client.complete("the", max_tokens=3).status == 200


def leave(connection) -> None:
    """Go, as a program that is killed does."""
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_the_queue_is_bounded(client) -> None:
    first = client.open("/v1/completions", LONG | {"max_tokens": 12})
    until(lambda: scheduler(client).n_running == 1)
    second = client.open("/v1/completions", {"prompt": "the", "max_tokens": 2, "stream": True})
    until(lambda: scheduler(client).n_waiting == 1)
    for stream in (False, True):
        reply = client.complete("the", max_tokens=2, stream=stream)
        assert reply.status == 503
        assert int(reply.headers["Retry-After"]) > 0
        assert reply.body["error"]["code"] == "queue_full"
    # What cannot wait at all is not told to come again.
    assert client.complete("the", n=3, max_tokens=2).status == 400
    for connection in (first, second):
        with contextlib.closing(connection):
            assert Reply(connection.getresponse()).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/score"])
def test_who_leaves_while_running_frees_the_place(client, stream, endpoint) -> None:
    body = LONG | {"stream": stream}
    if endpoint == "/v1/score":
        body = {"continuation": "the " * 900}
    connection = client.open(endpoint, body)
    until(lambda: scheduler(client).n_running == 1)
    if stream and endpoint == "/v1/completions":
        connection.getresponse().readline()
    left = time.monotonic()
    leave(connection)
    until(lambda: is_idle(client))
    # A step, and what two threads need to notice.
    assert time.monotonic() - left < STEP_S + 0.5


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_while_waiting_frees_the_place(client, stream) -> None:
    with contextlib.closing(client.open("/v1/completions", LONG | {"max_tokens": 20})) as first:
        until(lambda: scheduler(client).n_running == 1)
        second = client.open("/v1/completions", LONG | {"stream": stream})
        until(lambda: scheduler(client).n_waiting == 1)
        leave(second)
        until(lambda: scheduler(client).n_waiting == 0)
        assert scheduler(client).n_running == 1
        third = client.open("/v1/completions", {"prompt": "the", "max_tokens": 2})
        reply = Reply(first.getresponse())
        alone = client.complete("the", max_tokens=20)
        # Nobody else notices.
        assert reply.body["choices"] == alone.body["choices"]
        with contextlib.closing(third):
            assert Reply(third.getresponse()).status == 200


def test_who_leaves_before_the_body_is_there_leaves_nothing(client) -> None:
    connection = client.open("/v1/completions", b"{", Content_Length="100")
    leave(connection)
    until(lambda: is_idle(client))


def test_who_leaves_many_answers_frees_all(tmp_path) -> None:
    spec = fake_spec(tmp_path)
    with serving(lambda: fake_ensemble(spec, 2, delay=0.01), n_waiting=10) as client:
        connection = client.open("/v1/completions", LONG | {"n": 3, "prompt": ["a", "b", "c"]})
        until(lambda: scheduler(client).n_running == 2 and scheduler(client).n_waiting == 7)
        leave(connection)
        until(lambda: is_idle(client))


def test_the_server_ends_in_mid_answer(tmp_path) -> None:
    spec = fake_spec(tmp_path)
    with serving(lambda: fake_ensemble(spec, 1, delay=0.02)) as client:
        connections = [client.open("/v1/completions", LONG | {"stream": s}) for s in (True, False)]
        until(lambda: scheduler(client).n_running == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    for connection in connections:
        connection.close()


def test_places() -> None:
    places = Places(2, 1)
    with places.take(2), places.take(1):
        with pytest.raises(RefusedError, match="at this moment"), places.take(1):
            pass
        assert places.taken == 3
    with pytest.raises(InputError), places.take(3):
        raise InputError("")
    assert places.taken == 0
    with pytest.raises(RefusedError, match="4 answers are asked for at once"), places.take(4):
        pass


def streamed(*told: Any, quiet: float = 0.02, pause: float = 0.05) -> tuple[list[str], bool]:
    """Return the events that parts, pauses (None) and errors become, and whether all is closed."""
    closed = []

    async def parts():
        try:
            for each in told:
                if each is None:
                    await asyncio.sleep(pause)
                elif isinstance(each, Exception):
                    raise each
                else:
                    yield each
        finally:
            closed.append(True)

    sent = []

    async def send(message) -> None:
        sent.append(message)

    async def run() -> None:
        events = Events(parts(), quiet)
        await events.begin()
        await events({}, None, send)

    asyncio.run(run())
    body = b"".join(message.get("body", b"") for message in sent).decode()
    return body.split("\n\n")[:-1], bool(closed)


def test_a_stream_gives_signs_of_life() -> None:
    events, closed = streamed(None, {"a": 1}, {"b": 2}, None, {"c": 3})
    assert closed
    parts = [json.loads(e[6:]) for e in events if e.startswith("data: {")]
    assert parts == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert events[0].startswith(": ")
    assert any(e.startswith(": ") for e in events[events.index('data: {"b":2}') :])
    assert events[-1] == "data: [DONE]"
    assert streamed()[0] == ["data: [DONE]"]


def test_an_error_has_a_status_as_long_as_it_can() -> None:
    with pytest.raises(InputError, match="at once"):
        streamed(InputError("at once"))
    events, closed = streamed({"a": 1}, InputError("later"))
    assert closed
    assert json.loads(events[1][6:])["error"]["message"] == "later"
    assert events[-1] == "data: [DONE]"
    events, _ = streamed(None, ModelError("/secret/path"))
    assert "/secret" not in "".join(events)


def test_a_stream_that_is_left_closes_its_parts() -> None:
    closed = []

    async def parts():
        try:
            while True:
                yield {"a": 1}
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def run() -> None:
        events = Events(parts())
        await events.begin()

        async def send(message) -> None:
            if message.get("body"):
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await events({}, None, send)

    asyncio.run(run())
    assert closed
