"""Make .venv and install the pinned packages and eva-local itself into it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = Path("requirements-dev.txt")
MARKER = VENV / "requirements.sha256"
# What decides which files an editable install writes.
_SHAPING = (REQUIREMENTS, Path("pyproject.toml"), Path("tools", "environment.py"))


def main() -> int:
    """Make .venv what the pins say; return the exit status."""
    wanted = fingerprint(_SHAPING)
    if PYTHON.exists() and version_of(VENV) == sys.version_info[:2]:
        if MARKER.is_file() and MARKER.read_text(encoding="utf-8") == wanted:
            return 0
    elif VENV.exists():
        print(f"Making {VENV} anew: it has another Python", file=sys.stderr)
        shutil.rmtree(VENV)
    MARKER.unlink(missing_ok=True)
    return _fill(wanted)


def _fill(wanted: str) -> int:
    if not _ran(sys.executable, "-m", "venv", str(VENV)):
        print(
            f"{VENV} could not be made. On Debian and Ubuntu: apt install python3-venv",
            file=sys.stderr,
        )
        return 1
    print(f"Installing the packages that {REQUIREMENTS} pins (120 MB)", file=sys.stderr)
    # The developers' packages come along: among them are the pinned tools that build
    # llama-cpp-python, and one set of pins is easier to trust than two.
    packages = _pip("--require-hashes", "--requirement", str(REQUIREMENTS))
    if not (packages and _pip("--no-deps", "--no-build-isolation", "--editable", ".")):
        print(
            "pip failed, see above. Setting up needs a network, or a mirror that pip knows.",
            file=sys.stderr,
        )
        return 1
    MARKER.write_text(wanted, encoding="utf-8")
    return 0


def fingerprint(files: Sequence[Path]) -> str:
    """Return a hash of the files' bytes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def version_of(venv: Path) -> tuple[int, ...] | None:
    """Return the (major, minor) of the Python that `venv` was made with, or None."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
        settings = dict(line.split(" = ", 1) for line in text.splitlines())
        return tuple(int(part) for part in settings["version"].split(".")[:2])
    except (OSError, ValueError, KeyError):
        return None


def _pip(*arguments: str) -> bool:
    return _ran(str(PYTHON), "-m", "pip", "install", "--quiet", *arguments)


def _ran(*command: str) -> bool:
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
