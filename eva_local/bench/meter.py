"""A member whose decoding is timed, and can be done once more to time it alone."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from eva_local.bench.pace import UNKNOWN, MemberPart
from eva_local.llama.model import Logits, Model, Run

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Decoding:
    """One call of llama.cpp: when it began and ended, in seconds, and what it decoded."""

    began: float
    ended: float
    runs: Sequence[Run]


class Meter:
    """A model, as the engine sees one, that notes when llama.cpp decodes for it, in seconds."""

    def __init__(self, model: Model, clock: Clock = time.perf_counter) -> None:
        self._model = model
        self._clock = clock
        self.path = model.path
        self.vocabulary = model.vocabulary
        self.tokenizer = model.tokenizer
        self.chat_template = model.chat_template
        self.n_ctx = model.n_ctx
        self.n_batch = model.n_batch
        self.n_branches = model.n_branches
        self.n_snapshots = model.n_snapshots
        self.can_roll_back = model.can_roll_back
        self.holds = model.holds
        self.snapshot = model.snapshot
        self.reset()

    def reset(self) -> None:
        """Forget what was noted."""
        #: What was decoded since then.
        self.decodings: list[Decoding] = []
        self._can_repeat = self.can_roll_back

    def part(self) -> MemberPart:
        """Return what was decoded since `reset`, and how long that takes once more, by itself.

        The cache ends up as it was. Unknown is what cannot be done again: tokens cannot be taken
        back, or were since then.
        """
        n_tokens = sum(len(run.tokens) for each in self.decodings for run in each.runs)
        inside = sum(each.ended - each.began for each in self.decodings)
        return MemberPart(n_tokens, inside, alone=self._repeat())

    def _repeat(self) -> float:
        if not self._can_repeat:
            return UNKNOWN
        seconds = 0.0
        for runs in (each.runs for each in self.decodings):
            if not all(self._model.remove(run.seq_id, run.start) == run.start for run in runs):
                return UNKNOWN
            began = self._clock()
            self._model.decode(runs)
            seconds += self._clock() - began
        return seconds

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        began = self._clock()
        logits = self._model.decode(runs)
        self.decodings.append(Decoding(began, self._clock(), runs))
        return logits

    def decode_every(self, run: Run) -> Iterator[Logits]:
        done = 0
        began = self._clock()
        for block in self._model.decode_every(run):
            part = replace(run, start=run.start + done, tokens=run.tokens[done : done + len(block)])
            self.decodings.append(Decoding(began, self._clock(), [part]))
            done += len(block)
            yield block
            began = self._clock()

    def remove(self, seq_id: int, start: int) -> int:
        self._can_repeat &= not self.decodings
        return self._model.remove(seq_id, start)

    def copy(self, source: int, target: int, length: int = -1) -> int:
        self._can_repeat &= not self.decodings
        return self._model.copy(source, target, length)

    def close(self) -> None:
        """Leave the model open: it is its owner's."""


def busy(meters: Iterable[Meter]) -> float:
    """Return the seconds in which some member decoded: what overlaps counts once."""
    spans = sorted((each.began, each.ended) for meter in meters for each in meter.decodings)
    total, until = 0.0, float("-inf")
    for began, ended in spans:
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total
