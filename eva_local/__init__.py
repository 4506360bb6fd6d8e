"""Let several local GGUF models with different vocabularies write one answer together.

import eva_local

with eva_local.load("demo") as eva:
    for step in eva.stream([eva_local.Message("user", "Who wrote Faust?")]):
        print(step.text, end="", flush=True)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eva_local.api import Ensemble
    from eva_local.engine.request import Request
    from eva_local.errors import EvaError
    from eva_local.opening import load
    from eva_local.types import Completion, Message, Sampling, Score, Step

__all__ = ["Completion", "Ensemble", "EvaError", "Message", "Request", "Sampling", "Score"]
__all__ += ["Step", "load"]

_HOMES = {
    "Ensemble": "api",
    "EvaError": "errors",
    "Request": "engine.request",
    "load": "opening",
    **dict.fromkeys(("Completion", "Message", "Sampling", "Score", "Step"), "types"),
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `eva-local --help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eva_local' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"eva_local.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
