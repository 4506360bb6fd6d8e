"""What `load` takes, and what may be asked of an answer in words of one's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from shared import open_shared

import eva_local
from eva_local import Ensemble, EvaError, Message, Request, Sampling
from eva_local.errors import ConfigError, InputError


@pytest.fixture(autouse=True)
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let each test work in a folder with links to two models."""
    for name, file in (("one.gguf", "one.gguf"), ("b, two.gguf", "two.gguf")):
        (tmp_path / name).symlink_to(models / file)
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*arguments, **options) -> Ensemble:
    return eva_local.load(*arguments, n_ctx=64, threads=1, **options)


BOTH = ("one.gguf", Path("b, two.gguf"))


@pytest.mark.parametrize(
    ("arguments", "options", "shown"),
    [
        (("one.gguf",), {}, "one: one, pivot, pivot one"),
        ((Path("b, two.gguf"),), {}, "b-two: b-two, pivot, pivot b-two"),
        (("b, two.gguf",), {}, "b-two: b-two, pivot, pivot b-two"),
        ((BOTH,), {}, "one+b-two: one + b-two, pivot, pivot one"),
        ((), {"members": [*BOTH]}, "one+b-two: one + b-two, pivot, pivot one"),
        ((), {"members": iter(BOTH)}, "one+b-two: one + b-two, pivot, pivot one"),
        ((), {"members": "one.gguf"}, "one: one, pivot, pivot one"),
        ((BOTH,), {"pivot": "b-two"}, "one+b-two: one + b-two, pivot, pivot b-two"),
        ((r"one.gguf,b\, two.gguf",), {"pivot": "b-two"}, "one+b-two: one + b-two, pivot, "),
        ((BOTH,), {"space": "bytes"}, "one+b-two: one + b-two, bytes, pivot one"),
        # Weights and a drafter are meant for these members, not for the default ensemble's.
        ((BOTH,), {"weights": [2, 1], "drafter": "b-two"}, "one+b-two: "),
        ((), {"members": ["one.gguf"] * 3, "weights": "1,1,2"}, "one+one-2+one-3: one + one-2"),
    ],
)
def test_files_and_names(arguments, options, shown: str) -> None:
    with load(*arguments, **options) as ensemble:
        assert repr(ensemble).startswith(f"<Ensemble {shown}")
        assert len(ensemble.complete("the", max_tokens=2).usage.members) == len(ensemble.members)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (([],), {}, "members must be names or files, not []"),
        ((), {"members": ()}, "members must be names or files, not ()"),
        ((b"one.gguf",), {}, "members must be names or files, not b'one.gguf'"),
        ((["one.gguf", None],), {}, "members must be names or files, not ['one.gguf', None]"),
        ((3,), {}, "members must be names or files, not 3"),
        (("one.gguf",), {"parallel": 0}, "parallel must be at least 1, not 0"),
        (("demo",), {"members": ["one.gguf"]}, "give an ensemble or members, not both"),
        ((["one.gguf"],), {"members": ["one.gguf"]}, "give an ensemble or members, not both"),
        ((["one.gguf"],), {"pivot": "b"}, "pivot 'b' is no member of one; known are: one"),
        ((), {"pivot": "b"}, "pivot 'b' is no member of demo; known are: qwen2.5-coder-0.5b, "),
        (([*BOTH],), {"weights": [1, 2, 3]}, "argument weights: weights must be one for each of "),
        ((["one.gguf"],), {"drafter": "x"}, "argument drafter: drafter x is no member of one; "),
        ((["one.gguf"],), {"top_kk": 1}, "argument top_kk: unknown key; did you mean top_k?"),
        ((["one.gguf"],), {"top_k": "x"}, "argument top_k: must be a whole number, not 'x'"),
        (("none.gguf",), {}, "there is no ensemble or model 'none.gguf'; none.gguf is no file"),
        (("",), {}, "there is no ensemble or model ''; a name is empty"),
        (("x" * 300,), {}, "there is no ensemble or model 'xxx"),
        (("one.gguf",), {"config": "none.toml"}, "none.toml: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_words_of_python(arguments, options, told: str) -> None:
    with pytest.raises(EvaError) as caught:
        load(*arguments, **options)
    assert str(caught.value).startswith(told)
    assert "command line" not in str(caught.value)
    assert isinstance(caught.value, InputError | ConfigError)


def test_messages_may_be_mappings() -> None:
    said = [Message("system", "the"), Message("user", "light")]
    dicts = [{"role": "system", "content": "the"}, {"role": "user", "content": "light"}]
    with load(BOTH) as ensemble:
        expected = ensemble.complete(said, max_tokens=3).text
        for prompt in (dicts, tuple(dicts), [said[0], dicts[1]], [dicts[0], said[1]]):
            assert ensemble.complete(prompt, max_tokens=3).text == expected
            assert ensemble.prompt_tokens(prompt) == ensemble.prompt_tokens(said)
            assert Request(prompt).prompt == said
        # What says nothing is no more than that.
        empty = {"role": "user", "content": "light", "tool_calls": [], "name": None}
        assert Request([empty]).prompt == said[1:]
        few = Sampling(max_tokens=3)
        assert [each.text for each in ensemble.complete_many([dicts, said], few)] == [expected] * 2
        assert asyncio.run(ensemble.acomplete(dicts, max_tokens=3)).text == expected
        score = ensemble.score(dicts, " a")
        assert score.log_likelihood == pytest.approx(ensemble.score(said, " a").log_likelihood)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": "a", "mood": "glad"}, "unknown option 'messages[1].mood'"),
        ({"role": "user", "content": "a", "tool_calls": [1]}, "messages[1].tool_calls[0] is no"),
        ({"role": "user"}, "messages[1].content is missing"),
        ({"role": "user", "content": 1}, "messages[1].content must be a text or a list"),
        ({"role": "robot", "content": "a"}, 'messages[1].role must be "assistant" or "dev'),
        ({}, "messages[1].role is missing"),
        ("light", "messages[1] is no JSON object"),
    ],
)
def test_nothing_of_a_message_is_dropped_in_silence(message, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Request([{"role": "user", "content": "the"}, message])
    assert str(caught.value).startswith(told)


def test_how_an_answer_is_drawn_may_be_said_beside_the_prompt() -> None:
    with open_shared() as ensemble:
        drawn = Sampling(max_tokens=4, temperature=1.0, seed=3)
        expected = ensemble.complete("the", drawn).text
        assert ensemble.complete("the", max_tokens=4, temperature=1, seed=3).text == expected
        # It changes the sampling that is given, for this answer.
        assert (
            ensemble.complete("the", Sampling(temperature=1.0, seed=3), max_tokens=4).text
            == expected
        )
        assert drawn.max_tokens == 4
        steps = list(ensemble.stream("the", max_tokens=2, n_top=2, trace=True))
        assert len(steps) == 2
        assert len(steps[0].top) == 2
        assert len(asyncio.run(ensemble.acomplete("the", max_tokens=2)).usage.members) == 2
        for wrong, told in {"max_tokens": "max_tokens must be", "seed": "seed must be"}.items():
            with pytest.raises(InputError, match=told):
                ensemble.complete("the", **{wrong: "x"})
        with pytest.raises(TypeError, match="max_tokenz is no option; did you mean max_tokens"):
            ensemble.complete("the", max_tokenz=2)


def test_a_closed_ensemble_still_has_a_name() -> None:
    with load("one.gguf") as ensemble:
        pass
    assert repr(ensemble) == "<Ensemble one: one, pivot, pivot one>"
