"""The endpoint that scores: how likely texts are, under the ensemble and under each member.

OpenAI's API has nothing like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.engine.request import AnyPrompt, Weights
from eva_local.errors import InputError
from eva_local.openai.answer import Body, chat_tokens, tokens_of
from eva_local.openai.call import texts_of, weights_of
from eva_local.openai.request import given, read_messages
from eva_local.openai.shapes import MOST_ANSWERS, ScoreRequest
from eva_local.reading import read
from eva_local.server.service import asked


async def score(request: Request) -> Response:
    """Return how likely each continuation is right after the prompt."""
    model, body = await asked(request)
    texts, weights, n_top = read_score_call(body, model.members)
    with model.slots.take(len(texts)):
        scores = await model.score(texts, weights, n_top)
    data = []
    for index, each in enumerate(scores):
        # Log-likelihoods are in nats.
        told: Body = {
            "index": index,
            "object": "score",
            "log_likelihood": each.log_likelihood,
            "per_byte": each.per_byte,
            "n_bytes": each.n_bytes,
            "n_tokens": each.n_symbols,
            "unseen": each.unseen,
            "members": dict(zip(model.members, each.members, strict=True)),
        }
        if n_top is not None:
            told["logprobs"] = chat_tokens(tokens_of(each.symbols))
        data.append(told)
    return JSONResponse({"object": "list", "model": model.name, "data": data})


def read_score_call(
    body: Mapping[str, object], members: Sequence[str]
) -> tuple[list[tuple[AnyPrompt, str | Sequence[int]]], Weights | None, int | None]:
    """Read a body: texts, each with its prompt, weights and `n_top`, as `ServedModel.score` has it.

    Raises InputError where it asks for what cannot be done.
    """
    body = given(body)
    if "messages" in body and "prompt" in body:
        raise InputError("prompt and messages exclude each other: give one")
    messages = read_messages(body.pop("messages")) if "messages" in body else None
    request = read(body, ScoreRequest)
    continuations = texts_of(request.continuation, "continuation")
    if len(continuations) > MOST_ANSWERS:
        raise InputError(f"continuation: from 1 to {MOST_ANSWERS} texts can be scored at once")
    (prompt,) = texts_of(request.prompt, "prompt")
    texts: list[tuple[AnyPrompt, str | Sequence[int]]] = [
        (messages or prompt, each) for each in continuations
    ]
    return texts, weights_of(request.weights, members), request.logprobs
