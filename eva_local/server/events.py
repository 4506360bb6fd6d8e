"""Parts of an answer as server-sent events, with signs of life while there are none."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from eva_local.errors import EvaError
from eva_local.openai.answer import Body
from eva_local.server.guard import problem_of

# How long nothing may be heard of an answer: proxies and clients give up after longer silence.
QUIET_S = 5.0
_COMMENT = b": the members are reading\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = {
    "Cache-Control": "no-store",
    # nginx would keep the parts until the answer is whole.
    "X-Accel-Buffering": "no",
}
_END: Body = {}
# What is sent; None is a sign of life.
Paced = AsyncGenerator[Body | None, None]


async def event_stream(parts: AsyncGenerator[Body, None], quiet: float = QUIET_S) -> ASGIApp:
    """Return what sends `parts`, and a comment where none comes for `quiet` seconds.

    Waits that long for the first part, so that what is refused at once has its status: raises
    what the parts raise until then.
    """
    paced = _paced(parts, quiet)
    events = _written(await anext(paced, _END), paced)
    response = StreamingResponse(events, headers=_HEADERS, media_type="text/event-stream")

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        # Whatever becomes of it, the parts are closed. `received` sees whether the client is there.
        async with contextlib.aclosing(paced):
            await response.stream_response(send)

    return answer


async def _written(part: Body | None, others: Paced) -> AsyncGenerator[bytes, None]:
    try:
        while part is not _END:
            yield _COMMENT if part is None else _event(part, separators=(",", ":"))
            part = await anext(others, _END)
    except EvaError as error:
        yield _event(problem_of(error))
    yield _DONE


def _event(part: Body, separators: tuple[str, str] | None = None) -> bytes:
    return b"data: " + json.dumps(part, separators=separators).encode() + b"\n\n"


async def _paced(parts: AsyncGenerator[Body, None], quiet: float) -> Paced:
    """Yield the parts, and None where none comes for `quiet` seconds; close them in any case."""
    upcoming = asyncio.ensure_future(anext(parts, _END))
    try:
        while True:
            if not (await asyncio.wait((upcoming,), timeout=quiet))[0]:
                yield None
            elif (part := upcoming.result()) is _END:
                return
            else:
                yield part
                upcoming = asyncio.ensure_future(anext(parts, _END))
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
        await parts.aclose()
