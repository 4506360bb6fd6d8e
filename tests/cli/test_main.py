"""Ctrl-C before the command line is there."""

import builtins
import sys

from eva_local import __main__ as entry


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys) -> None:
    imported = builtins.__import__

    def interrupted(name: str, *rest: object, **options: object) -> object:
        if name == "eva_local" and "cli" in (rest[2] if len(rest) > 2 else ()):
            raise KeyboardInterrupt
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert entry.main() == 130
    assert capsys.readouterr().err == "eva-local: interrupted\n"


def test_its_exit_code_is_that_of_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["eva-local", "--no-such-option"])
    assert entry.main() == 2
