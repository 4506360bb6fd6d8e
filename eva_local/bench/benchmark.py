"""What a bench came to, as the table, the report and the JSON have it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version

from eva_local.bench.pace import Pace
from eva_local.config.specs import EnsembleSpec
from eva_local.llama.backend import can_offload


@dataclass(frozen=True, slots=True)
class Trial:
    """Texts of one length, so many side by side.

    `context` tokens were asked for; `prompt_tokens` is what each member read. `first_seconds`
    is the time to the first token of a text that nothing is known of, `cached_first_seconds`
    that of all texts after a prompt that the caches hold. `peak_memory` is in bytes, of the
    process, up to the end of the trial.
    """

    context: int
    texts: int
    prompt_tokens: tuple[int, ...]
    reading: Pace | None
    first_seconds: float | None
    cached_first_seconds: float
    writing: Pace
    peak_memory: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All trials of an ensemble, and the machine that they ran on."""

    ensemble: str
    members: tuple[str, ...]
    pivot: str
    space: str
    rounds: int
    machine: str
    cores: int
    threads: tuple[int, ...]
    can_offload: bool
    llama_cpp_python: str
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, spec: EnsembleSpec, rounds: int, trials: tuple[Trial, ...]) -> Benchmark:
        """Add what is known of the ensemble and the machine."""
        return cls(
            ensemble=spec.name,
            members=tuple(member.name for member in spec.members),
            pivot=spec.pivot,
            space=spec.fusion.space,
            rounds=rounds,
            machine=f"{platform.system()} {platform.machine()}",
            cores=os.cpu_count() or 1,
            threads=tuple(member.load.threads for member in spec.members),
            can_offload=can_offload(),
            llama_cpp_python=version("llama-cpp-python"),
            trials=trials,
        )

    def as_json(self) -> dict[str, object]:
        """Return all figures; times are in seconds, memory in bytes."""
        return asdict(self)
