"""The public surface: what `import eva_local` offers, and no more."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from shared import open_shared
from waiting import PATIENCE_S

import eva_local
from eva_local import Request, Sampling
from eva_local.errors import InputError

PUBLIC = {
    "load",
    "Ensemble",
    "Message",
    "Sampling",
    "Step",
    "Completion",
    "EvaError",
    "Request",
    "Score",
}


def test_the_public_names_are_these_and_no_others() -> None:
    assert set(eva_local.__all__) == PUBLIC
    assert {name for name in dir(eva_local) if not name.startswith("_")} == PUBLIC
    space: dict[str, object] = {}
    exec("from eva_local import *", space)  # noqa: S102
    assert set(space) - {"__builtins__"} == PUBLIC
    with pytest.raises(AttributeError, match="has no attribute 'Engine'"):
        _ = eva_local.Engine


def test_every_public_name_and_method_says_what_it_is_for() -> None:
    for name in PUBLIC:
        assert inspect.getdoc(getattr(eva_local, name))
    for name, member in vars(eva_local.Ensemble).items():
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


def test_awaitable_twins_ask_as_the_others_do() -> None:
    for name in ("stream", "complete", "score"):
        twins = (getattr(eva_local.Ensemble, each) for each in (name, f"a{name}"))
        ours, theirs = (inspect.signature(twin).parameters for twin in twins)
        # What is read of the prompt is told where somebody waits in a terminal.
        assert {**ours, "report": None} == {**theirs, "report": None}


def test_importing_it_is_quick_and_opens_nothing() -> None:
    program = "import sys, eva_local; print('llama_cpp' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout == "False False\n"


def test_it_is_typed_for_those_who_use_it(tmp_path) -> None:
    assert (Path(eva_local.__file__).parent / "py.typed").exists()
    app = tmp_path / "app.py"
    app.write_text(
        "import eva_local\n\n\n"
        "async def app(eva: eva_local.Ensemble) -> str:\n"
        "    steps = eva.astream('x', eva_local.Sampling(max_tokens=3))\n"
        "    async for step in steps:\n"
        "        reveal_type(step.text)\n"
        "    await steps.aclose()\n"
        "    reveal_type(eva.score('a', 'b').members)\n"
        "    return (await eva.acomplete([eva_local.Message('user', 'x')])).text\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(app)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert 'Revealed type is "builtins.str"' in done.stdout or '"str"' in done.stdout
    assert "None" in done.stdout


def test_one_text_is_not_taken_for_many_prompts() -> None:
    refused = pytest.raises(InputError, match=r"^prompts must be a sequence")
    with open_shared() as ensemble, refused:
        ensemble.complete_many("abc")


def test_no_more_texts_are_written_side_by_side_than_it_was_opened_for() -> None:
    with open_shared(3) as ensemble:
        for wrong in (0, -1, 4):
            with pytest.raises(InputError, match="n_slots must be from 1 to 3"):
                ensemble.n_slots = wrong
        ensemble.n_slots = 2
        assert ensemble.n_slots == 2
        few = Sampling(max_tokens=2)
        with pytest.raises(InputError, match="weights must be one for each of a, b"):
            next(ensemble.stream("the", few, weights=(1.0,)))
        runner = ensemble.runner([Request("the", few)] * 5)
        runner.step()
        runner.close()
        assert runner.done
        assert runner.step() == []
        assert ensemble.scheduler.n_running == 0
