"""The frame of a page that needs nothing else: its style, and what a browser may run of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files

# The colours of palette.css, one a member.
_N_COLOURS = 8


def shipped(package: str, name: str) -> str:
    """Return a file that lies in a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def palette() -> str:
    """Return the style of all pages: colours for light and dark, a pair for each member, fonts."""
    return shipped("eva_local.pages", "palette.css")


def member_class(number: int) -> str:
    """Return the class that has a member's colours; `main` is the ensemble's, in ink."""
    return f"m{number % _N_COLOURS}"


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Return a template with the part for each `@@NAME@@` in it."""
    # Cut first and filled once, so that text of a model is never taken for a placeholder.
    cut = template.split("@@")
    return "".join(parts[name] if i % 2 else name for i, name in enumerate(cut))


def report(title: str, body: str) -> str:
    """Return a page without script; `title` is plain text, `body` is as it is."""
    style = palette() + shipped("eva_local.pages", "report.css")
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
