"""The application: what answers at which path, and what every request goes through."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eva_local.errors import EvaError
from eva_local.openai.answer import Body
from eva_local.openai.problem import is_of_caller, problem, problem_of
from eva_local.openai.request import CHAT, COMPLETION
from eva_local.server.completions import complete
from eva_local.server.guard import Guard, Intake
from eva_local.server.models import ServedModel
from eva_local.server.openapi import document
from eva_local.server.page import chat_page
from eva_local.server.refusal import RefusedError
from eva_local.server.scores import score
from eva_local.server.service import Service, service_of
from eva_local.server.tokens import detokenize, tokenize, tokenizer_info

log = logging.getLogger("eva_local")


def make_app(
    service: Service, *, keys: Sequence[str] = (), origins: Sequence[str] = ()
) -> Starlette:
    """Return the application of a service.

    It asks for one of `keys`, and lets web pages from `origins` read its answers.
    """
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(_counted, service=service),
            *([cors] if origins else []),
            Middleware(_rescued),
            Middleware(Guard, keys=keys, origins=origins),
            Middleware(Intake),
        ],
        exception_handlers=dict.fromkeys((RefusedError, EvaError, HTTPException), _refused),
    )
    # A redirection would repeat the Host header.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def page(_request: Request) -> Response:
    """Return the chat page."""
    return chat_page()


async def health(request: Request) -> Response:
    """Say whether questions can be answered."""
    if service_of(request).is_ready:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "loading"}, 503, {"Retry-After": "2"})


async def models(request: Request) -> Response:
    """List what the key `model` can name."""
    data = [_described(model) for model in service_of(request).models]
    return JSONResponse({"object": "list", "data": data})


async def model(request: Request) -> Response:
    """Describe one model."""
    return JSONResponse(_described(service_of(request).named(request.path_params["name"])))


async def metrics(request: Request) -> Response:
    """Return the counters."""
    return service_of(request).measures.response()


async def description(request: Request) -> Response:
    """Return the description of all endpoints, as OpenAPI."""
    service = service_of(request)
    return JSONResponse(document([m.name for m in service.models] if service.is_ready else ()))


ROUTES = (
    Route("/", page),
    Route("/health", health),
    Route("/metrics", metrics),
    Route("/openapi.json", description),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
    Route(CHAT, complete, methods=["POST"]),
    Route(COMPLETION, complete, methods=["POST"]),
    Route("/v1/score", score, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
)


def _described(model: ServedModel) -> Body:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "eva-local",
        "members": list(model.members),
        "max_model_len": model.n_ctx,
    }


def _counted(app: ASGIApp, service: Service) -> ASGIApp:
    """Count the answers to requests by path and status."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = any(scope["path"] == route.path for route in ROUTES)
                path = scope["path"] if known else "other"
                service.measures.answered(path, message["status"])
            await send(message)

        await app(scope, receive, counted)

    return answer


def _rescued(app: ASGIApp) -> ASGIApp:
    """Tell of a fault of ours; the stack trace goes to the log alone.

    A handler of Starlette's would answer outside all middleware: uncounted, and unseen by pages
    from elsewhere.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, noted)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            if started:
                # The connection must break off, or half an answer would look whole.
                raise
            body = problem("the server failed; its log says why", "server_error")
            await JSONResponse(body, 500)(scope, receive, send)

    return answer


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RefusedError):
        return error.response
    if isinstance(error, EvaError):
        if not is_of_caller(error):
            log.error("%s", error)
        return JSONResponse(problem_of(error), 400 if is_of_caller(error) else 500)
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:60]
    what = f"{request.method} cannot be done at" if error.status_code == 405 else "there is no"
    body = problem(f"{what} {path}; /openapi.json lists what can be asked")
    return JSONResponse(body, error.status_code, error.headers)
