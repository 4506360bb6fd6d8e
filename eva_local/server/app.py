"""The application: what answers at which path, what all paths have in common."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eva_local.errors import EvaError
from eva_local.openai.answer import Body
from eva_local.openai.request import CHAT, COMPLETION
from eva_local.openai.responses import RESPONSES
from eva_local.pages.frame import shipped, source_hash, template
from eva_local.server import endpoints, guard, ollama
from eva_local.server.service import ServedModel, Service, service_of
from eva_local.trace import sources

log = logging.getLogger("eva_local")

# The rules of a browser for the page: its own two sources, its own server, an icon in the tab. No
# text can become markup, not even by a mistake of ours. It is asked for anew each time, as a newer
# eva-local on the same port brings a newer page.
_HEADERS = json.loads(shipped("server/page.headers.json"))
_VERSION = version("eva-local")
# What the page's own script needs: libraries as they are published, and parts of ours.
_LIBRARIES = ("vendor/marked.umd.js", "vendor/highlight.min.js")
_SCRIPTS = (*_LIBRARIES, "markdown.js", "store.js", "disputes.js")


def make_app(
    service: Service,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
) -> Starlette:
    """Return the application: asks for one of `keys`, lets pages from `origins` read answers.

    Without keys, pages from elsewhere can read why they are refused, and nothing but that. Requests
    to `hosts` are for this machine, too.
    """
    how: Any = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(CORSMiddleware, allow_origins=list(origins) if keys else ["*"], **how),
            Middleware(_watched, service=service),
            Middleware(guard.guarded, keys=keys, origins=origins, hosts=hosts),
            Middleware(guard.received),
        ],
        exception_handlers=dict.fromkeys((EvaError, HTTPException, RecursionError), _wrong),
    )
    # A redirection would repeat the Host header.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def page(_request: Request) -> Response:
    """Show the chat page."""
    return chat_page()


@cache
def chat_page() -> Response:
    """Return what `GET /` answers with; it holds no secret, so it asks for no key."""
    style, script = sources("server", *(f"server/{name}" for name in _SCRIPTS))
    html = template("server/page.html").render(style=style, script=script)
    hashes = {"style": source_hash(style), "script": source_hash(script)}
    headers = {name: "; ".join(parts).format(**hashes) for name, parts in _HEADERS.items()}
    return HTMLResponse(html, headers=headers)


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
    """Count for Prometheus."""
    text = generate_latest(service_of(request).measures.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def props(request: Request) -> Response:
    """Describe a model as llama-server does."""
    model = service_of(request).named(request.query_params.get("model"))
    told: Body = {"default_generation_settings": {"n_ctx": model.n_ctx}}
    told |= {"total_slots": model.ensemble.n_slots, "build_info": f"eva-local {_VERSION}"}
    told |= {"model_alias": model.name, "model_path": model.name}
    return JSONResponse({**told, "modalities": {"vision": False, "audio": False}})


async def embed(_request: Request) -> Response:
    """Refuse, by name."""
    what = "this server does not support embeddings: its models write text"
    raise guard.RefusedError(400, what, code="not_supported")


_GETS: Mapping[str, Any] = {
    "/": page,
    **dict.fromkeys(("/health", "/v1/health"), health),
    "/metrics": metrics,
    "/props": props,
    "/tokenizer_info": endpoints.tokenizer_info,
    "/v1/models": models,
    "/v1/models/{name:path}": model,
    **dict.fromkeys(("/api/tags", "/api/ps"), ollama.tags),
    "/api/version": ollama.version,
}
_POSTS: Mapping[str, Any] = {
    **dict.fromkeys((CHAT, COMPLETION), endpoints.complete),
    RESPONSES: endpoints.respond,
    **dict.fromkeys(ollama.BODIES, ollama.talk),
    "/api/show": ollama.show,
    "/tokenize": endpoints.tokenize,
    "/detokenize": endpoints.detokenize,
    **dict.fromkeys(("/v1/embeddings", "/api/embed", "/api/embeddings"), embed),
}
#: Paths answer without /v1, too.
ROUTES = tuple(
    Route(each, endpoint, methods=[method])
    for method, endpoints_of in (("GET", _GETS), ("POST", _POSTS))
    for path, endpoint in endpoints_of.items()
    for each in dict.fromkeys((path, path.removeprefix("/v1")))
)


def _described(model: ServedModel) -> Body:
    head = {"id": model.name, "object": "model", "created": model.created, "owned_by": "eva-local"}
    space = model.ensemble.spec.fusion.space if model.alone is None else None
    size = {"space": space, "max_model_len": model.n_ctx}
    return {**head, "members": list(model.members), **size}


def _watched(app: ASGIApp, service: Service) -> ASGIApp:
    """Count the answers by path and status, and tell of refusals and of a fault of ours.

    The log alone names the fault. A handler of Starlette's would answer outside all middleware:
    uncounted, and unseen by pages from elsewhere.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                path = next((r.path for r in ROUTES if r.path == scope["path"]), "other")
                service.measures.count("requests", path, message["status"])
            await send(message)

        try:
            await app(scope, receive, noted)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                error = guard.come_again("the server ends", "server_ends")
            if not isinstance(error, guard.RefusedError):
                log.error("a request failed", exc_info=error)
            if started:
                # The connection must break off, or half an answer would look whole.
                raise
            await guard.refusal(scope, error)(scope, receive, noted)

    return answer


async def _wrong(request: Request, error: Exception) -> Response:
    if isinstance(error, EvaError) and not isinstance(error, guard.OF_CALLER):
        log.error("%s", error)
    return guard.refusal(request.scope, error)
