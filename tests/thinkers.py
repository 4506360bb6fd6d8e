"""Fake models that think: each writes what it is told to, in marks of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from batches import ensemble_of_models
from engines import bytes_engine
from fakes import WORDS_A, WORDS_B, FakeModel, longest_match

from eva_local.api import Ensemble
from eva_local.config.specs import EnsembleSpec, FusionSettings, MemberSpec, PathSource
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Kind, Vocabulary

TURNS = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n"
)
#: Told by an argument, and thinking untold, as Qwen3 is.
TOLD = (
    TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
#: Only where it is told, as DeepSeek V3.1 does.
BY_ARGUMENT = TURNS + "{% if enable_thinking %}<think>\n{% else %}</think>{% endif %}{% endif %}"
#: Never told: it begins to think where it is asked, as R1's distills do.
UNTOLD = TURNS + "<think>\n{% endif %}"
#: Other marks, and none that is told, as Ministral's.
OTHER = TURNS + "{% if false %}[THINK]{% endif %}{% endif %}"
NO_THOUGHTS = TURNS + "{% endif %}"


class Thinking(FakeModel):
    """A model that wants to write `says`, where its marks of thoughts are tokens of a `kind`.

    With None they are none: they are spelled as any text is. `seen` is what it last read.
    """

    def __init__(
        self,
        template: str,
        says: str,
        *,
        words: Sequence[bytes] = WORDS_A,
        kind: Kind | None = Kind.USER,
        n_ctx: int = 512,
    ) -> None:
        super().__init__([*words, *(bytes([byte]) for byte in b"<>/[]T")], n_ctx=n_ctx)
        self.chat_template = template
        self.says = says
        if kind is not None:
            self.vocabulary = _with_marks(self.vocabulary, kind)
            self.tokenizer = Tokenizer(self.vocabulary, longest_match(self.vocabulary))
        self._logits = self._scripted
        self.seen, self.opening = "", "assistant\n"

    def _scripted(self, tokens: Sequence[int]) -> np.ndarray:
        vocab = self.vocabulary
        self.seen = "".join(vocab.spelled(token) for token in tokens)
        said = self.seen.rpartition(self.opening)[2]
        row = np.zeros(len(vocab), dtype=np.float32)
        rest = self.says.removeprefix(said)
        wanted = min(vocab.end_ids)
        if len(rest) < len(self.says) or not said:
            spelled = {vocab.spelled(i): i for i in range(len(vocab)) if vocab.spelled(i)}
            wanted = next(
                (spelled[rest[:n]] for n in range(len(rest), 0, -1) if rest[:n] in spelled), wanted
            )
        row[wanted] = 20
        return row


def _with_marks(old: Vocabulary, kind: Kind) -> Vocabulary:
    marks = ["<think>", "</think>", "[THINK]", "[/THINK]"]
    spelled = [mark.encode() if kind == Kind.USER else b"" for mark in marks]
    first = len(old)
    return Vocabulary(
        [*old.pieces, *spelled],
        [*old.kinds, *[kind] * len(marks)],
        old.end_ids,
        bos_id=old.bos_id,
        eos_id=old.eos_id,
        add_bos=True,
        markers={**old.markers, **{mark: first + i for i, mark in enumerate(marks)}},
    )


def thinking_ensemble(
    *models: FakeModel,
    space: str = "pivot",
    parallel: int = 1,
    arguments: Mapping[str, object] | None = None,
    weights: str | tuple[float, ...] = "equal",
    prefixes: Sequence[str] = (),
    **options: Any,
) -> Ensemble:
    """An ensemble m0, m1, ... of models, of which one may come several times, in other roles."""
    source = PathSource(Path("fake.gguf"))
    members = tuple(
        MemberSpec(f"m{number}", source, chat_template_kwargs=arguments or {}, prefix=prefix)
        for number, prefix in enumerate(prefixes or [""] * len(models))
    )
    fusion = FusionSettings(filter="off", space=space, candidates=0, weights=weights, **options)
    spec = EnsembleSpec("pair", members, "m0", fusion)
    if space == "pivot":
        return ensemble_of_models(spec, list(models), parallel)
    engine = bytes_engine(*models, fusion=fusion)
    return Ensemble(spec, models, engine, spec.sampling, ExitStack(), parallel=parallel)


__all__ = [
    "BY_ARGUMENT",
    "NO_THOUGHTS",
    "OTHER",
    "TOLD",
    "UNTOLD",
    "WORDS_B",
    "Thinking",
    "thinking_ensemble",
]
