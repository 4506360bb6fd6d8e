"""Slots and the queue: bounded, and free again within a step once a client is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
from batches import fake_ensemble, fake_spec
from servers import Client, Reply, serving
from shared import ENDLESS
from waiting import Gate, step_gate, until

from eva_local.api import Ensemble
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import InputError, ModelError
from eva_local.openai.answer import Letterhead
from eva_local.openai.request import CHAT
from eva_local.server.endpoints import event_stream
from eva_local.server.guard import RefusedError
from eva_local.server.service import Slots

HEAD = Letterhead(CHAT, "x", 0, "m")
LONG = {"prompt": "the", "max_tokens": 3000}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server with one slot, and one more that may wait."""
    spec = fake_spec(tmp_path_factory.mktemp("fake"))
    with serving(lambda: fake_ensemble(spec, 1), n_waiting=1) as client:
        yield client


@pytest.fixture(scope="module")
def gate(client) -> Gate:
    """What every step of the server passes."""
    return step_gate(ensemble(client))


def ensemble(client: Client) -> Ensemble:
    return client.server.service.models[0].ensemble


def scheduler(client: Client) -> Scheduler:
    return ensemble(client).scheduler


def n_taken(client: Client) -> int:
    (model, *_) = client.server.service.models
    return model.slots.taken


def is_idle(client: Client) -> bool:
    busy = scheduler(client)
    return busy.n_running == busy.n_waiting == n_taken(client) == 0


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


def test_the_queue_is_bounded(client, gate) -> None:
    with gate.closed():
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
@pytest.mark.parametrize("scored", [False, True])
def test_who_leaves_while_running_frees_the_slot(client, gate, stream, scored) -> None:
    body = LONG | {"stream": stream}
    if scored:
        body = {"prompt": "the " * 900, "echo": True, "logprobs": 1, "max_tokens": 0}
    before = gate.n_passed
    client.complete("a", max_tokens=3)
    usual = gate.n_passed - before
    with gate.closed():
        connection = client.open("/v1/completions", body)
        gate.let(5)
        gate.wait_until_held()
        if stream and not scored:
            connection.getresponse().readline()
        n_passed = gate.n_passed
        # In the middle of a step.
        leave(connection)
        until(lambda: is_idle(client))
    client.complete("a", max_tokens=3)
    # That step ends, and the next ones are those of who comes next.
    assert gate.n_passed == n_passed + 1 + usual


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_while_waiting_frees_the_slot(client, gate, stream) -> None:
    with gate.closed():
        first = client.open("/v1/completions", LONG | {"max_tokens": 20})
        until(lambda: scheduler(client).n_running == 1)
        second = client.open("/v1/completions", LONG | {"stream": stream})
        until(lambda: scheduler(client).n_waiting == 1)
        leave(second)
        until(lambda: scheduler(client).n_waiting == 0 and n_taken(client) == 1)
        assert scheduler(client).n_running == 1
        third = client.open("/v1/completions", {"prompt": "the", "max_tokens": 2})
        until(lambda: scheduler(client).n_waiting == 1)
    with contextlib.closing(first), contextlib.closing(third):
        reply = Reply(first.getresponse())
        assert Reply(third.getresponse()).status == 200
    # Nobody else notices.
    assert reply.body["choices"] == client.complete("the", max_tokens=20).body["choices"]


def test_who_leaves_before_the_body_is_there_leaves_nothing(client) -> None:
    connection = client.open("/v1/completions", b"{", Content_Length="100")
    leave(connection)
    until(lambda: is_idle(client))


def test_who_leaves_many_answers_frees_all(tmp_path) -> None:
    spec = fake_spec(tmp_path)
    with (
        serving(lambda: fake_ensemble(spec, 2), n_waiting=10) as client,
        step_gate(ensemble(client)).closed(),
    ):
        connection = client.open("/v1/completions", LONG | {"n": 3, "prompt": ["a", "b", "c"]})
        until(lambda: scheduler(client).n_running + scheduler(client).n_waiting == 9)
        leave(connection)
        until(lambda: is_idle(client))


def test_the_server_ends_in_mid_answer(tmp_path) -> None:
    spec = fake_spec(tmp_path)
    endless = {"endless": True, "n_ctx": 2 * ENDLESS}
    with serving(lambda: fake_ensemble(spec, 1, **endless)) as client:
        body = {"prompt": "the", "max_tokens": ENDLESS}
        connections = [client.open("/v1/completions", body | {"stream": s}) for s in (True, False)]
        until(lambda: scheduler(client).n_running == scheduler(client).n_waiting == 1)
    # Whom nothing was told yet is told to come again.
    whole = Reply(connections[1].getresponse())
    assert (whole.status, whole.body["error"]["code"]) == (503, "server_ends")
    for connection in connections:
        connection.close()


def test_slots() -> None:
    slots = Slots(2, 1)
    with slots.take(2), slots.take(1):
        with pytest.raises(RefusedError, match="at this moment"), slots.take(1):
            pass
        assert slots.taken == 3
    with pytest.raises(InputError), slots.take(3):
        raise InputError("")
    assert slots.taken == 0
    with pytest.raises(RefusedError, match="4 answers are asked for at once"), slots.take(4):
        pass


def streamed(*told: Any) -> tuple[list[str], bool]:
    """Return the events that parts and errors become, and whether all is closed.

    None is a pause until a sign of life was given.
    """
    closed, alive = [], asyncio.Event()

    async def parts():
        try:
            for each in told:
                if each is None:
                    alive.clear()
                    await alive.wait()
                elif isinstance(each, Exception):
                    raise each
                else:
                    yield each
        finally:
            closed.append(True)

    sent = []

    async def send(message) -> None:
        sent.append(message)
        if message.get("body", b"").startswith(b": "):
            alive.set()

    async def run() -> None:
        # Nothing is quiet for an hour.
        events = await event_stream(parts(), HEAD, 0.001 if None in told else 3600)
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
        events = await event_stream(parts(), HEAD)

        async def send(message) -> None:
            if message.get("body"):
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await events({}, None, send)

    asyncio.run(run())
    assert closed
