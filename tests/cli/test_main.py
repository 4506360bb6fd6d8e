"""Ctrl-C before the command line is there, memory that ends, commands as their table has them."""

import builtins
import importlib
import inspect
import io
import logging
import sys

import pytest

from eva_local import __main__ as entry
from eva_local import cli
from eva_local.cli import outputs
from eva_local.cli.options import COMMANDS
from eva_local.config.settings import REQUEST_KEYS


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys) -> None:
    imported = builtins.__import__

    def interrupted(name: str, *rest: object, **options: object) -> object:
        if name == "eva_local" and "cli" in (rest[2] if len(rest) > 2 else ()):
            raise KeyboardInterrupt
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert entry.main() == 130
    assert capsys.readouterr().err == "eva-local: interrupted\n"


def test_a_table_that_is_too_wide_goes_on_below(monkeypatch, capsys) -> None:
    monkeypatch.setattr(outputs, "_width", lambda: 20)
    head, row = ("NAME", "SIZE", "FAMILY", "HERE"), ("tiny", "12 MB", "llama", True)
    outputs.print_table(head, [row])
    assert capsys.readouterr().out.splitlines() == [
        *("NAME  SIZE   FAMILY", "tiny  12 MB  llama", ""),
        *("NAME  HERE", "tiny  yes"),
    ]
    outputs.print_table(("NAME", "WHAT"), [("tiny", "longer than a line of this terminal")])
    assert capsys.readouterr().out.splitlines()[1] == "tiny  longer than a line of this terminal"


def test_models_that_are_no_arguments_are_to_be_given_with_m(capsys) -> None:
    assert cli.main(["chat", "a.gguf", "b.gguf"]) == 2
    assert "give models with -m; see: eva-local chat --help" in capsys.readouterr().err


def test_its_exit_code_is_that_of_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["eva-local", "--no-such-option"])
    assert entry.main() == 2


@pytest.mark.parametrize(("given", "told"), [((), "give it less"), (("9 GiB",), "9 GiB")])
def test_memory_that_ends_is_one_line(given, told, monkeypatch, capsys) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError(*given)

    monkeypatch.setattr(cli.cli, "main", full)
    assert cli.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"eva-local: there is not enough memory: {told}")
    assert said.count("\n") == 1


def test_warnings_go_to_whatever_stands_in_for_stderr(monkeypatch) -> None:
    assert cli.main(["completion", "bash"]) == 0
    # As rich does while it shows a bar or a spinner, which else would share a line with them.
    stand_in = io.StringIO()
    monkeypatch.setattr("sys.stderr", stand_in)
    logging.getLogger("eva_local").warning("something is odd")
    assert stand_in.getvalue() == "eva-local: WARNING: something is odd\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_what_its_table_gives(name) -> None:
    how, command = COMMANDS[name], cli.cli.commands[name]
    module, _, function = how["call"].partition(".")
    called = getattr(importlib.import_module(f"eva_local.cli.{module}"), function)
    given = {each.name for each in command.params if each.expose_value}
    if "drawing" in how.get("options", "").split():
        given = given.difference(REQUEST_KEYS) | {"config", "sampling"}
    elif not all(each.expose_value for each in command.params):
        given.add("overrides")
    inspect.signature(called).bind(*how.get("passes", "").split(), **dict.fromkeys(given))
