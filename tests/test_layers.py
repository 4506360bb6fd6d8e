"""Data flows one way: a module imports only from the rows above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import eva_local

PACKAGE = Path(eva_local.__file__).parent
ROWS = (
    "errors",
    "paths",
    "records",
    "settings",
    "specs",
    "catalogue",
    "config",
    "fetch",
    "cache_size",
    "header",
    "store",
    "vocab",
    "tokenizer",
    "calls",
    "model",
    "endless",
    "decoding",
    "grammar",
    "evidence",
    "control",
    "context",
    "branches",
    "prompt",
    "alignment",
    "fusion",
    "space",
    "trie",
    "customs",
    "open_row",
    "hypotheses",
    "byte_space",
    "sampling",
    "decision",
    "text",
    "draft",
    "engine",
    "scheduler",
    "readers",
    "scoring",
    "driver",
    "trace",
    "wire",
    "api",
    "opening",
    "capacity",
    "batch",
    "evaluate",
    "chat",
    "bench",
    "server",
    "cli",
    "__main__",
)
NETWORK = {"http", "socket", "urllib", "requests", "httpx", "huggingface_hub"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """Return the row that a file belongs to: its module, or the folder it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name}: a relative import hides its row"
            found.update(f"{node.module}.{name.name}" for name in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rows_above_it(path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "eva_local" and len(parts) > 1 and parts[1] in ROWS and parts[1] != here:
            assert ROWS.index(parts[1]) < ROWS.index(here), f"{here} imports {name}"


def test_every_module_has_a_row() -> None:
    assert {room(path) for path in MODULES} <= set(ROWS)
    assert set(ROWS) <= {room(path) for path in MODULES}


def test_only_model_py_imports_llama_cpp() -> None:
    users = {room(p) for p in MODULES if any(n.split(".")[0] == "llama_cpp" for n in imports(p))}
    assert users == {"model"}


def test_only_grammar_py_imports_llguidance() -> None:
    users = {room(p) for p in MODULES if any(n.split(".")[0] == "llguidance" for n in imports(p))}
    assert users == {"grammar"}


def test_only_fetch_py_can_reach_the_network_and_only_store_py_calls_it() -> None:
    users = {room(p) for p in MODULES if any(n.split(".")[0] in NETWORK for n in imports(p))}
    assert users == {"fetch"}
    callers = {room(p) for p in MODULES if any(n.startswith("eva_local.models.fetch") for n in imports(p))}
    assert callers == {"store"}


def test_the_check_finds_an_upward_edge(tmp_path) -> None:
    bad = tmp_path / "vocab.py"
    bad.write_text("def f():\n    from eva_local.engine.engine import Engine\n")
    assert imports(bad) == {"eva_local.engine.engine.Engine"}
