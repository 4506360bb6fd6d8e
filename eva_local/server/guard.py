"""Who may ask, and how much: with a key, or as a program on this machine, but no web page.

Who may not, or asks for what cannot be, hears why in the shape of OpenAI's API.
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eva_local.errors import ConfigError, ContextError, EvaError, InputError, PromptError
from eva_local.openai.request import KEYS
from eva_local.reading import ReadError, UnknownKeyError

#: What the caller can put right. Other errors speak of the machine, and perhaps of its files.
OF_CALLER = (ConfigError, ContextError, InputError, PromptError)
_REQUEST_ERROR = "invalid_request_error"
# What is wrong may be repeated in what is said of it, as long as it may be.
_LONGEST = 500
# What holds no secret, and must be there for who has no key yet.
_OPEN = ("/", "/health", "/v1/health")
#: Bytes of a body at most: more than the longest context holds.
MOST_BYTES = 4 * 2**20
#: How long a body may take.
PATIENCE_S = 60.0


def problem(
    message: str, kind: str = _REQUEST_ERROR, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the body that tells of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem_of(error: EvaError) -> dict[str, Any]:
    """Return the body that tells of an error; of one that is not the caller's, nothing exact."""
    if not isinstance(error, OF_CALLER):
        return problem("the models failed; the server's log says why", "server_error")
    message = str(error)
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    code = "context_length_exceeded" if isinstance(error, ContextError) else None
    first_word = re.split(r"\W", message, maxsplit=1)[0]
    param = error.path if isinstance(error, UnknownKeyError) else first_word
    is_key = first_word in KEYS or isinstance(error, ReadError)
    return problem(message, param=param if is_key else None, code=code)


class RefusedError(Exception):
    """A request that is not answered, and why; `told` are body, status and headers."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, **why: str
    ) -> None:
        """Refuse with an HTTP `status`; `why` goes on to `problem`."""
        super().__init__(message)
        self.told = (problem(message, **why), status, headers)


def refusal(scope: Scope, error: Exception) -> JSONResponse:
    """Return what tells of an error, in the shape of the protocol that is spoken at a path."""
    path, headers = scope["path"], None
    body, status = problem("the server failed; its log says why", "server_error"), 500
    if isinstance(error, RefusedError):
        body, status, headers = error.told
    elif isinstance(error, EvaError):
        body, status = problem_of(error), 400 if isinstance(error, OF_CALLER) else 500
    elif isinstance(error, RecursionError):
        body, status = problem("what is asked for is nested too deeply"), 400
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
        what = f"{scope['method']} cannot be done at" if status == 405 else "there is no"
        body = problem(f"{what} {path[:60]}; docs/server.md lists what can be asked")
    if path.startswith("/api/"):
        body = {"error": body["error"]["message"]}
    return JSONResponse(body, status, headers)


def come_again(message: str, code: str) -> RefusedError:
    """Return a refusal that may not last: slots become free, and models are open at some time."""
    return RefusedError(503, message, {"Retry-After": "2"}, kind="server_error", code=code)


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


def guarded(
    app: ASGIApp, keys: Sequence[str], origins: Sequence[str], hosts: Sequence[str]
) -> ASGIApp:
    """Let in who has one of `keys`; without any, this machine and pages from `origins`.

    This machine goes by its own names and those that are like one of `hosts`, such as *.local.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not keys:
            _refuse_stranger(headers, origins, hosts)
        elif scope["path"] not in _OPEN and not _has_key(headers, keys):
            why = {"kind": "authentication_error", "code": "invalid_api_key"}
            what = "an API key is needed: Authorization: Bearer KEY"
            raise RefusedError(401, what, {"WWW-Authenticate": "Bearer"}, **why)
        await app(scope, receive, send)

    return answer


def received(app: ASGIApp) -> ASGIApp:
    """Hand a request on with its whole body, and end the work on it when who asked is gone."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for part in Request(scope, receive).stream():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise RefusedError(413, f"the body has more than {MOST_BYTES} bytes")
        except TimeoutError:
            raise RefusedError(408, "the body did not come in time") from None
        except ClientDisconnect:
            return
        whole = asyncio.Queue[Message]()
        whole.put_nowait({"type": "http.request", "body": bytes(body), "more_body": False})
        work = asyncio.ensure_future(app(scope, whole.get, send))
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

    return answer


def _has_key(headers: Headers, keys: Sequence[str]) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    key = given.strip().encode("latin-1")
    # All are compared, whichever is right.
    right = [hmac.compare_digest(key, each.encode()) for each in keys]
    return scheme.lower() == "bearer" and any(right)


def _refuse_stranger(headers: Headers, origins: Sequence[str], hosts: Sequence[str]) -> None:
    """Refuse web pages: one whose name was made to point here, and one from elsewhere."""
    host, origin = headers.get("host", ""), headers.get("origin")
    name, colon, port = host.rpartition(":")
    name = (name if colon and port.isdigit() else host).lower()
    if not is_loopback(name) and not any(fnmatchcase(name, each.lower()) for each in hosts):
        what = "the Host header must name this machine, such as localhost"
        raise RefusedError(403, f"{what}; --allow-host NAME lets another name do")
    if origin not in (None, f"http://{host}", *origins):
        raise RefusedError(403, "pages from elsewhere are not answered; --cors ORIGIN allows one")


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
