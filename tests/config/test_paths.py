"""Paths as users write them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eva_local.config.settings import user_path
from eva_local.errors import ConfigError


def test_a_path_may_begin_at_home(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x.md", "/read") == Path("/home/me/x.md")
    assert user_path(Path("~/x.md"), "/read") == Path("/home/me/x.md")
    assert user_path("a b/~/x", "/read") == Path("a b/~/x")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("~nosuchuser/x", "/read: ~nosuchuser/x: there is no such home folder; write"),
        ("a\0b", r"/read: must be a path, not 'a\x00b'"),
    ],
)
def test_what_can_be_no_path_names_where_it_was_written(written, problem) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        user_path(written, "/read")
