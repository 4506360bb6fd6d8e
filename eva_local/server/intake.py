"""The body of a request, read whole within its limits; and an eye on who asked."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eva_local.server.refusal import RefusedError

#: Bytes of a body at most: more than the longest context holds.
MOST_BYTES = 4 * 2**20
#: How long a body may take.
PATIENCE_S = 60.0


class Intake:
    """Hands a request on with its whole body, and ends the work on it when who asked is gone."""

    def __init__(self, app: ASGIApp, most_bytes: int = MOST_BYTES) -> None:
        """Refuse bodies of more than `most_bytes`."""
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                body = await self._body(receive)
        except TimeoutError:
            await RefusedError(408, "the body did not come in time").response(scope, receive, send)
        except RefusedError as error:
            await error.response(scope, receive, send)
        else:
            if body is not None:
                await self._answer(body, scope, receive, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the body; None where who asked is gone."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._most_bytes:
                raise RefusedError(413, f"the body has more than {self._most_bytes} bytes")
            if not message.get("more_body", False):
                return bytes(body)

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
    """Return when who asked is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
