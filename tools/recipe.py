"""What shapes a build of llama-cpp-python, and the key that stands for it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

REQUIREMENT = Path("requirements-llama.txt")
LLAMA_ONLY = Path("tools", "llama_only.cmake")
# How cmake's FindVulkan is told where the headers are.
_VULKAN_FOLDER = "-DVulkan_INCLUDE_DIR(:[A-Z]+)?"


class BuildError(Exception):
    """The build cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What llama.cpp computes on: its cmake arguments, its compiler, and what it needs."""

    arguments: tuple[str, ...] = ()
    compiler: str | None = None
    needs: str = "a C and a C++ compiler (Debian and Ubuntu: build-essential; Fedora: gcc-c++)"


BACKENDS = {
    "cpu": Backend(),
    # Without "native", cmake compiles for about ten kinds of GPU: hours on few cores.
    "cuda": Backend(
        ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"),
        "nvcc",
        "a C++ compiler, the CUDA toolkit with cuBLAS, nvcc on the PATH, and the GPU itself "
        '(without it: CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=90" or the number of yours)',
    ),
    "metal": Backend(
        ("-DGGML_METAL=ON",), needs="Xcode's command line tools (xcode-select --install)"
    ),
    "rocm": Backend(("-DGGML_HIP=ON",), "hipcc", "ROCm with its HIP compiler (hipcc)"),
    "vulkan": Backend(
        ("-DGGML_VULKAN=ON",), "glslc", "a C++ compiler, the Vulkan and SPIR-V headers and glslc"
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user asks for: a backend, and cmake arguments beside ours."""

    backend: str
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that shapes a build."""

    version: str
    sdist_sha256: str
    backend: str
    cmake_args: tuple[str, ...]
    llama_only_sha256: str
    python: str
    platform: str
    compilers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the name under which the wheel is kept."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_backend() -> str:
    """Return the backend of a machine about which the user said nothing."""
    return "metal" if sys.platform == "darwin" else "cpu"


def recipe_of(choice: Choice) -> Recipe:
    """Return the recipe for this machine; raise BuildError where there is none."""
    if choice.backend not in BACKENDS:
        raise BuildError(f"BACKEND={choice.backend} is not one of {', '.join(BACKENDS)}")
    if choice.backend == "metal" and sys.platform != "darwin":
        raise BuildError("BACKEND=metal is for macOS; take cpu, cuda, rocm or vulkan")
    try:
        shlex.split(choice.extra)
    except ValueError as error:
        raise BuildError(f"CMAKE_ARGS={choice.extra} cannot be read: {error}") from error
    version, sha256 = pinned(REQUIREMENT.read_text(encoding="utf-8"))
    return Recipe(
        version=version,
        sdist_sha256=sha256,
        backend=choice.backend,
        cmake_args=cmake_arguments(choice, system=sys.platform, machine=platform.machine()),
        llama_only_sha256=hashlib.sha256(LLAMA_ONLY.read_bytes()).hexdigest(),
        python=f"{sys.implementation.name}-{sysconfig.get_python_version()}",
        platform=sysconfig.get_platform(),
        compilers=_compilers(BACKENDS[choice.backend]),
    )


def cmake_arguments(choice: Choice, *, system: str, machine: str) -> tuple[str, ...]:
    """Return llama.cpp's cmake arguments; the user's come last, where they win.

    On x86-64 compilers see features (AMX) that virtual machines do not grant, so the build asks
    for x86-64-v3 (AVX2) and no more; it measured as fast.
    """
    generic = system != "darwin" and machine.lower() in ("x86_64", "amd64")
    return (
        *(("-DGGML_NATIVE=OFF",) if generic else ()),
        "-DLLAVA_BUILD=OFF",
        *BACKENDS[choice.backend].arguments,
        *shlex.split(choice.extra),
    )


def pinned(requirement: str) -> tuple[str, str]:
    """Return the version of llama-cpp-python and the sha256 of its sdist."""
    found = re.fullmatch(
        r"llama-cpp-python==(\S+) \\\s+--hash=sha256:([0-9a-f]{64})\s*", requirement
    )
    if not found:
        raise BuildError(f"{REQUIREMENT} must pin llama-cpp-python with one sha256")
    return found[1], found[2]


def headers_too_old(recipe: Recipe) -> str | None:
    """Return what to do about Vulkan headers that llama.cpp cannot be built with, if these are.

    It names types of VK_EXT_layer_settings, which headers have since the end of 2023. Headers
    that the C compiler does not find are for cmake to look for.
    """
    if recipe.backend != "vulkan":
        return None
    named = [each.partition("=") for each in recipe.cmake_args]
    folders = [value for name, _, value in named if re.fullmatch(_VULKAN_FOLDER, name)]
    if sdk := os.environ.get("VULKAN_SDK"):
        folders.append(str(Path(sdk, "include")))
    command = [*shlex.split(host_compilers()[0]), "-E", "-dM", "-xc", "-"]
    macros = subprocess.run(
        [*command, *(f"-I{folder}" for folder in folders)],
        input="#include <vulkan/vulkan_core.h>\n",
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.search(r"^#define VK_HEADER_VERSION (\d+)$", macros, re.MULTILINE)
    if not found or "#define VK_EXT_layer_settings " in macros:
        return None
    return (
        f"The Vulkan headers here are too old for llama.cpp: version {found[1]}, without "
        "VK_EXT_layer_settings.\nTake newer ones (docs/gpu.md says from where) and name their "
        'folder:\nmake setup BACKEND=vulkan CMAKE_ARGS="-DVulkan_INCLUDE_DIR=/folder/include"'
    )


def host_compilers() -> tuple[str, ...]:
    """Return the commands of the C and the C++ compiler, those that are to be found."""
    wanted = (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++")))
    found = []
    for variable, usual in wanted:
        commands = [os.environ[variable]] if os.environ.get(variable) else usual
        found += [command for command in commands if shutil.which(shlex.split(command)[0])][:1]
    return tuple(found)


def _compilers(backend: Backend) -> tuple[str, ...]:
    """Return versions and flags of the compilers, as far as they can be asked."""
    commands = host_compilers()
    if backend.compiler and shutil.which(backend.compiler):
        commands += (backend.compiler,)
    flags = [f"{name}={os.environ.get(name, '')}" for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS")]
    return (*map(_version_of, commands), *flags)


def _version_of(command: str) -> str:
    result = subprocess.run(
        [*shlex.split(command), "--version"], capture_output=True, text=True, check=False
    )
    return result.stdout
