"""Made-up traces: realistic enough to look at, the same for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from eva_local.engine.detokenizer import TextStream
from eva_local.trace import TraceFile
from eva_local.types import Ballot, Candidate, Message, Step, Trace, Usage

MEMBERS = ("qwen2.5-coder-0.5b", "smollm2-135m", "gemma3-270m")
PROMPT = (
    Message("system", "You are a helpful assistant."),
    Message("user", "Why is the sea salty? Show me a line of Python too."),
)
TEXT = """The sea is salty because rivers carry dissolved minerals from the land into it. \
Water leaves by evaporation, the salt stays — about 3.5 % by weight. 🌊

```python
def salinity(grams, litres):
    return grams / litres
```
"""
LONG = """When rain falls, it takes up a little carbon dioxide from the air and becomes a weak \
acid. It wears away the rocks, and the ions that are set free travel with the rivers to the sea. \
Two of them, chloride and sodium, make up most of what is dissolved there.

Hydrothermal vents add more: water seeps into the hot rock below the ocean floor, dissolves \
metals, and rises again. Where water evaporates, the salt remains; where ice melts, the sea is \
fresher. 海水の塩分 is about 35 g/kg, in the Dead Sea (ים המלח) ten times as much.

"""
_OTHERS = [" a", " of", " salt", " water", ",", ".", "\n", " which", " and", " minerals", " it"]
_MS = (18.0, 6.0, 9.5)


def pieces(text: str) -> list[bytes]:
    """Cut text into pieces as a tokeniser would: words, marks, and emoji in two halves."""
    cut: list[bytes] = []
    for word in re.findall(r" ?\w{1,7}|\n+| {2,}|\s|[^\w\s]+", text):
        data = word.encode()
        if ord(word[-1]) > 0xFFFF:
            cut += [data[:-2], data[-2:-1], data[-1:]]
        else:
            cut.append(data)
    return cut


def vote(
    chance: random.Random, chosen: bytes, belief: float
) -> tuple[tuple[Candidate, ...], float]:
    """Return a member's candidates, and what it gave the chosen piece."""
    others = [word.encode() for word in chance.sample(_OTHERS, 7) if word.encode() != chosen]
    left = 1 - belief
    rest = []
    for other in others[:6]:
        share = left * chance.uniform(0.3, 0.7)
        rest.append(Candidate(other, share))
        left -= share
    top = sorted([Candidate(chosen, belief), *rest], key=lambda one: -one.probability)
    return tuple(top[:5]), belief


def made_steps(cut: Sequence[bytes], members: Sequence[str] = MEMBERS, seed: int = 1) -> list[Step]:
    """Return steps that write the pieces, END after them."""
    chance = random.Random(seed)
    steps = []
    for number, piece in enumerate([*cut, b""]):
        easy = chance.random() < 0.55
        votes = [
            vote(chance, piece, chance.uniform(0.75, 0.99) if easy else chance.betavariate(1.2, 2))
            for _ in members
        ]
        stayed = [easy or top[0].piece == piece or chance.random() < 0.5 for top, _ in votes]
        stayed[0] |= not any(stayed)
        ballots = tuple(
            Ballot(
                member=name,
                top=top,
                chosen=belief,
                stayed=stays,
                reason="" if stays else "its first choice is in no other member's top 3",
                weight=1 / sum(stayed) if stays else 0.0,
                seconds=ms * chance.uniform(0.9, 1.3) / 1000 * (1 if number else 12),
            )
            for name, (top, belief), stays, ms in zip(members, votes, stayed, _MS, strict=False)
        )
        fused: dict[bytes, float] = {}
        for ballot in ballots:
            for one in ballot.top:
                share = ballot.weight * one.probability
                fused[one.piece] = fused.get(one.piece, 0.0) + share
        top = sorted((Candidate(*pair) for pair in fused.items()), key=lambda one: -one.probability)
        steps.append(Step(piece, "", fused[piece], tuple(stayed), trace=Trace(tuple(top), ballots)))
    return _ended(steps, members)


def dissenters(piece: bytes, ballots: Sequence[Ballot]) -> tuple[str, ...]:
    """Return who would have chosen another piece."""
    return tuple(one.member for one in ballots if one.top and one.top[0].piece != piece)


def _ended(steps: list[Step], members: Sequence[str]) -> list[Step]:
    usage = Usage(
        members=tuple(members),
        prompt_tokens=(31,) * len(members),
        cached_tokens=(0,) * len(members),
        filtered=tuple(sum(not s.stayed[m] for s in steps) for m in range(len(members))),
        decode_seconds=(0.9,) * len(members),
        prompt_seconds=(0.4,) * len(members),
        steps=len(steps) - 1,
        seconds=len(steps) * 0.05,
        first_seconds=0.41,
    )
    stream = TextStream()
    written = []
    for number, step in enumerate(steps, 1):
        last = number == len(steps)
        text = stream.push(step.piece) + (stream.finish() if last else "")
        others = dissenters(step.piece, step.trace.ballots if step.trace else ())
        written.append(
            Step(
                piece=step.piece,
                text=text,
                probability=step.probability,
                stayed=step.stayed,
                finish_reason="stop" if last else None,
                usage=usage if last else None,
                trace=step.trace,
                disagreement=0.5 if others else 0.1,
                dissenters=others,
            )
        )
    return written


def thinking_steps(thought: str, answer: str) -> list[Step]:
    """Return steps that write a thought, the mark that ends it, and an answer."""
    *told, end = made_steps(pieces(thought), seed=3)
    steps = [replace(step, text="", reasoning=step.text) for step in told]
    mark = replace(end, piece=b"</think>", reasoning="", finish_reason=None, usage=None)
    *answered, last = made_steps(pieces(answer))
    assert last.usage is not None
    n_thought = len(steps) + 1
    usage = replace(last.usage, steps=last.usage.steps + n_thought, reasoning_steps=n_thought)
    return [*steps, mark, *answered, replace(last, usage=usage)]


def made_trace(cut: Sequence[bytes], members: Sequence[str] = MEMBERS) -> TraceFile:
    steps = made_steps(cut, members)
    return TraceFile(
        ensemble="trio",
        members=tuple(members),
        pivot=members[0],
        prompt=PROMPT,
        settings={"mapping": "surface-refined", "filter": "top-n", "filter_n": 3, "weights": [1]},
        steps=tuple(steps),
        finish_reason=steps[-1].finish_reason,
        usage=steps[-1].usage,
    )
