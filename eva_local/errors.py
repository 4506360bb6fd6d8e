"""The exceptions of eva-local.

Every error says what is wrong, where, and what to do next, in one line. Faces show it once
and end with the exit code that the class carries.
"""

import contextlib
import copy
from collections.abc import Iterator


class EvaError(Exception):
    """Base of every error that eva-local raises on purpose."""

    exit_code = 2


class ConfigError(EvaError):
    """The configuration file, an environment variable or an option is wrong."""


class StoreError(EvaError):
    """A model file is missing, incomplete, or not the file it should be."""


class ModelError(EvaError):
    """llama.cpp cannot load or run a model."""


class RoomError(ModelError):
    """llama.cpp finds no room in a member's cache for the tokens of a batch."""


class PromptError(EvaError):
    """A conversation cannot be turned into a prompt for a member."""


class ContextError(EvaError):
    """A text does not fit into a member's context."""


class MappingError(EvaError):
    """A mapping between vocabularies is missing, stale or damaged."""


class InputError(EvaError):
    """A value that the user gave cannot be used."""


class ClosedError(EvaError):
    """An ensemble was closed before it answered."""

    def __init__(self, message: str = "the ensemble is closed; open it again to go on") -> None:
        super().__init__(message)


def passed_on(error: BaseException) -> EvaError:
    """Return an error for others who wait for what raised it, maybe in other threads.

    An exception carries the way it took, which is another in each of them.
    """
    fault = ModelError(f"a step failed, which is a fault of eva-local: {error!r}")
    if isinstance(error, MemoryError) or "start new thread" in str(error):
        fault = ModelError(f"a step failed, for there is not enough memory: {error!r}")
    told = copy.copy(error) if isinstance(error, EvaError) else fault
    told.__cause__ = error
    return told


@contextlib.contextmanager
def refusing(what: str, kind: type[EvaError] = InputError) -> Iterator[None]:
    """Where the system refuses something, raise a `kind` that says `what`, and the reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}") from error
