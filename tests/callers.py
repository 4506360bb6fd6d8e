"""Models that call functions where they are told of some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fakes import WORDS_A, FakeModel

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
#: What is no call, and becomes one under a grammar.
WRONG = "<tool_call> add(a=1, b=2)</tool_call>"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


class Calculator(FakeModel):
    """Calls a function once or twice, and says what came of it; or has nothing to call."""

    def __init__(self) -> None:
        super().__init__(WORDS_A, logits=self._wanted)

    def _wanted(self, tokens: Sequence[int]) -> Any:
        pieces = self.vocabulary.pieces
        said = b"".join(b"\0" if token == 1 else pieces[token] for token in tokens).decode(
            "utf-8", "replace"
        )
        asked, _, answer = said.rpartition("\0assistant\n")
        wanted = "There are no tools."
        if "<tool_response>" in asked:
            wanted = f"It is {asked.rpartition('<tool_response>')[2].split()[0]}."
        elif "You can call" in asked:
            calls = f"{CALL}\n{CALL}" if "both" in asked else WRONG if "wrong" in asked else CALL
            wanted = f"Let me see. {calls}"
        row = np.full(len(self.vocabulary), -20, dtype=np.float32)
        left = wanted.encode()[len(answer.encode()) :]
        row[self.vocabulary.ids[left[:1]] if left else 3] = 10
        return row
