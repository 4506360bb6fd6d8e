"""A process of eva-local, here or on another machine, which Ray starts and watches: the only ray.

Ray runs whatever it is sent: who may connect to a cluster owns its machines. So it asks for a token
unless RAY_AUTH_MODE says otherwise, and a cluster that is started here listens on 127.0.0.1 alone.
"""

import ctypes
import os
import re
import secrets
import signal
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eva_local.config.specs import ON, ModelSpec
from eva_local.errors import ConfigError, EvaError, ModelError, StoreError
from eva_local.models.store import locate, verify

# What a cluster of this machine alone may hold of answers that are on their way, in bytes.
_HELD = 80 << 20
# Which cluster this process is connected to.
_connected: list[str] = []


class LostError(ModelError):
    """A process elsewhere died, or does not answer."""


class Worker:
    """A process that holds a `kind` and is asked for its methods, up to `at_once` together.

    `on` is `ray` (the cluster that RAY_ADDRESS names, else one of this machine alone) or
    `ray://HOST:PORT` (Ray's client server), and behind `#` perhaps a label: a resource that nodes
    are started with. It waits until one of them has so many CPUs and GPUs free.
    """

    def __init__(
        self, on: str, kind: type, *, cpus: float = 1, gpus: float = 0, at_once: int = 1
    ) -> None:
        self._ray = _ray(on)
        labels = dict.fromkeys(on.split("#")[1:], 1e-3)
        # Who dies is replaced by who asked, who knows what it had to do.
        made = self._ray.remote(kind).options(
            num_cpus=cpus, num_gpus=gpus, resources=labels, max_restarts=0, max_concurrency=at_once
        )
        self._actor = made.remote()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Ask for a method, and do not wait: see `result`."""
        return getattr(self._actor, method).remote(*arguments)

    def end(self) -> None:
        """End the process."""
        if self._ray.is_initialized():
            self._ray.kill(self._actor)


def answered(asked: Sequence[Any], within: float) -> Sequence[Any]:
    """Wait for one of what was asked, so many seconds at most; return what is answered."""
    import ray

    ray.wait(asked, timeout=within)
    done: Sequence[Any] = ray.wait(asked, num_returns=len(asked), timeout=0)[0]
    return done


def result(asked: Any, within: float) -> Any:
    """Return what was asked for; raise its EvaError, and LostError where none comes in time."""
    import ray

    try:
        return ray.get(asked, timeout=within)
    except ray.exceptions.GetTimeoutError as error:
        raise LostError(f"no answer within {within:.0f} s") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EvaError):
            raise error.cause from None
        raise ModelError(f"a process elsewhere failed: {error.cause!r}") from error
    except ray.exceptions.RayError as error:
        # Of many lines, the last says why.
        told = str(error).strip().splitlines()[-1][:200]
        raise LostError(f"its process died, or its machine is gone ({told})") from error


def nodes(on: str) -> list[tuple[int, int]]:
    """Return the CPUs and GPUs of each machine of `on`; raise ConfigError where there is none."""
    label = on.partition("#")[2] or "CPU"
    alive = [each["Resources"] for each in _ray(on).nodes() if each["Alive"]]
    found = [each for each in alive if label in each and each.get("CPU")]
    if not found:
        raise ConfigError(f"{on}: the cluster has no such machine with a CPU to give")
    return [(int(each["CPU"]), int(each.get("GPU", 0))) for each in found]


def installed() -> str:
    """Return the versions that must be the same everywhere."""
    return ", ".join(f"{each} {version(each)}" for each in ("eva-local", "llama-cpp-python"))


def joined(versions: str, model: ModelSpec, wanted: str | None) -> Path:
    """Return the file of a model on this machine, for one with these versions who asks for it.

    Raises ConfigError where others are installed here, StoreError where it is another file.
    """
    here = os.uname().nodename
    if versions != installed():
        raise ConfigError(f"{here} has {installed()}, and is asked by {versions}: install the same")
    path, wanted = locate(model), wanted or model.sha256
    # Where nothing is known of it, it need not be read for that.
    if wanted and (found := verify(model).sha256) != wanted:
        raise StoreError(f"{path} on {here} has sha256 {found}, and {wanted} is asked for")
    return path


def _ray(on: str) -> Any:
    """Connect to the cluster that `on` names, once; raise ConfigError where that cannot be."""
    address = on.partition("#")[0]
    if not re.fullmatch(ON, on):
        raise ConfigError(f"{on!r}: give ray or ray://HOST:PORT, perhaps with #LABEL behind it")
    address = os.environ.get("RAY_ADDRESS") or "local" if address == "ray" else address
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    how: dict[str, Any] = {"configure_logging": False}
    if address.startswith(("local", "127.")) and not _connected:
        # Else Ray takes the machine's own address, which others reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address == "local" and not _connected:
        how |= {"include_dashboard": False, "object_store_memory": _HELD}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed; run: pip install 'eva-local[ray]'") from error
    if not ray.is_initialized():
        # Ray would make a crash of SIGTERM, whoever had a handler for it.
        kept, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
        libc.sigaction(signal.SIGTERM, None, kept)
        try:
            ray.init(address, **how)
            libc.sigaction(signal.SIGTERM, kept, None)
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            raise ConfigError(f"{on}: no Ray cluster answers: {told}") from error
        _connected[:] = [address]
    elif _connected not in ([], [address]):
        raise ConfigError(f"one process can use one Ray cluster: {_connected[0]} or {address}")
    return ray
