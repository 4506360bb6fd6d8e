"""The chat page: one document that needs no other, and may load none."""

from __future__ import annotations

from functools import cache

from starlette.responses import HTMLResponse, Response

from eva_local.pages.frame import filled, shipped, source_hash
from eva_local.trace.page import sources

# The rules of a browser for the page: its own two sources, its own server, an icon in the tab. No
# text can become markup, not even by a mistake of ours.
_POLICY = (
    "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@cache
def chat_page() -> Response:
    """Return what `GET /` answers with; it holds no secret, so it asks for no key."""
    style, script = sources("eva_local.server")
    template = shipped("eva_local.server", "page.html")
    html = filled(template, {"STYLE": style, "SCRIPT": script})
    policy = _POLICY.format(style=source_hash(style), script=source_hash(script))
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        # A newer eva-local on the same port brings a newer page.
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)
