"""Frozen specs: what a model is, where its file comes from, what an ensemble is made of."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from eva_local.errors import InputError
from eva_local.reading import Amount, Number, ReadError, Scale, Whole, Words, did_you_mean, settle
from eva_local.types import Sampling

Count = Annotated[int, Meta(ge=1)]
WeightRule = Literal["equal", "running", "prompt-perplexity", "thought"]
Share = Annotated[float, Meta(gt=0, le=1)]
# What a drafter may be that is no member's name.
NO_MEMBER = ("auto", "off", "ngram")
# OWNER/REPO of the hub.
REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*"
# Where a process is that is not this one: a Ray cluster, and there perhaps nodes with a label.
ON = r"ray(://[^\s#/]+)?(#[\w.-]+)?"
# llama.cpp opens the first part of a model, and finds the others by this ending.
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How llama.cpp opens a model.

    n_gpu_layers -1 offloads all layers where the build can; threads 0 uses all cores. main_gpu
    is the one GPU that is used; with -1 the layers are shared out among all, as tensor_split says
    or, where that is (), as llama.cpp thinks best. With batch_invariant a CPU
    computes each row of a batch as it would alone, so that a text does not depend on the texts
    beside it. A recurrent model keeps at most so many snapshots of a text, to go back to.
    """

    n_ctx: Annotated[int, Meta(ge=1, le=1 << 24)] = 4096
    n_gpu_layers: Annotated[int, Meta(ge=-1)] = -1
    main_gpu: Annotated[int, Meta(ge=-1)] = -1
    tensor_split: tuple[Amount, ...] = ()
    threads: Whole = 0
    n_batch: Count = 512
    flash_attention: Literal["auto", "on", "off"] = "auto"
    kv_type: Literal["f16", "q8_0", "q4_0", "f32"] = "f16"
    swa_full: bool = True
    batch_invariant: bool = False
    snapshots: Whole = 4

    def __post_init__(self) -> None:
        settle(self)

    def context(self, n_ctx_train: int | None) -> int:
        """Return how many tokens a text can have in a model that was trained for so many."""
        return min(self.n_ctx, n_ctx_train or self.n_ctx)


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """How the members' votes become one distribution.

    In the space of bytes no mapping is needed, and mapping and candidates have no effect.
    candidates 0 takes every token of a member. weights are equal, or numbers in the order of
    the members, or follow the members' likelihood of the text so far (running), of the prompt
    (prompt-perplexity) or of what each thought apart (thought): the softmax of nats per byte over
    weight_temperature, where running forgets by weight_decay per byte. The first two begin with
    what the last prompt_evidence bytes of a prompt say. Numbers may be negative with the geometric
    mean: what such a member thinks likely is made less likely. A geometric mean is raised to the
    power of sharpness: members err in part independently, so what they agree on is likelier than
    each of them says. Where the pivot's likeliest symbol has at least the probability gate, the
    others are not asked; 1 asks them always.

    The drafter proposes what may come next, which changes how soon an answer is there and nothing
    of it: ngram copies what followed before, a member's name lets that one go first, auto takes
    what is quickest.
    """

    space: Literal["pivot", "bytes"] = "pivot"
    mapping: Literal["surface", "surface-refined", "eva", "eva-paper"] = "surface-refined"
    combine: Literal["mean", "geometric"] = "mean"
    sharpness: Scale = 1.05
    filter: Literal["top-n", "off"] = "off"
    filter_n: Count = 3
    candidates: Whole = 320
    weights: WeightRule | tuple[Number, ...] = "running"
    weight_temperature: Scale = 0.13
    weight_decay: Share = 0.99
    prompt_evidence: Whole = 1000
    gate: Share = 1.0
    drafter: Words = "auto"

    def __post_init__(self) -> None:
        settle(self)
        # Each is divided by their sum.
        if not isinstance(self.weights, str) and not 0 < sum(self.weights) < math.inf:
            raise ReadError("weights", "must have a sum that is finite and above 0")

    def evidence_bytes(self, *, conversation: bool) -> int:
        """Return how many bytes at the end of a prompt are evidence before the answer begins.

        Most of a conversation is the templates' own words and what was answered before, which
        would have to be read again: there running weights begin with nothing.
        """
        following = ("prompt-perplexity",) if conversation else ("prompt-perplexity", "running")
        return self.prompt_evidence if self.weights in following else 0


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
    def parts(self) -> "tuple[HubSource, ...]":
        """Return the source of each file of the model, the first one first."""
        folder, slash, name = self.file.rpartition("/")
        return tuple(replace(self, file=folder + slash + each) for each in part_names(name))


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside `parts` wheels; in both templates `{n}` counts them from 1 and `{i}` from 0."""

    wheel: str
    file: str
    parts: int = 1

    def part(self, i: int) -> tuple[str, str]:
        """Return the pinned requirement of part `i` (from 0) and the file inside its wheel."""
        return self.wheel.format(n=i + 1, i=i), self.file.format(n=i + 1, i=i)


Source = PathSource | HubSource | WheelSource


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of all files of a model, whichever of them `name` is; mostly one."""
    found = _PART.fullmatch(name)
    if found is None or not 0 < int(found[2]) <= int(found[3]):
        return (name,)
    name, _, count, ending = found.groups()
    return tuple(f"{name}-{i:05}-of-{count}{ending}" for i in range(1, int(count) + 1))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: where its GGUF file comes from and how it is loaded.

    With `on` it is opened by a process elsewhere, from a file there: see `Worker`.
    `size` is that of all its files together. `sha256` is that of its file; of a model in several
    files, it is that of the files' checksums, one a line. A `chat_template` stands in place of
    the file's own, and `chat_template_kwargs` are told to it.
    """

    name: str
    source: Source
    sha256: str | None = None
    size: int | None = None
    licence: str = ""
    description: str = ""
    load: LoadSettings = field(default_factory=LoadSettings)
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict, hash=False)
    on: str = ""

    def shortened(self, n_ctx: int) -> str:
        """Say that a context of `n_ctx` tokens is less than was asked for; "" where it is not."""
        if n_ctx >= self.load.n_ctx:
            return ""
        why = "the model was trained for no longer texts"
        return f"{self.name}: n_ctx is {n_ctx}, not {self.load.n_ctx}: {why}"


@dataclass(frozen=True, slots=True)
class MemberSpec(ModelSpec):
    """A model and the role that it plays in an ensemble, under a name of the member's own.

    `system` comes before the system message of a conversation, `prefix` before the first message
    of its user, and before a plain text.
    """

    system: str = ""
    prefix: str = ""

    @classmethod
    def of(cls, model: ModelSpec, **role: Any) -> "MemberSpec":
        """Return a model in a role; what is not said is as the model has it."""
        if isinstance(model, MemberSpec) and not role:
            return model
        return cls(**{each.name: getattr(model, each.name) for each in fields(model)} | role)

    @property
    def role(self) -> tuple[object, ...]:
        """What sets it apart from other members of its model."""
        return self.system, self.prefix, self.chat_template, self.chat_template_kwargs

    @property
    def opened(self) -> object:
        """What is opened for it: members that have it in common share it."""
        return self.source, self.load, self.on

    def is_of(self, other: "MemberSpec") -> bool:
        """Return whether both are roles of one opened model."""
        return self.opened == other.opened


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """Members that write one answer together; `pivot` names the one with the shared space."""

    name: str
    members: tuple[MemberSpec, ...]
    pivot: str
    fusion: FusionSettings = field(default_factory=FusionSettings)
    sampling: Sampling = field(default_factory=Sampling)
    description: str = ""
    called: str = field(default="", compare=False)  # by its user, with files' whole paths

    def __post_init__(self) -> None:
        if not all(isinstance(member, ModelSpec) for member in self.members):
            raise InputError(f"members must be a sequence of ModelSpec, not {self.members!r:.60}")
        object.__setattr__(self, "members", tuple(map(MemberSpec.of, self.members)))
        names = [member.name for member in self.members]
        if len(set(names)) < len(names) or not set(names).isdisjoint(NO_MEMBER):
            told = f"give each its own name, none of {', '.join(NO_MEMBER)}"
            raise InputError(f"members of {self.name}: {', '.join(names)}: {told}")
        if self.pivot not in names:
            hint = did_you_mean(str(self.pivot), names)
            raise InputError(f"pivot {self.pivot!r} is no member of {self.name}; {hint}")
        drafter, weights = self.fusion.drafter, self.fusion.weights
        if isinstance(weights, tuple) and (n := len(weights)) != len(names):
            raise InputError(f"weights must be one for each of {', '.join(names)}, not {n}")
        if drafter not in (known := [*NO_MEMBER, *names]):
            hint = did_you_mean(drafter, known)
            raise InputError(f"drafter {drafter} is no member of {self.name}; {hint}")
        if self.fusion.combine == "mean" and not isinstance(weights, str) and min(weights) < 0:
            raise InputError("a negative weight needs combine = geometric")

    @property
    def pivot_index(self) -> int:
        """Return the place of the pivot among the members."""
        return [member.name for member in self.members].index(self.pivot)
