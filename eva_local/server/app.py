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
from eva_local.openai.problem import is_of_caller, problem, problem_of
from eva_local.openai.request import CHAT, COMPLETION
from eva_local.server import completions, scores, state, tokens
from eva_local.server.guard import Guard
from eva_local.server.intake import Intake
from eva_local.server.refusal import RefusedError
from eva_local.server.service import Service

log = logging.getLogger("eva_local")

ROUTES = (
    Route("/", state.page),
    Route("/health", state.health),
    Route("/metrics", state.metrics),
    Route("/openapi.json", state.description),
    Route("/v1/models", state.models),
    Route("/v1/models/{name:path}", state.model),
    Route(CHAT, completions.complete, methods=["POST"]),
    Route(COMPLETION, completions.complete, methods=["POST"]),
    Route("/v1/score", scores.score, methods=["POST"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokens.tokenizer_info),
)


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
            Middleware(_Counted, service=service),
            *([cors] if origins else []),
            Middleware(_Rescued),
            Middleware(Guard, keys=keys, origins=origins),
            Middleware(Intake),
        ],
        exception_handlers={RefusedError: _refused, EvaError: _failed, HTTPException: _unknown},
    )
    # A redirection would repeat the Host header.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class _Counted:
    """Counts the answers to requests by path and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._measures = service.measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = any(scope["path"] == route.path for route in ROUTES)
                self._measures.answered(scope["path"] if known else "other", message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


class _Rescued:
    """Tells of a fault of ours; the stack trace goes to the log alone.

    A handler of Starlette's would answer outside all middleware: uncounted, and unseen by pages
    from elsewhere.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            log.error("a request failed", exc_info=error)
            if started:
                # The connection must break off, or half an answer would look whole.
                raise
            body = problem("the server failed; its log says why", "server_error")
            await JSONResponse(body, 500)(scope, receive, send)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EvaError)
    if is_of_caller(error):
        return JSONResponse(problem_of(error), 400)
    log.error("%s", error)
    return JSONResponse(problem_of(error), 500)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:60]
    what = f"{request.method} cannot be done at" if error.status_code == 405 else "there is no"
    body = problem(f"{what} {path}; /openapi.json lists what can be asked")
    return JSONResponse(body, error.status_code, error.headers)
