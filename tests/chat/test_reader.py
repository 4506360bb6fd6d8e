"""What counts as a command, what as a message, and what odd bytes become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eva_local.chat.reader import Command, is_open, sound, understood


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hello", "hello"),
        ("  indented", "  indented"),
        ("\n  \n  code\n\n", "  code"),
        ("", ""),
        ("/why 3", Command("why", "3")),
        ("/why", Command("why")),
        ("/set  top_k   5 ", Command("set", "top_k   5")),
        ("/bye", Command("bye")),
        ("/?", Command("?")),
        ("//why", "/why"),
        ("// a comment", "/ a comment"),
        ("// a comment\nint main() {}", "// a comment\nint main() {}"),
        ("/etc/passwd\n/etc/group", "/etc/passwd\n/etc/group"),
        ('"""\ntwo\n  lines\n"""', "two\n  lines"),
        ('"""/exit"""', "/exit"),
        ('"""Doc."""\nimport os', '"""Doc."""\nimport os'),
        ('/system """Be\nbrief."""', Command("system", "Be\nbrief.")),
        ('"""never closed', "never closed"),
    ],
)
def test_what_is_understood(text, meant) -> None:
    assert understood(text) == meant


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('"""', True),
        ('"""a\nb', True),
        ('/system """a', True),
        ('"""a"""', False),
        ("hello", False),
        ('say """', False),
    ],
)
def test_three_quotes_keep_a_message_open(text, answer) -> None:
    assert is_open(text) is answer


@given(data=st.binary())
def test_bytes_from_a_terminal_become_text_that_can_be_encoded(data) -> None:
    text, broken = sound(data.decode("utf-8", "surrogateescape"))
    text.encode()
    assert "\r" not in text
    assert (not broken) == valid(data)


def valid(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_what_was_odd_is_counted() -> None:
    assert sound("caf\udcc3 \x00\x1b[31m\r\n") == ("caf\ufffd \x00\x1b[31m\n", 1)
