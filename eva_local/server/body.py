"""Bodies of requests as JSON."""

from __future__ import annotations

import json

from starlette.requests import Request

from eva_local.errors import InputError
from eva_local.openai.keys import parsed, refuse_twice


async def read_object(request: Request) -> dict[str, object]:
    """Return the JSON object that a body is; raise InputError for anything else."""
    data = await request.body()
    try:
        # Bytes would be read as UTF-16, too, and leniently; some clients put a mark in front.
        body, twice = parsed(data.decode("utf-8-sig"), _refuse_constant)
        refuse_twice(twice)
        # JSON can name half a character, which is no text.
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("the body holds half of a surrogate pair, which is no text") from error
    except InputError as error:
        raise InputError(f"the body {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {str(error) or 'too deep'}") from error
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    return body


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
