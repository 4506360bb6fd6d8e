"""Conversations and their files."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import awkward_text

from eva_local.chat import log
from eva_local.chat.log import Conversation, Event, Turn
from eva_local.errors import InputError
from eva_local.types import Message


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Events in an order in which they can come."""
    events: list[Event] = []
    conversation = Conversation()
    for _ in range(draw(st.integers(0, 12))):
        kinds = ["system"]
        if not conversation.turns or conversation.turns[-1].answer is not None:
            kinds.append("user")
        if conversation.turns:
            kinds += ["answer", "undo"]
        kind = draw(st.sampled_from(kinds))
        thought = draw(awkward_text) if kind == "answer" else ""
        event = Event(kind, "" if kind == "undo" else draw(awkward_text), thought)
        conversation = conversation.after(event)
        events.append(event)
    return events


def replayed(events: list[Event]) -> Conversation:
    conversation = Conversation()
    for event in events:
        conversation = conversation.after(event)
    return conversation


def test_the_prompt_is_open_for_the_answer_to_the_last_message() -> None:
    conversation = Conversation("s", (Turn("q1", "a1"), Turn("q2", "a2"), Turn("q3", "a3")))
    assert conversation.prompt(1) == [
        Message("system", "s"),
        Message("user", "q2"),
        Message("assistant", "a2"),
        Message("user", "q3"),
    ]


def test_a_second_answer_takes_the_place_of_the_first() -> None:
    events = [Event("user", "q"), Event("answer", "a"), Event("answer", "b")]
    assert replayed(events).turns == (Turn("q", "b"),)


@pytest.mark.parametrize(
    "events",
    [
        [Event("answer", "a")],
        [Event("undo")],
        [Event("user", "q"), Event("user", "r")],
        [Event("user", "q"), Event("undo"), Event("undo")],
    ],
)
def test_events_that_cannot_come_are_refused(events) -> None:
    with pytest.raises(ValueError):
        replayed(events)


@given(events=histories())
def test_a_conversation_is_what_its_events_lead_to(events) -> None:
    conversation = replayed(events)
    assert replayed(list(conversation.events())) == conversation


@settings(max_examples=60)
@given(events=histories(), cut=st.floats(0, 1))
def test_a_file_torn_anywhere_holds_all_whole_lines(tmp_path_factory, events, cut) -> None:
    folder = tmp_path_factory.mktemp("chats")
    held = log.Log.begin(folder, "demo", Conversation())
    for event in events:
        held.save(event)
    held.close()
    data = held.path.read_bytes()
    assert log.read(held.path).conversation == replayed(events)

    place = round(cut * len(data))
    held.path.write_bytes(data[:place])
    whole = data[:place].count(b"\n")
    # A line without its end is whole if it is JSON.
    rest = data[:place].rpartition(b"\n")[2]
    whole += bool(rest) and data[place : place + 1] in (b"\n", b"")
    if whole == 0:
        with pytest.raises(InputError, match="no conversation"):
            log.read(held.path)
        return
    saved = log.read(held.path)
    assert saved.conversation == replayed(events[: whole - 1])
    assert bool(saved.notes) == (bool(rest) and data[place : place + 1] not in (b"\n", b""))

    # What is written on stands on a line of its own.
    again, saved = log.Log.resume(saved)
    again.save(Event("system", "later"))
    again.close()
    assert log.read(held.path).conversation == saved.conversation.after(Event("system", "later"))
    assert log.read(held.path).notes == ()


def test_a_conversation_that_is_held_is_locked(tmp_path) -> None:
    held = log.Log.begin(tmp_path, "demo", Conversation("", (Turn("q", "a"),)))
    with pytest.raises(InputError, match="open in another chat"):
        log.Log.resume(log.read(held.path))
    held.close()
    again, _ = log.Log.resume(log.read(held.path))
    again.close()


def test_conversations_of_one_second_have_different_names_and_are_private(tmp_path) -> None:
    folder = tmp_path / "deep" / "chats"
    before = os.umask(0o022)
    logs = [log.Log.begin(folder, "demo", Conversation()) for _ in range(3)]
    os.umask(before)
    assert len({held.path for held in logs}) == 3
    assert {held.path.stat().st_mode & 0o777 for held in logs} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    for held in logs:
        held.close()


def test_the_newest_is_the_one_that_was_last_held(tmp_path) -> None:
    paths = []
    for number in range(3):
        held = log.Log.begin(tmp_path, "demo", Conversation("", (Turn(f"q{number}", "a"),)))
        held.close()
        paths.append(held.path)
        os.utime(held.path, (1000 + number, 1000 + number))
    (tmp_path / "broken.jsonl").write_bytes(b'{"kind"')
    saved = log.newest(tmp_path)
    assert saved.path == paths[2]
    assert re.search("broken.jsonl holds no conversation", saved.notes[0])
    assert log.find(tmp_path, paths[0].stem).conversation.turns[0].question == "q0"


def test_links_that_lead_nowhere_are_no_conversations(tmp_path) -> None:
    held = log.Log.begin(tmp_path, "demo", Conversation("", (Turn("q", "a"),)))
    held.close()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    assert list(log.newest_first(tmp_path)) == [held.path]
    assert log.newest(tmp_path).path == held.path


@pytest.mark.parametrize("name", ["2026", "../secret", "/etc/passwd", ""])
def test_a_name_is_never_a_path(tmp_path, name) -> None:
    folder = tmp_path / "chats"
    log.Log.begin(folder, "demo", Conversation()).close()
    with log.Log.begin(folder, "demo", Conversation()) as secret:
        secret.path.rename(tmp_path / "secret.jsonl")
    with pytest.raises(InputError, match="there is no conversation"):
        log.find(folder, name)


def test_without_any_conversation_there_is_nothing_to_continue(tmp_path) -> None:
    with pytest.raises(InputError, match="no conversation to continue"):
        log.newest(tmp_path / "absent")


HEADER = {"schema": 1, "kind": "chat", "ensemble": "demo", "began": "2026-11-22T12:00:00+00:00"}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "holds no conversation"),
        (["no JSON", "{}"], "line 1 is no JSON"),
        ([HEADER, [1]], "line 2 is no JSON object"),
        ([HEADER | {"schema": 2}], "schema 2, and this eva-local reads schema 1"),
        ([HEADER | {"kind": "trace"}], "kind 'trace'"),
        ([HEADER, {"kind": "shout", "text": "q"}], 'line 2: kind must be "answer" or "system" or'),
        ([HEADER, {"kind": "user"}], "line 2 has no text"),
        ([HEADER, {"kind": "user", "text": 1}], "line 2: text must be a text, not 1"),
        ([HEADER, {"kind": "answer", "text": "a"}], "line 2 cannot stand here"),
    ],
)
def test_what_is_no_conversation_names_its_line(tmp_path, lines, problem) -> None:
    path = tmp_path / "x.jsonl"
    spelled = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{line}\n" for line in spelled))
    with pytest.raises(InputError, match=problem):
        log.read(path)
