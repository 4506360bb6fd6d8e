"""Parts of an answer as server-sent events, with signs of life while there are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping

from starlette.types import Receive, Scope, Send

from eva_local.errors import EvaError
from eva_local.openai.problem import problem_of

Part = Mapping[str, object]

# How long nothing may be heard of an answer: proxies and clients give up after longer silence.
QUIET_S = 5.0
_COMMENT = b": the members are reading\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would keep the parts until the answer is whole.
    (b"x-accel-buffering", b"no"),
]


class Events:
    """A response that sends each part as it comes."""

    def __init__(self, parts: AsyncGenerator[Part, None], quiet: float = QUIET_S) -> None:
        """Send `parts`, and a comment where none comes for `quiet` seconds."""
        self._parts = parts
        self._quiet = quiet
        self._next: asyncio.Task[Part | None] | None = None

    async def begin(self) -> None:
        """Wait a moment for the first part, so that what is refused at once has its status.

        Raises what the parts raise until then.
        """
        try:
            if await self._heard():
                await self._upcoming()
        except BaseException:
            await self._close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all parts, and close them in any case."""
        del scope, receive
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            async with contextlib.aclosing(self._written()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._close()

    async def _written(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                if not await self._heard():
                    yield _COMMENT
                    continue
                part = await self._upcoming()
                self._next = None
                if part is None:
                    break
                yield b"data: " + json.dumps(part, separators=(",", ":")).encode() + b"\n\n"
        except EvaError as error:
            yield b"data: " + json.dumps(problem_of(error)).encode() + b"\n\n"
        yield _DONE

    async def _heard(self) -> bool:
        """Return whether a part, or the end, comes in time."""
        done, _ = await asyncio.wait((self._upcoming(),), timeout=self._quiet)
        return bool(done)

    def _upcoming(self) -> asyncio.Task[Part | None]:
        if self._next is None:
            self._next = asyncio.create_task(self._pull())
        return self._next

    async def _pull(self) -> Part | None:
        return await anext(self._parts, None)

    async def _close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._parts.aclose()
