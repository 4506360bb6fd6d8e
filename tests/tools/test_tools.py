"""The tools that set up a checkout, and what is committed or shipped beside the code."""

import functools
import os
import re
import select
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from waiting import PATIENCE_S

from tools import build_llama, environment, progress, smoke
from tools.build_llama import Installed
from tools.recipe import (
    BACKENDS,
    REQUIREMENT,
    BuildError,
    Choice,
    Recipe,
    cmake_arguments,
    headers_too_old,
    pinned,
    recipe_of,
)
from tools.tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(
    version="1.0",
    sdist_sha256="ab" * 32,
    backend="cpu",
    cmake_args=("-DGGML_NATIVE=OFF",),
    llama_only_sha256="cd" * 32,
    python="cpython-3.11",
    platform="linux-x86_64",
    compilers=("cc 1",),
)
KILLED_BY = "import os, signal; os.kill(os.getpid(), signal.{})"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools run where make runs."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that the source was downloaded to; nothing is."""
    folders: list[Path] = []

    def run(folder: Path) -> int:
        folders.append(folder)
        for version in (RECIPE.version, pinned(REQUIREMENT.read_text(encoding="utf-8"))[0]):
            (folder / f"llama_cpp_python-{version}.tar.gz").write_text("the source")
        return 0

    monkeypatch.setattr(build_llama, "_run_pip_download", run)
    return folders


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own for all that the build writes."""
    marker = tmp_path / "marker.json"
    monkeypatch.setattr(build_llama, "MARKER", marker)
    monkeypatch.setattr(build_llama, "LOG", tmp_path / "build.log")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return marker


def fake_pip(calls: list[Recipe], status: int = 0) -> Callable[[Recipe, Path, Path], int]:
    def run(recipe: Recipe, folder: Path, log: Path) -> int:
        calls.append(recipe)
        folder.mkdir()
        (folder / "llama_cpp_python-1.0-py3-none-any.whl").write_text(recipe.key)
        log.write_text("all the output\nthe last line\n")
        return status

    return run


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.1"},
        {"sdist_sha256": "ac" * 32},
        {"backend": "cuda"},
        {"cmake_args": ("-DGGML_NATIVE=ON",)},
        {"cmake_args": ("-DGGML_NATIVE=OFF", "-DGGML_RPC=ON")},
        {"llama_only_sha256": "ce" * 32},
        {"python": "cpython-3.12"},
        {"platform": "linux-aarch64"},
        {"compilers": ("cc 2",)},
    ],
)
def test_all_that_shapes_a_build_changes_its_key(change: dict[str, object]) -> None:
    assert replace(RECIPE, **change).key != RECIPE.key


def test_the_same_recipe_has_the_same_key() -> None:
    assert replace(RECIPE).key == RECIPE.key


def test_each_backend_and_each_argument_of_the_user_has_a_key_of_its_own() -> None:
    choices = [Choice(name) for name in BACKENDS if name != "metal"]
    choices += [Choice("cpu", "-DGGML_AVX2=OFF"), Choice("cpu", "-DGGML_AVX2=OFF -DGGML_FMA=OFF")]
    assert len({recipe_of(choice).key for choice in choices}) == len(choices)


def test_the_compilers_flags_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe_of(Choice("cpu")).key
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert recipe_of(Choice("cpu")).key != before


@pytest.mark.parametrize("backend", ["gpu", "CUDA", "metal"])
def test_a_backend_that_this_machine_cannot_have_is_refused(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BuildError, match="cuda"):
        recipe_of(Choice(backend))


def test_arguments_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(BuildError, match="CMAKE_ARGS='-DA=b cannot be read"):
        recipe_of(Choice("cpu", "'-DA=b"))


def test_x86_64_is_built_for_the_avx2_baseline() -> None:
    arguments = cmake_arguments(Choice("cpu"), system="linux", machine="x86_64")
    assert arguments == ("-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF")


@pytest.mark.parametrize(
    ("system", "machine"), [("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64")]
)
def test_elsewhere_llama_cpp_knows_best(system: str, machine: str) -> None:
    assert cmake_arguments(Choice("cpu"), system=system, machine=machine) == ("-DLLAVA_BUILD=OFF",)


def test_the_users_arguments_come_last() -> None:
    choice = Choice("cuda", "-DGGML_CUDA=OFF '-DA=b c'")
    arguments = cmake_arguments(choice, system="linux", machine="x86_64")
    assert arguments[-2:] == ("-DGGML_CUDA=OFF", "-DA=b c")
    assert "-DGGML_CUDA=ON" in arguments[:-2]


@pytest.mark.parametrize(
    ("backend", "extra", "expected"),
    [
        ("", "", Choice("cuda", "-DX=1")),
        ("cpu", "", Choice("cpu", "")),
        ("cuda", "", Choice("cuda", "")),
        ("cuda", "-DX=2", Choice("cuda", "-DX=2")),
    ],
)
def test_who_says_nothing_keeps_what_is_installed(
    backend: str, extra: str, expected: Choice
) -> None:
    installed = Installed("key", Choice("cuda", "-DX=1"))
    assert build_llama.choose(backend, extra, installed) == expected


@pytest.mark.parametrize(("system", "backend"), [("linux", "cpu"), ("darwin", "metal")])
def test_the_first_build_is_for_what_the_system_has(
    system: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert build_llama.choose("", "-DX=1", None) == Choice(backend, "-DX=1")


def test_a_kept_wheel_is_taken_for_its_own_recipe_only(tmp_path: Path) -> None:
    folder = tmp_path / RECIPE.key
    folder.mkdir()
    wheel = folder / "llama_cpp_python-1.0-py3-none-any.whl"
    wheel.touch()
    assert build_llama.kept_wheel(RECIPE, tmp_path) == wheel
    assert build_llama.kept_wheel(replace(RECIPE, backend="cuda"), tmp_path) is None


def test_each_recipe_is_built_once_and_set_up_once(
    marker: Path, downloads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Recipe] = []
    installed: list[str] = []
    monkeypatch.setattr(build_llama, "_run_pip_wheel", fake_pip(built))
    monkeypatch.setattr(
        build_llama, "_install", lambda wheel, recipe: installed.append(wheel.read_text())
    )
    monkeypatch.setattr(smoke, "problem", lambda: None)
    for backend in ("cpu", "cpu", "", "cuda", "", "cpu"):
        assert build_llama.main(["--backend", backend]) == 0
    cpu, cuda = (recipe.key for recipe in built)
    assert cpu != cuda
    assert installed == [cpu, cuda, cpu]
    assert len(downloads) == 1


def test_a_source_that_is_missing_is_fetched_where_the_wheel_is_kept(
    marker: Path,
    downloads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_of(build_llama.choose("", "", None))
    wheels = build_llama.wheels_folder(os.environ)
    kept = build_llama.kept_source(recipe.version, wheels)
    monkeypatch.setattr(build_llama, "_install", lambda wheel, recipe: None)
    monkeypatch.setattr(smoke, "problem", lambda: None)
    (wheels / recipe.key).mkdir(parents=True)
    (wheels / recipe.key / "llama_cpp_python-1.0-py3-none-any.whl").touch()
    for _ in range(2):
        assert build_llama.main([]) == 0
        assert kept.read_text() == "the source"
    assert len(downloads) == 1
    # Who is offline and has all that is needed to run goes on without it.
    kept.unlink()
    monkeypatch.setattr(build_llama, "_run_pip_download", lambda folder: 1)
    assert build_llama.main([]) == 0
    assert "needs a network. Some tests need it" in capsys.readouterr().err
    assert sorted(path.name for path in wheels.iterdir()) == [recipe.key]


def test_without_a_network_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Recipe] = []
    monkeypatch.setattr(build_llama, "_run_pip_wheel", fake_pip(built))
    monkeypatch.setattr(build_llama, "_run_pip_download", lambda folder: 1)
    with pytest.raises(BuildError, match="could not be downloaded: that needs a network"):
        build_llama.build(RECIPE, tmp_path, tmp_path / "log")
    assert built == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", ["-DVulkan_INCLUDE_DIR={}", "-DVulkan_INCLUDE_DIR:PATH={}", ""])
def test_vulkan_headers_that_are_too_old_are_told_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    built: list[Recipe] = []
    monkeypatch.setattr(build_llama, "_run_pip_wheel", fake_pip(built))
    # Whatever this machine has.
    monkeypatch.setenv("CC", "cc -nostdinc")
    header = tmp_path / "sdk" / "include" / "vulkan" / "vulkan_core.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define VK_HEADER_VERSION 239\n")
    folder = header.parents[1]
    arguments = (named.format(folder),) if named else ()
    if not named:
        monkeypatch.setenv("VULKAN_SDK", str(folder.parent))
    recipe = replace(RECIPE, backend="vulkan", cmake_args=("-DGGML_VULKAN=ON", *arguments))
    with pytest.raises(BuildError, match=r"version 239, without VK_EXT_layer_settings"):
        build_llama.build(recipe, tmp_path / "wheels", tmp_path / "log")
    assert built == []
    assert headers_too_old(replace(recipe, backend="cpu")) is None
    header.write_text(f"{header.read_text()}#define VK_EXT_layer_settings 1\n")
    assert headers_too_old(recipe) is None
    build_llama.build(recipe, tmp_path / "wheels", tmp_path / "log")
    assert built == [recipe]


def test_vulkan_headers_that_the_compiler_does_not_find_are_for_cmake_to_find(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "cc -nostdinc")
    monkeypatch.delenv("VULKAN_SDK", raising=False)
    assert headers_too_old(replace(RECIPE, backend="vulkan")) is None


def test_a_build_that_does_not_work_here_is_not_called_installed(
    marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_llama, "_run_pip_wheel", fake_pip([]))
    monkeypatch.setattr(build_llama, "_install", lambda wheel, recipe: None)
    dying = child(KILLED_BY.format("SIGILL"))
    monkeypatch.setattr(smoke, "problem", functools.partial(smoke.problem, dying))
    marker.write_text('{"key": "old", "choice": {"backend": "cpu", "extra": ""}}')
    assert build_llama.main(["--backend", "cpu"]) == 2
    assert not marker.exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert "does not run on this CPU" in last
    assert "make setup BACKEND=cpu CMAKE_ARGS=" in last


def test_a_failed_build_shows_its_end_and_leaves_nothing(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_llama, "_run_pip_wheel", fake_pip([], status=1))
    with pytest.raises(BuildError, match=r"the last line\n.*compiler") as raised:
        build_llama.build(RECIPE, tmp_path / "wheels", tmp_path / "log")
    assert str(tmp_path / "log") in str(raised.value)
    assert [path.suffix for path in (tmp_path / "wheels").iterdir()] == [".gz"]


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(recipe: Recipe, folder: Path, log: Path) -> int:
        fake_pip([])(recipe, folder, log)
        raise KeyboardInterrupt

    monkeypatch.setattr(build_llama, "_run_pip_wheel", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_llama.build(RECIPE, tmp_path / "wheels", tmp_path / "log")
    assert [path.suffix for path in (tmp_path / "wheels").iterdir()] == [".gz"]


def test_an_interrupt_ends_the_compilers_too() -> None:
    output = -1

    def interrupted() -> None:
        nonlocal output
        command = ("sh", "-c", "sh -c 'echo begun; sleep 600' & wait")
        with build_llama._started(command, os.environ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            output = os.dup(process.stdout.fileno())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # The pipe ends only when the last process that could write to it has ended.
    assert select.select([output], [], [], PATIENCE_S)[0] == [output]
    assert os.read(output, 1) == b""
    os.close(output)


@pytest.mark.parametrize("variable", ["CC", "CXX"])
def test_without_a_compiler_nothing_is_downloaded(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Recipe] = []
    monkeypatch.setattr(build_llama, "_run_pip_wheel", fake_pip(built))
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(BuildError, match=r"compiler is missing.*build-essential"):
        build_llama.build(RECIPE, tmp_path, tmp_path / "log")
    assert built == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": "a", "choice": {"x": 1}}', "\xff"])
def test_a_marker_that_cannot_be_read_is_no_marker(text: str, tmp_path: Path) -> None:
    path = tmp_path / "marker.json"
    assert build_llama.read_marker(path) is None
    path.write_text(text, encoding="latin-1")
    assert build_llama.read_marker(path) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  [41/140] /usr/bin/c++ -DGGML_SHARED -c sampling.cpp", (41, 140)),
        ("[140/140] : && /usr/bin/c++ -shared", (140, 140)),
        ("  -- Build files have been written to: build [1/2]", None),
        ("  [ 41%] Building CXX object", None),
        ("  note: in array[3/4] of", None),
        ("", None),
    ],
)
def test_the_lines_of_ninja_tell_how_far_it_is(line: str, expected: tuple[int, int] | None) -> None:
    assert progress.step(line) == expected


def test_where_there_is_no_terminal_a_line_comes_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    progress.show(f"[{done}/9] cc" for done in range(1, 10))
    assert capsys.readouterr().err.splitlines() == [
        "  3 of 9 after 30 s",
        "  6 of 9 after 60 s",
        "  9 of 9 after 90 s",
    ]


def test_the_installed_llama_cpp_computes() -> None:
    assert smoke.problem() is None


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV"])
def test_a_build_for_another_cpu_says_how_to_build_for_this_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    problem = smoke.problem(child(KILLED_BY.format(name)))
    assert problem == (
        f"llama.cpp was stopped by {name}: this build does not run on this CPU. Rebuild it with: "
        f'make setup BACKEND=cpu CMAKE_ARGS="{smoke.plainest_arguments()}"'
    )


def test_who_chose_arguments_is_sent_back_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    problem = smoke.problem(child(KILLED_BY.format("SIGILL")))
    assert (problem or "").endswith('make setup BACKEND=cpu CMAKE_ARGS=""')


def test_on_x86_64_the_plainest_build_has_no_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke.platform, "machine", lambda: "x86_64")
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX2=OFF"} <= set(smoke.plainest_arguments().split())


def test_other_ends_are_told_apart() -> None:
    assert "SIGABRT" in (smoke.problem(child(KILLED_BY.format("SIGABRT"))) or "")
    assert "no library" in (smoke.problem(child("raise OSError('no library')")) or "")
    assert smoke.problem(child("pass")) is None


def test_a_tiny_model_is_the_same_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_tiny_gguf(path, seed=seed, n_layers=1)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


def test_the_python_of_an_environment_is_read_from_its_settings(tmp_path: Path) -> None:
    assert environment.version_of(Path(sys.prefix)) == sys.version_info[:2]
    assert environment.version_of(tmp_path) is None


def test_changed_pins_are_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tools").mkdir()
    for shaping in environment._SHAPING:
        shaping.write_text("a==1")
    ran: list[Sequence[str]] = []

    def runs(*command: str) -> bool:
        ran.append(command)
        if "venv" in command:
            environment.PYTHON.parent.mkdir(parents=True, exist_ok=True)
            environment.PYTHON.touch()
            shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment.VENV)
        return True

    monkeypatch.setattr(environment, "_ran", runs)
    assert environment.main() == 0
    n_commands = len(ran)
    assert environment.main() == 0
    assert len(ran) == n_commands
    for shaping in environment._SHAPING:
        shaping.write_text("a==2")
        assert environment.main() == 0
        assert f"{environment.REQUIREMENTS}" in ran[-2]
        assert len(ran) == 2 * n_commands
        del ran[n_commands:]


def committed() -> list[Path]:
    """Return the files that git has or would take."""
    command = ("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others")
    result = subprocess.run(
        [*command, "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = (ROOT / name for name in result.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_no_committed_file_names_a_registry() -> None:
    registry = re.compile(rb"py(?:pi\.(?:org|python)|thonhosted)|index-url[ =]\S*//", re.IGNORECASE)
    files = committed()
    assert ROOT / "pyproject.toml" in files
    naming = [str(path) for path in files if registry.search(path.read_bytes())]
    assert naming == []


def pins(name: str) -> dict[str, Requirement]:
    """Return the pinned packages of a requirements file; each must have a hash."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"(?<!\\)\n", text.strip()):
        line, *hashes = re.split(r" \\\n\s+", entry)
        assert hashes, f"{line} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", item) for item in hashes)
        requirement = Requirement(line)
        found[requirement.name] = requirement
    return found


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def declared(*, dev: bool) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = extras["dev"] if dev else project["dependencies"]
    found = [Requirement(text) for text in texts]
    # Developers have some of the extras that users may have.
    chosen = [extra for own in found if own.name == project["name"] for extra in own.extras]
    others = [own for own in found if own.name != project["name"]]
    return others + [Requirement(text) for extra in chosen for text in extras[extra]]


@pytest.mark.parametrize("dev", [False, True])
def test_each_dependency_is_pinned_to_a_version_that_the_project_allows(dev: bool) -> None:
    pinned_packages = pins("requirements-dev.txt" if dev else "requirements.txt")
    pinned_packages |= pins("requirements-llama.txt")
    for requirement in declared(dev=dev):
        assert requirement.name in pinned_packages
        assert version(pinned_packages[requirement.name]) in requirement.specifier


def test_users_and_developers_have_the_same_packages() -> None:
    for_developers = pins("requirements-dev.txt")
    for name, requirement in pins("requirements.txt").items():
        assert str(for_developers[name]) == str(requirement)


def test_llama_cpp_python_is_pinned_apart() -> None:
    assert "llama-cpp-python" not in pins("requirements-dev.txt")
    text = (ROOT / "requirements-llama.txt").read_text(encoding="utf-8")
    assert pinned(text)[0] == version(pins("requirements-llama.txt")["llama-cpp-python"])
    with pytest.raises(BuildError, match="one sha256"):
        pinned(text.split("\\")[0])


def test_ci_runs_what_make_has() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    targets = re.findall(r"^make (\w+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == ["lint", "types", "test", "demo"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}: setup$", makefile, re.MULTILINE) for target in targets)


def test_the_wheel_has_the_package_and_its_data(tmp_path: Path) -> None:
    name = build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        inside = {entry for entry in wheel.namelist() if ".dist-info/" not in entry}
    mappings = {path.name for path in (ROOT / "mappings").glob("*.npz")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "eva_local").rglob("*.py")}
    assert mappings, "the mappings of the demo ensembles are committed"
    assert {f"eva_local/mappings/{file}" for file in mappings} <= inside
    assert {"eva_local/models.toml", "eva_local/py.typed"} | modules <= inside
    assert {entry.split("/")[0] for entry in inside} == {"eva_local"}
