"""Build llama-cpp-python for this machine, keep the wheel, and install it into .venv.

pip's own wheel cache ignores CMAKE_ARGS and would hand out a build of another kind, so each
build is kept here under a key of all that shapes it. The source is kept beside them: it has
chat templates and vocabularies that tests need.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tools import progress, smoke
from tools.recipe import (
    BACKENDS,
    LLAMA_ONLY,
    REQUIREMENT,
    BuildError,
    Choice,
    Recipe,
    default_backend,
    headers_too_old,
    host_compilers,
    recipe_of,
)

MARKER = Path(".venv", "llama-cpp-python.json")
LOG = Path(".venv", "llama-cpp-python.log")
_TAIL_LINES = 30
_POLLS = 100
_SECONDS_BETWEEN_POLLS = 0.05


@dataclass(frozen=True, slots=True)
class Installed:
    """What .venv has: the key of its build, and the choice that led to it."""

    key: str
    choice: Choice


def main(arguments: Sequence[str] | None = None) -> int:
    """Make .venv's llama-cpp-python what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="", help=f"{', '.join(BACKENDS)}; empty: no wish")
    parser.add_argument("--copy", type=Path, help="copy the wheel that is installed there")
    asked = parser.parse_args(arguments)
    # An end by `kill` should clear up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if asked.copy is not None:
            return _copy_wheel(asked.copy)
        return _set_up(asked.backend, os.environ.get("CMAKE_ARGS", ""))
    except BuildError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("Interrupted; nothing was left half built.")
        return 128 + signal.SIGINT


def _set_up(backend: str, extra: str) -> int:
    installed = read_marker(MARKER)
    choice = choose(backend, extra, installed)
    recipe = recipe_of(choice)
    wheels = wheels_folder(os.environ)
    is_installed = installed and installed.key == recipe.key
    wheel = kept_wheel(recipe, wheels)
    if wheel or is_installed:
        try:
            source(recipe.version, wheels)
        except BuildError as error:
            _say(f"{error} Some tests need it; all else goes without.")
    if is_installed and importlib.util.find_spec("llama_cpp"):
        return 0
    wheel = wheel or build(recipe, wheels, LOG)
    MARKER.unlink(missing_ok=True)
    _install(wheel, recipe)
    if problem := smoke.problem():
        _say(problem)
        return 2
    MARKER.write_text(json.dumps(asdict(Installed(recipe.key, choice))), encoding="utf-8")
    return 0


def _copy_wheel(folder: Path) -> int:
    installed = read_marker(MARKER)
    wheel = installed and kept_wheel(recipe_of(installed.choice), wheels_folder(os.environ))
    if not wheel:
        raise BuildError("The wheel of llama-cpp-python is not there. Run: make setup")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(wheel, folder)
    return 0


def choose(backend: str, extra: str, installed: Installed | None) -> Choice:
    """Return the user's choice; who says nothing keeps what is installed."""
    if installed and not backend and not extra:
        return installed.choice
    return Choice(backend or default_backend(), extra)


def read_marker(path: Path) -> Installed | None:
    """Return what an earlier run installed, or None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Installed(found["key"], Choice(**found["choice"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def wheels_folder(environment: Mapping[str, str]) -> Path:
    """Return where built wheels are kept."""
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "eva-local", "wheels")


def kept_wheel(recipe: Recipe, wheels: Path) -> Path | None:
    """Return the wheel that was built by exactly this recipe, or None."""
    return next((wheels / recipe.key).glob("*.whl"), None)


def kept_source(version: str, wheels: Path) -> Path:
    """Return where the source of llama-cpp-python is kept."""
    return wheels / f"llama_cpp_python-{version}.tar.gz"


def source(version: str, wheels: Path) -> Path:
    """Return the source, fetched where it is missing; raise BuildError where that fails."""
    kept = kept_source(version, wheels)
    if not kept.exists():
        _say(f"Downloading the source of llama-cpp-python {version}: 77 MB")
        wheels.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=wheels) as folder:
            if _run_pip_download(Path(folder)) != 0:
                raise BuildError("The source could not be downloaded: that needs a network.")
            Path(folder, kept.name).replace(kept)
    return kept


def build(recipe: Recipe, wheels: Path, log: Path) -> Path:
    """Build the wheel and keep it under the recipe's key; raise BuildError where that fails."""
    needs = BACKENDS[recipe.backend].needs
    if len(host_compilers()) < 2:
        raise BuildError(f"A compiler is missing: BACKEND={recipe.backend} needs {needs}.")
    if problem := headers_too_old(recipe):
        raise BuildError(problem)
    _say(
        f"Building llama-cpp-python {recipe.version} for {recipe.backend}: for a CPU 2 to 4 "
        "minutes of\ncompiling on 2 cores, for a GPU more. The wheel is kept, so this happens once."
    )
    wheels.mkdir(parents=True, exist_ok=True)
    source(recipe.version, wheels)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=wheels) as folder:
        unfinished = Path(folder, "wheel")
        if _run_pip_wheel(recipe, unfinished, log) != 0:
            raise BuildError(
                f"{_tail(log)}\nThe build failed; the whole log is in {log}. "
                f"BACKEND={recipe.backend} needs {needs}."
            )
        # Another checkout may have built the same meanwhile: then its wheel stays.
        with contextlib.suppress(OSError):
            unfinished.rename(wheels / recipe.key)
    wheel = kept_wheel(recipe, wheels)
    if wheel is None:
        raise BuildError(f"The wheel could not be moved to {wheels / recipe.key}")
    return wheel


# The pinned sdist alone, with the pinned build tools of requirements-dev.txt.
_PINNED = (
    *("--no-binary", "llama-cpp-python", "--require-hashes", "--requirement", str(REQUIREMENT)),
    *("--no-deps", "--no-cache-dir", "--no-build-isolation"),
)


def _run_pip_download(folder: Path) -> int:
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *_PINNED)
    return subprocess.run(command, check=False).returncode


def _run_pip_wheel(recipe: Recipe, folder: Path, log: Path) -> int:
    wheels = folder.parent.parent
    command = (
        *(sys.executable, "-m", "pip", "wheel", "--verbose", "--wheel-dir", str(folder)),
        *("--no-index", "--find-links", str(wheels), *_PINNED),
    )
    arguments = (f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={LLAMA_ONLY.resolve()}", *recipe.cmake_args)
    # pip unpacks and compiles beside the wheel, so that an interrupt clears that away too.
    places = {"CMAKE_ARGS": shlex.join(arguments), "TMPDIR": str(folder.parent)}
    environment = {**os.environ, **places}
    with log.open("w", encoding="utf-8") as file, _started(command, environment) as process:
        progress.show(_copy(process, file))
    return process.returncode


@contextlib.contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a group of its own, which ends as a whole where we are interrupted."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            _await_end_of_group(process.pid)
            raise


def _await_end_of_group(group: int) -> None:
    """Wait until the compilers write no more, so that their folder can be removed."""
    for _ in range(_POLLS):
        try:
            os.killpg(group, 0)
        except OSError:
            return
        time.sleep(_SECONDS_BETWEEN_POLLS)


def _copy(process: subprocess.Popen[str], log: TextIO) -> Iterator[str]:
    """Yield each line of output once it is in the log."""
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        yield line


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line[:500] for line in lines[-_TAIL_LINES:])


def _install(wheel: Path, recipe: Recipe) -> None:
    _say(f"Installing llama-cpp-python {recipe.version} ({recipe.backend})")
    command = (
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
        *("--no-cache-dir", "--force-reinstall", str(wheel)),
    )
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(f"pip could not install {wheel}; delete its folder to build it anew")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
