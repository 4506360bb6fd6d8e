"""What went wrong, in the shape of OpenAI's API, and answers that say no."""

import re
from collections.abc import Mapping

from starlette.responses import JSONResponse

from eva_local.errors import ConfigError, ContextError, EvaError, InputError, PromptError
from eva_local.openai.request import KEYS
from eva_local.reading import UnknownKeyError

# What the caller can put right. Other errors speak of the machine, and perhaps of its files.
_OF_CALLER = (ConfigError, ContextError, InputError, PromptError)
_FIRST_WORD = re.compile(r"\w+")
# What is wrong may be repeated in what is said of it, as long as it may be.
_LONGEST = 500


def problem(
    message: str,
    kind: str = "invalid_request_error",
    *,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, object]:
    """Return the body that tells of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_of_caller(error: EvaError) -> bool:
    """Return whether who called can put an error right."""
    return isinstance(error, _OF_CALLER)


def problem_of(error: EvaError) -> dict[str, object]:
    """Return the body that tells of an error; of one that is not the caller's, nothing exact."""
    if not is_of_caller(error):
        return problem("the models failed; the server's log says why", "server_error")
    message = str(error)
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    code = "context_length_exceeded" if isinstance(error, ContextError) else None
    first = _FIRST_WORD.match(message)
    param = first[0] if first and first[0] in KEYS else None
    if isinstance(error, UnknownKeyError):
        param = error.path
    return problem(message, param=param, code=code)


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
