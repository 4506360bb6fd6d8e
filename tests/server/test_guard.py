"""Who may ask the server, and how much."""

from __future__ import annotations

import asyncio
import contextlib
import http.client

import pytest
from batches import fake_ensemble, fake_spec
from servers import Reply, serving

from eva_local.errors import InputError
from eva_local.server import endpoints, guard
from eva_local.server.guard import MOST_BYTES, RefusedError, is_loopback, received, refuse_open_door

KEY = "a-long-key"


@pytest.fixture(scope="module")
def opener(tmp_path_factory):
    spec = fake_spec(tmp_path_factory.mktemp("fake"))
    return lambda: fake_ensemble(spec)


@pytest.fixture(scope="module")
def client(opener):
    with serving(opener) as client:
        yield client


@pytest.fixture(scope="module")
def locked(opener):
    with serving(opener, keys=("another", KEY)) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.evil.com", False),
        ("127.0.0.1.evil.com", False),
        ("2130706433", False),
        ("", False),
    ],
)
def test_other_addresses_need_a_key(host, is_own) -> None:
    assert is_loopback(host) == is_own
    refuse_open_door(host, (KEY,))
    if is_own:
        refuse_open_door(host, ())
        return
    with pytest.raises(InputError, match="give --api-key-file"):
        refuse_open_door(host, ())


@pytest.mark.parametrize("key", ["", "two words", "clé", "line\n", "tab\t"])
def test_keys_that_no_header_can_carry(key) -> None:
    with pytest.raises(InputError, match="an API key must be"):
        refuse_open_door("localhost", (key,))


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer  "},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer \xe9"},
        {"X-Api-Key": KEY},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/props", "/v1/nothing", "//"])
def test_without_the_key_nothing_is_told(locked, header, path) -> None:
    reply = locked.ask(path, **header)
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert reply.body["error"]["code"] == "invalid_api_key"
    assert KEY not in reply.problem


def test_any_key_of_the_file_opens(locked) -> None:
    for key in (KEY, "another"):
        assert locked.ask("/v1/models", Authorization=f"Bearer {key}").status == 200
    assert locked.ask("/v1/models", Authorization=f"bearer {KEY}").status == 200
    # Whoever has the key may come by any name.
    assert locked.ask("/v1/models", Authorization=f"Bearer {KEY}", Host="my.box").status == 200
    assert locked.ask("/health").status == 200
    assert locked.ask("/").status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:99", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("evil.com", 403),
        ("evil.com:8080", 403),
        ("localhost.evil.com", 403),
        ("127.0.0.1.evil.com:80", 403),
        ("127.0.0.1@evil.com", 403),
        ("evil.com:localhost", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(client, host, status) -> None:
    reply = client.ask("/v1/models", Host=host)
    assert reply.status == status
    if status == 403:
        assert "the Host header must name this machine" in reply.problem


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://localhost:1", "file://"])
def test_pages_from_elsewhere_cannot_use_the_server(client, origin) -> None:
    body = b'{"prompt": "the", "max_tokens": 1}'
    reply = client.ask("/v1/completions", body, Origin=origin, Content_Type="text/plain")
    assert reply.status == 403
    # The page can read why, and nothing but that.
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert "--cors ORIGIN allows one" in reply.problem
    asked = {"method": "OPTIONS", "Access_Control_Request_Method": "POST"}
    asked |= {"Access_Control_Request_Headers": "content-type"}
    assert client.ask("/v1/completions", Origin=origin, **asked).status == 200
    assert client.ask("/v1/models", Origin=f"http://127.0.0.1:{client.port}").status == 200


def test_cors_is_for_those_who_are_named(opener, client) -> None:
    asked = {
        "method": "OPTIONS",
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type,x-stainless-os",
    }
    own, other = "http://localhost:3000", "http://evil.com"
    with serving(opener, origins=(own,), keys=(KEY,)) as locked:
        reply = locked.ask("/v1/chat/completions", Origin=own, **asked)
        assert reply.status == 200
        assert reply.headers["Access-Control-Allow-Origin"] == own
        assert "x-stainless-os" in reply.headers["Access-Control-Allow-Headers"]
        assert locked.ask("/v1/chat/completions", Origin=other, **asked).status == 400
        # Even what is refused can be read, so that a page can say why.
        assert locked.ask("/v1/models", Origin=own).headers["Access-Control-Allow-Origin"] == own
    with serving(opener, origins=(own,)) as opened:
        assert opened.ask("/v1/models", Origin=own).status == 200
        assert opened.ask("/v1/models", Origin=other).status == 403
    with serving(opener, keys=(KEY,)) as locked:
        reply = locked.ask("/v1/chat/completions", Origin=own, **asked)
        assert reply.headers["Access-Control-Allow-Origin"] is None


def test_other_names_of_this_machine_are_an_option(opener) -> None:
    with serving(opener, hosts=("host.docker.internal", "*.Local")) as named:
        for host in ("host.docker.internal:8080", "my.Local", "localhost"):
            assert named.ask("/v1/models", Host=host).status == 200
        for host in ("docker.internal", "local", "my.local.evil.com", "evil.com"):
            reply = named.ask("/v1/models", Host=host)
            assert reply.status == 403
            assert "--allow-host NAME" in reply.problem
        # A page under such a name is this server's own.
        own = {"Host": "my.local:80", "Origin": "http://my.local:80"}
        assert named.ask("/v1/models", **own).status == 200


def test_bodies_are_limited(client) -> None:
    body = b'{"prompt": "' + b"a" * MOST_BYTES + b'"}'
    reply = client.ask("/v1/completions", body)
    assert reply.status == 413
    assert str(MOST_BYTES) in reply.problem
    # One that does not say how long it is, is counted as it comes.
    connection = client.open("/v1/completions", iter([body[: 2**20]] * 6), method="POST")
    with contextlib.closing(connection):
        assert Reply(connection.getresponse()).status == 413
    assert client.complete(max_tokens=1).status == 200


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE_S", 0.01)

    async def receive():
        await asyncio.Event().wait()

    with pytest.raises(RefusedError) as refused:
        asyncio.run(received(lambda *_: None)({"type": "http"}, receive, lambda _: None))
    assert refused.value.told[1] == 408


def test_what_fails_here_is_not_told_abroad(opener, monkeypatch, caplog) -> None:
    with serving(opener) as client:
        monkeypatch.setattr(
            client.server.service.models[0].ensemble, "tokenize", lambda *_, **__: 1 / 0
        )
        reply = client.ask("/tokenize", {"prompt": "a"})
        assert reply.status == 500
        assert reply.problem == "the server failed; its log says why"
        assert "ZeroDivisionError" in caplog.text
        assert client.complete(max_tokens=1).status == 200


def test_what_fails_here_is_counted_and_can_be_read_by_pages(opener, monkeypatch) -> None:
    own = "http://localhost:3000"
    with serving(opener, origins=(own,)) as client:
        monkeypatch.setattr(
            client.server.service.models[0].ensemble, "tokenize", lambda *_, **__: 1 / 0
        )
        reply = client.ask("/tokenize", {"prompt": "a"}, Origin=own)
        assert reply.status == 500
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        counted = b'eva_local_requests_total{path="/tokenize",status="500"} 1.0'
        assert counted in client.ask("/metrics").data


def test_an_answer_that_breaks_in_the_middle_breaks_off(opener, monkeypatch) -> None:
    """Half an answer must not look whole."""

    async def written(*_):
        yield b"data: {}\n\n"
        raise ZeroDivisionError

    monkeypatch.setattr(endpoints, "_events", written)
    with serving(opener) as client:
        body = {"prompt": "the", "max_tokens": 3, "stream": True}
        with contextlib.closing(client.open("/v1/completions", body)) as connection:
            response = connection.getresponse()
            assert response.status == 200
            with pytest.raises(http.client.IncompleteRead):
                response.read()
