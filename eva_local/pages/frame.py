"""The frame of a page that needs nothing else: its style, and what a browser may run of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files


def palette() -> str:
    """Return the style of all pages: colours for light and dark, a pair for each member, fonts."""
    return _shipped("palette.css")


def report_style() -> str:
    """Return the style of reports: the palette, tables, and plots."""
    return palette() + _shipped("report.css")


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Return a template with the part for each `@@NAME@@` in it."""
    # Cut first and filled once, so that text of a model is never taken for a placeholder.
    cut = template.split("@@")
    return "".join(parts[name] if i % 2 else name for i, name in enumerate(cut))


def still_page(title: str, style: str, body: str) -> str:
    """Return a page without script; `title` is plain text, `style` and `body` are as they are."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def source_hash(source: str) -> str:
    """Return what a content security policy calls this source, and no other, by."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _shipped(name: str) -> str:
    return files("eva_local.pages").joinpath(name).read_text(encoding="utf-8")
