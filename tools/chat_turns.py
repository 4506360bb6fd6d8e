"""Measure how long a chat waits for the first word of an answer, turn by turn.

    .venv/bin/python -m tools.chat_turns [ENSEMBLE]

One chat of ten turns with equally long messages. What a turn reads anew must not grow with the
conversation: turn 10 should begin within 1.3 times the wait of turn 2.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from eva_local.chat.chat import Chat
from eva_local.config.config import load_config
from eva_local.opening import open_ensemble
from eva_local.types import Sampling

TURNS = 10
TOPICS = ("sea", "sun", "sky", "ice", "dew", "fog", "mud", "oak", "elm", "ant")


def main(name: str) -> None:
    """Print a line for each turn, and the ratio."""
    waits = []
    with (
        open_ensemble(load_config().ensemble(name)) as ensemble,
        tempfile.TemporaryDirectory() as folder,
    ):
        chat = Chat(ensemble, Sampling(max_tokens=40), Path(folder), print)
        for number, topic in zip(range(1, TURNS + 1), TOPICS, strict=True):
            for _ in chat.ask(
                f"Tell me, in a few friendly words, what you like about the {topic}."
            ):
                pass
            answer = chat.last
            assert answer is not None
            usage = answer.steps[-1].usage
            assert usage is not None
            new = [n - c for n, c in zip(usage.prompt_tokens, usage.cached_tokens, strict=True)]
            waits.append(usage.first_seconds)
            print(
                f"turn {number:2}: first word after {1000 * waits[-1]:4.0f} ms; prompt "
                f"{'/'.join(map(str, usage.prompt_tokens))} tokens, new {'/'.join(map(str, new))}"
            )
        chat.close()
    print(f"turn {TURNS} against turn 2: {waits[-1] / waits[1]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
