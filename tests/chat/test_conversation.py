"""Conversations with fake models: budget, prefix reuse, what is kept and what is taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from chats import fake_chat, said
from hypothesis import given
from hypothesis import strategies as st

from eva_local.chat import log
from eva_local.chat.chat import Budget, Chat, first_turn
from eva_local.chat.log import Conversation, Turn
from eva_local.errors import ContextError, InputError
from eva_local.types import Sampling


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def chat(tmp_path, notes) -> Iterator[Chat]:
    with contextlib.closing(fake_chat(tmp_path, notes)) as chat:
        yield chat


def saved(chat: Chat) -> Conversation:
    assert chat.path is not None
    return log.read(chat.path).conversation


def resume(chat: Chat, left: log.Saved) -> None:
    file, left = log.Log.resume(left)
    chat.take_over(left.conversation, file)


def new_tokens(chat: Chat) -> tuple[int, ...]:
    """Prompt tokens of the last answer that were decoded for it."""
    usage = chat.last.steps[-1].usage
    return tuple(n - c for n, c in zip(usage.prompt_tokens, usage.cached_tokens, strict=True))


def test_a_turn_is_said_kept_and_saved(chat) -> None:
    text = said(chat.ask("the cat"))
    assert chat.conversation.turns == (Turn("the cat", text),)
    assert saved(chat) == chat.conversation
    assert "".join(step.text for step in chat.last.steps) == text
    assert chat.last.steps[-1].finish_reason in ("stop", "length")


def test_the_message_is_on_disk_before_the_answer_begins(chat) -> None:
    steps = chat.ask("the cat")
    next(steps)
    assert saved(chat).turns == (Turn("the cat"),)
    steps.close()


def test_each_turn_decodes_only_what_is_new(chat) -> None:
    new = []
    for _ in range(8):
        said(chat.ask("the cat sat on the mat and there"))
        new.append(new_tokens(chat))
    # Answers differ in length, but what is read anew does not grow with the conversation.
    for later in new[2:]:
        assert all(now <= second + 12 for now, second in zip(later, new[1], strict=True))


def test_a_turn_reads_no_token_of_the_prompt_before_it(chat) -> None:
    said(chat.ask("the cat"))
    first = chat.ensemble.prompt_tokens(chat.conversation.prompt())
    said(chat.ask("there"))
    assert all(
        cached >= before - 1
        for cached, before in zip(chat.last.steps[-1].usage.cached_tokens, first, strict=True)
    )


def test_regenerating_and_undoing_read_nothing_again(chat) -> None:
    said(chat.ask("the cat"))
    before = chat.ensemble.prompt_tokens(chat.conversation.prompt())
    text = said(chat.ask("there"))
    assert said(chat.regenerate()) == text
    assert new_tokens(chat) == (1, 1)
    assert len(chat.conversation.turns) == 2

    assert chat.undo() == "there"
    said(chat.ask("able"))
    cached = chat.last.steps[-1].usage.cached_tokens
    assert all(c >= b - 1 for c, b in zip(cached, before, strict=True))
    assert saved(chat) == chat.conversation


def test_an_answer_that_is_stopped_keeps_what_was_said(chat) -> None:
    whole = said(chat.ask("the cat"))
    chat.undo()
    steps = chat.ask("the cat")
    heard = "".join(next(steps).text for _ in range(3))
    steps.close()
    assert chat.conversation.turns == (Turn("the cat", heard),)
    assert saved(chat) == chat.conversation
    assert chat.last.steps[-1].finish_reason is None
    assert chat.last.steps[-1].usage is None
    assert whole.startswith(heard)


def test_where_nothing_was_said_the_message_is_taken_back(chat) -> None:
    said(chat.ask("the cat"))
    before = chat.conversation, chat.last

    def stop(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        said(chat.ask("there is a cat " * 30, report=stop))
    assert (chat.conversation, chat.last) == before
    assert saved(chat) == chat.conversation


def test_a_stopped_regeneration_keeps_the_old_answer(chat) -> None:
    said(chat.ask("the cat"))
    before = chat.conversation
    chat.sampling = replace(chat.sampling, grammar="root ::= (")
    with pytest.raises(InputError):
        said(chat.regenerate())
    assert chat.conversation == before == saved(chat)


def test_a_killed_chat_loses_only_the_answer_being_written(tmp_path, chat) -> None:
    said(chat.ask("the cat"))
    done = chat.conversation.turns
    steps = chat.ask("there")
    next(steps)
    # As after kill -9: nothing more is written, and the lock goes with the process.
    name, left = chat.path.stem, log.read(chat.path)
    assert left.conversation.turns == (*done, Turn("there"))
    copy = tmp_path / "chats" / f"{name}-copy.jsonl"
    copy.write_bytes(chat.path.read_bytes())
    steps.close()

    notes: list[str] = []
    with contextlib.closing(fake_chat(tmp_path, notes)) as again:
        resume(again, log.find(tmp_path / "chats", copy.stem))
        assert again.is_open
        text = said(again.regenerate())
        assert again.conversation.turns == (*done, Turn("there", text))
        assert saved(again) == again.conversation


def test_a_new_message_takes_the_place_of_one_without_an_answer(tmp_path, chat) -> None:
    folder = tmp_path / "chats"
    log.Log.begin(folder, "fake", Conversation("", (Turn("a", "b"), Turn("lost")))).close()
    resume(chat, log.newest(folder))
    with pytest.raises(ContextError):
        said(chat.ask("the " * 5000))
    assert chat.is_open
    said(chat.ask("there"))
    assert [turn.question for turn in chat.conversation.turns] == ["a", "there"]
    assert saved(chat) == chat.conversation


def test_an_open_message_stays_where_its_answer_or_the_next_one_is_stopped(tmp_path, chat) -> None:
    folder = tmp_path / "chats"
    long = "there is a cat " * 30
    log.Log.begin(folder, "fake", Conversation("", (Turn("a", "b"), Turn(long)))).close()
    resume(chat, log.newest(folder))
    before = chat.conversation

    def stop(what: str, share: float) -> None:
        raise KeyboardInterrupt

    for begin in (chat.regenerate, lambda report: chat.ask(f"why {long}", report)):
        with pytest.raises(KeyboardInterrupt):
            said(begin(stop))
        assert chat.conversation == before == saved(chat)
        assert chat.is_open
    said(chat.regenerate())
    assert [turn.question for turn in saved(chat).turns] == ["a", long]


def test_a_full_context_drops_the_oldest_turns_aloud(tmp_path, notes) -> None:
    with contextlib.closing(fake_chat(tmp_path, notes, n_ctx=(4096, 300))) as chat:
        chat.use_system("be a cat")
        for number in range(12):
            said(chat.ask(f"the cat sat on the mat {'abcdefghijkl'[number]}"))
            needs = chat.last.steps[-1].usage.prompt_tokens
            assert needs[1] + 6 <= 300
        assert chat.first > 0
        assert 0 < len(notes) < 9
        assert all("b-2 needs" in note and "of 300" in note for note in notes)
        assert "oldest" in notes[0]
        # The system message stays, all turns are still in the file, and whole turns are dropped.
        prompt = chat.conversation.prompt(chat.first)
        assert prompt[0].content == "be a cat"
        assert [m.role for m in prompt[1:3]] == ["user", "assistant"]
        assert len(saved(chat).turns) == 12


def test_a_message_that_cannot_fit_is_refused_with_the_numbers(tmp_path, notes) -> None:
    with contextlib.closing(fake_chat(tmp_path, notes, n_ctx=(4096, 100))) as chat:
        chat.use_system("be a cat")
        said(chat.ask("the cat"))
        before = chat.conversation
        with pytest.raises(
            ContextError, match=r"system message .* b-2 needs \d+ tokens of 100, an"
        ):
            said(chat.ask("sat " * 200))
        with pytest.raises(ContextError, match=r"b-2 needs \d+ tokens of 100"):
            chat.check("sat " * 200)
        assert chat.conversation == before == saved(chat)


def test_what_cannot_be_saved_is_said_once_and_the_chat_goes_on(tmp_path, notes) -> None:
    (tmp_path / "chats").write_text("a file where the folder should be")
    with contextlib.closing(fake_chat(tmp_path, notes)) as chat:
        said(chat.ask("the cat"))
        said(chat.ask("there"))
        assert len(chat.conversation.turns) == 2
        assert len(notes) == 1
        assert "cannot be saved" in notes[0]


def test_a_new_conversation_is_saved_again_or_complains_again(tmp_path, notes) -> None:
    (tmp_path / "chats").write_text("a file where the folder should be")
    with contextlib.closing(fake_chat(tmp_path, notes)) as chat:
        said(chat.ask("the cat"))
        chat.take_over(Conversation())
        said(chat.ask("the cat"))
        said(chat.ask("there"))
        assert len(notes) == 2
        (tmp_path / "chats").unlink()
        chat.take_over(Conversation())
        said(chat.ask("the cat"))
        assert saved(chat) == chat.conversation
        assert len(notes) == 2


def test_a_new_conversation_leaves_the_old_one_in_its_file(chat) -> None:
    said(chat.ask("the cat"))
    old, was = chat.path, chat.conversation
    chat.take_over(Conversation("be a cat"))
    assert chat.path is None
    said(chat.ask("there"))
    assert log.read(old).conversation == was
    assert saved(chat) == chat.conversation
    assert saved(chat).system == "be a cat"


def test_nothing_can_be_undone_or_regenerated_before_anything_was_said(chat) -> None:
    for does in (chat.undo, lambda: said(chat.regenerate())):
        with pytest.raises(InputError):
            does()


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=10)


@given(sizes=sizes, limit=st.integers(10, 200), kept=st.integers(1, 50), first=st.integers(0, 9))
def test_the_budget_keeps_the_newest_turns_that_fit(sizes, limit, kept, first) -> None:
    first = min(first, len(sizes) - 1)
    turns = tuple(Turn("x" * size, "") for size in sizes)
    conversation = Conversation("", turns)
    budget = Budget(("m",), (limit,), kept)
    room = limit - min(kept, limit // 4)

    def count(messages):
        return (sum(len(message.content) for message in messages),)

    if sum(sizes[first:]) <= room:
        assert first_turn(conversation, first, count, budget) == first
    elif sizes[-1] > room:
        with pytest.raises(ContextError, match=f"m needs {sizes[-1]} tokens of {limit}"):
            first_turn(conversation, first, count, budget)
    else:
        chosen = first_turn(conversation, first, count, budget)
        assert first < chosen < len(sizes)
        assert sum(sizes[chosen:]) <= room
        # No more is dropped than makes room for a while.
        assert sum(sizes[chosen - 1 :]) > 0.75 * room


def test_the_answer_is_kept_a_quarter_of_the_context_at_most() -> None:
    budget = Budget(("a", "b"), (100, 1000), Sampling().max_tokens)
    assert budget.holds((75, 500))
    assert not budget.holds((76, 500))
    assert not budget.holds((75, 751))
    assert budget.numbers((50, 400)).startswith("a needs 50 tokens of 100, and 25 are kept")
