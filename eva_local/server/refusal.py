"""Answers that say no, in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from eva_local.openai.problem import problem


class RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse with an HTTP `status`; `param` names what part of the body is wrong."""
        super().__init__(message)
        #: What the caller gets.
        body = problem(message, kind, param=param, code=code)
        self.response = JSONResponse(body, status, headers)


def come_again(message: str, code: str) -> RefusedError:
    """Return a refusal that may not last: slots become free, and models are open at some time."""
    return RefusedError(503, message, "server_error", code=code, headers={"Retry-After": "2"})
