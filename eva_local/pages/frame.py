"""The frame of a page that needs nothing else: its style, and what a browser may run of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import partial
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


def report(template: str, **values: object) -> str:
    """Return a page without script, made by a Jinja template of this package.

    Text in `values` is escaped; the template says where something is HTML already.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(partial(shipped, "eva_local")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    style = palette() + shipped("eva_local.pages", "report.css")
    page = environment.get_template(template)
    return page.render(style=style, hash=source_hash(style), **values)


def source_hash(source: str) -> str:
    """Return what a content security policy calls this source, and no other, by."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
