"""What went wrong, in the shape of OpenAI's API, and answers that say no."""

import re
from collections.abc import Mapping

from starlette.responses import JSONResponse

from eva_local.errors import ConfigError, ContextError, EvaError, InputError, PromptError
from eva_local.openai.request import KEYS
from eva_local.reading import UnknownKeyError

#: What the caller can put right. Other errors speak of the machine, and perhaps of its files.
OF_CALLER = (ConfigError, ContextError, InputError, PromptError)
_REQUEST_ERROR = "invalid_request_error"
# What is wrong may be repeated in what is said of it, as long as it may be.
_LONGEST = 500


def problem(
    message: str, kind: str = _REQUEST_ERROR, *, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """Return the body that tells of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem_of(error: EvaError) -> dict[str, object]:
    """Return the body that tells of an error; of one that is not the caller's, nothing exact."""
    if not isinstance(error, OF_CALLER):
        return problem("the models failed; the server's log says why", "server_error")
    message = str(error)
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    code = "context_length_exceeded" if isinstance(error, ContextError) else None
    first_word = re.split(r"\W", message, maxsplit=1)[0]
    param = first_word if first_word in KEYS else None
    if isinstance(error, UnknownKeyError):
        param = error.path
    return problem(message, param=param, code=code)


class RefusedError(Exception):
    """A request that is not answered, and why; `response` is what the caller gets."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, **why: str
    ) -> None:
        """Refuse with an HTTP `status`; `why` goes on to `problem`."""
        super().__init__(message)
        self.response = JSONResponse(problem(message, **why), status, headers)


def come_again(message: str, code: str) -> RefusedError:
    """Return a refusal that may not last: slots become free, and models are open at some time."""
    return RefusedError(503, message, {"Retry-After": "2"}, kind="server_error", code=code)
