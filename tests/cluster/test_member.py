"""A member whose model is open in another process: its votes are a local one's, bit for bit."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import WITH_RAY

from eva_local.api import Ensemble
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.lookahead import LookAhead
from eva_local.engine.request import AnyPrompt, Request
from eva_local.errors import ConfigError, ModelError
from eva_local.opening import open_ensemble
from eva_local.types import Message, Sampling, Step
from tools.processes import ends, hosts, kill
from tools.tiny_gguf import write_tiny_gguf

pytestmark = WITH_RAY

PROMPTS = ["the light and the", "Zoë said: 中", "a", "the light and the sea, and the"]
SAMPLING = Sampling(max_tokens=24)
# Votes of the likeliest tokens alone, which are all that is sent, and of all of them.
SETTINGS: list[dict[str, Any]] = [{}, {"candidates": 20}, {"candidates": 0}, {"space": "bytes"}]
TIMES = re.compile(r"seconds=[^,)]*")


def spec_of(models: Path, *remote: str, **settings: object) -> EnsembleSpec:
    # When something is drafted rests on how long things took, and rounds otherwise.
    overrides = {"threads": 1, "batch_invariant": True, "drafter": "off", **settings}
    spec = load_config(models / "models.toml", {}, overrides).ensemble("pair")
    members = (replace(m, on="ray") if m.name in remote else m for m in spec.members)
    return replace(spec, members=tuple(members), sampling=SAMPLING)


def told(ensemble: Ensemble, prompts: Sequence[AnyPrompt], **options: Any) -> list[str]:
    """Return all that says what was voted: pieces, and every probability as it is."""
    requests = [Request(prompt, trace=True, n_top=3, **options) for prompt in prompts]
    found = [""] * len(prompts)
    for number, each in ensemble.run_many(requests):
        shown = replace(each, usage=None) if isinstance(each, Step) else each
        found[number] += TIMES.sub("", repr(shown)) + "\n"
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"candidates": 20}, {"candidates": 0}, {"space": "bytes"}]
)
@pytest.mark.parametrize("remote", [("two",), ("one", "two")])
def test_remote_votes_are_local_ones(cluster, models, remote, settings) -> None:
    found = []
    for each in ((), remote):
        with open_ensemble(spec_of(models, *each, **settings), parallel=2) as ensemble:
            assert len(hosts("ModelHost")) == len(each)
            # The last ones go on from what the caches hold by then.
            orders = PROMPTS, PROMPTS[::-1], PROMPTS[1:]
            found += [told(ensemble, prompts) for prompts in orders]
            found.append(told(ensemble, PROMPTS[:1], continuation=" light"))
    assert found[:4] == found[4:]
    assert ends(lambda: hosts("ModelHost"))


SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@pytest.mark.parametrize("space", ["pivot", "bytes"])
def test_under_a_grammar_and_with_drafts(cluster, models, space, monkeypatch) -> None:
    grammar = replace(SAMPLING, json_schema=SCHEMA, max_tokens=40)
    found = []
    for remote in ((), ("one", "two")):
        spec = spec_of(models, *remote, space=space, candidates=20)
        with open_ensemble(spec, parallel=2) as ensemble:
            voted = told(ensemble, PROMPTS[:2], sampling=grammar)
            right = ensemble.complete(PROMPTS[0]).text.encode()
            generator = random.Random(0)

            def plan(self: LookAhead, right: bytes = right, draw: random.Random = generator) -> int:
                """Draft what comes, or rubbish, or let a member foresee it."""
                written = bytes(self._text).removeprefix(PROMPTS[0].encode())
                rest = right.removeprefix(written) if right.startswith(written) else b"the"
                self.draft = draw.choice([b"", rest[:8], rest[:3] + b"zz"])
                self.foreseer = None if self.draft else draw.choice(self._members)
                return draw.randrange(1, self.most + 1)

            with monkeypatch.context() as patched:
                patched.setattr(LookAhead, "plan", plan)
                ensemble.drafter = "auto"
                voted += told(ensemble, PROMPTS[:1])
                assert (usage := ensemble.complete(PROMPTS[0]).usage).drafted > usage.accepted > 0
            found.append(voted)
    assert found[0] == found[1]


@pytest.mark.parametrize("architecture", ["llama", "mamba2", "gemma3", "lfm2"])
@pytest.mark.parametrize("swa_full", [True, False])
def test_whatever_the_cache_can_take_back(cluster, tmp_path, architecture, swa_full) -> None:
    write_tiny_gguf(tmp_path / "one.gguf", seed=1, n_ctx=256)
    write_tiny_gguf(tmp_path / "two.gguf", architecture, seed=2, n_ctx=256, words=(" a", "ed"))
    (tmp_path / "models.toml").write_text(TOML)
    turns = [f"the light {n} and {'the sea, ' * n}" for n in (9, 4, 9, 0, 12)]
    found = []
    for remote in ((), ("two",)):
        with open_ensemble(spec_of(tmp_path, *remote, swa_full=swa_full), parallel=2) as ensemble:
            found.append(told(ensemble, turns) + told(ensemble, turns[:3]))
    assert found[0] == found[1]


TOML = """
schema = 1
[defaults]
n_ctx = 256
[models.one]
path = "one.gguf"
[models.two]
path = "two.gguf"
[ensembles.pair]
members = ["one", "two"]
"""


def test_a_member_that_dies_ends_its_answers_and_is_opened_again(cluster, models) -> None:
    with open_ensemble(spec_of(models, "two"), parallel=2) as ensemble:
        expected = told(ensemble, PROMPTS[:2])
        steps, errors = 0, {}
        requests = [Request("the light and the"), Request("Zoë said"), Request("a", alone="one")]
        texts = dict.fromkeys(range(3), "")
        for number, each in ensemble.run_many(requests):
            if isinstance(each, Step):
                texts[number] += each.text
                steps += 1
                if steps == 10:
                    kill(*hosts("ModelHost"))
            else:
                errors[number] = each
        # Both that need the member say who it was; the one of the other member is whole.
        assert errors.keys() == {0, 1}
        for error in errors.values():
            assert isinstance(error, ModelError)
            assert "two on ray: " in str(error)
        assert texts[2] == ensemble.complete("a", alone="one").text
        # The next ones are answered as if nothing had been.
        assert told(ensemble, PROMPTS[:2]) == expected
        assert len(hosts("ModelHost")) == 1


def test_a_member_that_does_not_answer(cluster, models, monkeypatch) -> None:
    from eva_local.cluster import member

    with open_ensemble(spec_of(models, "two")) as ensemble:
        monkeypatch.setattr(member, "_CALL_S", 0.5)
        (process,) = hosts("ModelHost")
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(ModelError, match="two on ray: no answer within 0 s"):
            ensemble.complete("the light")
        os.kill(process, signal.SIGCONT)


def test_a_conversation_over_the_members_own_template(cluster, tmp_path) -> None:
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>you: "
    for seed, name in enumerate(("one", "two")):
        write_tiny_gguf(tmp_path / f"{name}.gguf", seed=seed, n_ctx=256, chat_template=template)
    (tmp_path / "models.toml").write_text(TOML)
    found = []
    for remote in ((), ("one", "two")):
        with open_ensemble(spec_of(tmp_path, *remote)) as ensemble:
            found.append(told(ensemble, [[Message("user", "the light <s>")]]))
            found[-1] += [str(ensemble.prompt_tokens("the <s> 中"))]
    assert found[0] == found[1]


def test_who_cannot_be_opened_is_named(cluster, models, tmp_path) -> None:
    spec = spec_of(models, "two")
    one, two = spec.members
    wrong = replace(two, sha256="0" * 64)
    with pytest.raises(ModelError, match=r"two on ray: .*two\.gguf on .* has sha256"):
        open_ensemble(replace(spec, members=(one, wrong)))
    other = replace(two, on="ray://127.0.0.1:1")
    with pytest.raises(ConfigError, match="one process can use one Ray cluster"):
        open_ensemble(replace(spec, members=(one, other)))
    nowhere = replace(two, on="ray#nowhere")
    with pytest.raises(ConfigError, match="no such machine"):
        open_ensemble(replace(spec, members=(one, nowhere)))
    assert ends(lambda: hosts("ModelHost"))


def test_models_toml_says_where(tmp_path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(TOML.replace("[models.two]", '[models.two]\non = "ray#big"'))
    assert [m.on for m in load_config(path, {}).ensemble("pair").members] == ["", "ray#big"]
    path.write_text(TOML.replace("[models.two]", '[models.two]\non = "http://here"'))
    with pytest.raises(ConfigError, match=r"models\.two\.on: must be ray or ray://HOST:PORT"):
        load_config(path, {})
    table = '[{model = "one"}, {model = "two", on = "ray://10.0.0.5:10001"}]'
    path.write_text(TOML.replace('["one", "two"]', table))
    assert [m.on for m in load_config(path, {}).ensemble("pair").members][1].endswith("10001")
