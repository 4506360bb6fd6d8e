"""Who may ask: a key where there is one, else programs on this machine, but no web page."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from eva_local.errors import InputError
from eva_local.server.refusal import RefusedError

# What holds no secret, and must be there for who has no key yet.
_OPEN = ("/", "/health")


def refuse_open_door(host: str, keys: Sequence[str]) -> None:
    """Raise InputError where other machines could ask without a key, and for keys that are none."""
    if not keys and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines: give --api-key-file, too"
        )
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
    """Lets in who may ask."""

    def __init__(self, app: ASGIApp, keys: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        """Ask for one of `keys`; without any, trust this machine and pages from `origins`."""
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
                "authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
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
        if not is_loopback(_without_port(host)):
            return RefusedError(403, "the Host header must name this machine, such as localhost")
        origin = headers.get("origin")
        if origin is None or origin in self._origins or origin == f"http://{host}":
            return None
        return RefusedError(403, "pages from elsewhere are not answered; --cors ORIGIN allows one")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
