"""Who may ask, and how much: with a key, or as a program on this machine, but no web page."""

import asyncio
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eva_local.errors import InputError
from eva_local.server.refusal import RefusedError

# What holds no secret, and must be there for who has no key yet.
_OPEN = ("/", "/health")
#: Bytes of a body at most: more than the longest context holds.
MOST_BYTES = 4 * 2**20
#: How long a body may take.
PATIENCE_S = 60.0


def refuse_open_door(host: str, keys: Sequence[str]) -> None:
    """Raise InputError where other machines could ask without a key, and for keys that are none."""
    if not keys and not is_loopback(host):
        raise InputError(f"--host {host} can be reached from other machines: give --api-key-file")
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            raise InputError("an API key must be of printable ASCII characters, without spaces")


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own, which no other can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets in who has one of `keys`; without any, this machine and pages from `origins`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        headers = Headers(scope=scope)
        refusal = None
        if not self._keys:
            refusal = self._refusal_of_stranger(headers)
        elif scope["path"] not in _OPEN and not self._has_key(headers):
            refusal = RefusedError(
                401,
                "an API key is needed: Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
                kind="authentication_error",
                code="invalid_api_key",
            )
        await (self._app if refusal is None else refusal.response)(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode("latin-1")
        # All are compared, whichever is right.
        right = [hmac.compare_digest(key, each) for each in self._keys]
        return scheme.lower() == "bearer" and any(right)

    def _refusal_of_stranger(self, headers: Headers) -> RefusedError | None:
        """Refuse web pages: one whose name was made to point here, and one from elsewhere."""
        host = headers.get("host", "")
        name, colon, port = host.rpartition(":")
        if not is_loopback(name if colon and port.isdigit() else host):
            return RefusedError(403, "the Host header must name this machine, such as localhost")
        origin = headers.get("origin")
        if origin is None or origin in self._origins or origin == f"http://{host}":
            return None
        return RefusedError(403, "pages from elsewhere are not answered; --cors ORIGIN allows one")


class Intake:
    """Hands a request on with its whole body, and ends the work on it when who asked is gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        body = bytearray()
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for part in Request(scope, receive).stream():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise RefusedError(413, f"the body has more than {MOST_BYTES} bytes")
        except TimeoutError:
            await RefusedError(408, "the body did not come in time").response(scope, receive, send)
        except RefusedError as error:
            await error.response(scope, receive, send)
        except ClientDisconnect:
            return
        else:
            await self._answer(bytes(body), scope, receive, send)

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        whole = asyncio.Queue[Message]()
        whole.put_nowait({"type": "http.request", "body": body, "more_body": False})
        work = asyncio.ensure_future(self._app(scope, whole.get, send))
        gone = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Who asked may be gone because the last byte is sent.
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
