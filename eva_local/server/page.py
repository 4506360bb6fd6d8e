"""The chat page: one document that needs no other, and may load none."""

from __future__ import annotations

from functools import cache

from starlette.responses import HTMLResponse, Response

from eva_local.pages.frame import filled, shipped, source_hash
from eva_local.trace.page import sources


@cache
def chat_page() -> Response:
    """Return what `GET /` answers with; it holds no secret, so it asks for no key."""
    style, script = sources("eva_local.server")
    template = shipped("eva_local.server", "page.html")
    html = filled(template, {"STYLE": style, "SCRIPT": script})
    headers = {
        "Content-Security-Policy": _policy(style, script),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        # A newer eva-local on the same port brings a newer page.
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)


def _policy(style: str, script: str) -> str:
    """Return the rules of a browser for the page: its own two sources, its own server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{source_hash(style)}'",
            f"script-src '{source_hash(script)}'",
            "connect-src 'self'",
            # The icon in the tab.
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # No text can become markup, not even by a mistake of ours.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
