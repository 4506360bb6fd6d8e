"""From the name of an ensemble, or its spec, to one that answers: models, mappings, space.

How many texts are best written side by side is as many as fit, and as make it faster.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

from eva_local.alignment.library import find_or_build, mapping_folders, warn_if_foreign
from eva_local.api import Ensemble, Report
from eva_local.cluster.member import RemoteModel
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec, LoadSettings, MemberSpec
from eva_local.engine.engine import Engine
from eva_local.errors import InputError, ModelError
from eva_local.llama.backend import can_offload, free_on_gpus, must_take_turns
from eva_local.llama.llama_model import MOST_SEQUENCES, LlamaModel
from eva_local.llama.model import ALL, Model
from eva_local.models.store import locate, marks, size
from eva_local.reading import shown
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling

log = logging.getLogger("eva_local")

# More texts than this gain little on any machine, and wait for each other's prompts.
MOST = 16
# Memory that stays free for everything else, as a share of what is free now.
_LEFT_FREE = 0.25


def load(
    ensemble: str | Path | Iterable[str | Path] | None = None,
    *,
    members: Iterable[str | Path] | None = None,
    pivot: str | None = None,
    config: str | Path | None = None,
    report: Report | None = None,
    parallel: int = 1,
    **settings: object,
) -> Ensemble:
    """Open an ensemble (or one model) by its name in models.toml, or a GGUF file.

    Several names or files, here or as `members`, are an ensemble of them, whose `pivot` is the
    first unless it is named. `config` names a further models.toml; `settings` override keys of
    [defaults]. `parallel` answers are written side by side at most, each with memory of its own.
    Use the result in a `with` block, which frees the memory.

    Raises ConfigError, StoreError (a file that must be pulled first), ModelError.
    """
    if parallel < 1:
        raise InputError(f"parallel must be at least 1, not {parallel}")
    effective = load_config(Path(config) if config else None, overrides=settings, of_python=True)
    if members is not None and ensemble is not None:
        raise InputError("give an ensemble or members, not both")
    named: Any = ensemble if members is None else members
    if members is not None or not isinstance(named, str | None):
        is_one = isinstance(named, str) or not isinstance(named, Iterable)
        each = [named] if is_one else list(named)
        if not each or not all(isinstance(one, str | Path) for one in each):
            raise InputError(f"members must be names or files, not {shown(named)}")
        named = list(map(str, each))
    return open_ensemble(effective.ensemble(named, pivot), report, parallel=parallel)


def open_ensemble(
    spec: EnsembleSpec, report: Report | None = None, *, parallel: int = 1
) -> Ensemble:
    """Open the members of `spec` for `parallel` texts, and the mappings between them."""
    with contextlib.ExitStack() as stack:
        bytewise = spec.fusion.space == "bytes"
        opened = open_models(spec, report, parallel=parallel, bytewise=bytewise)
        models = stack.enter_context(opened)
        return ensemble_of(spec, models, report=report, parallel=parallel, resources=stack)


def open_widest(spec: EnsembleSpec, report: Report | None = None, *, most: int = MOST) -> Ensemble:
    """Open an ensemble with as many slots as memory has room for, at most `most`.

    Raises ModelError where not even one text fits.
    """
    slots = slots_that_fit(spec, most)
    while True:
        try:
            return open_ensemble(spec, report, parallel=slots)
        except ModelError:
            # A plan is that of one text, and says nothing of machines elsewhere.
            if slots == 1:
                raise
            slots //= 2


def ensemble_of(
    spec: EnsembleSpec,
    models: Sequence[Model],
    sampling: Sampling | None = None,
    report: Report | None = None,
    *,
    parallel: int = 1,
    resources: contextlib.ExitStack | None = None,
) -> Ensemble:
    """Let models that are open for `parallel` texts answer as `spec`, and leave them open.

    Their caches are emptied. It takes over the `resources`, which are closed with it.
    """
    for model in models:
        model.remove(ALL, 0)
    names = [member.name for member in spec.members]
    offloads = can_offload() and all(member.load.n_gpu_layers for member in spec.members)
    shared_out = any(member.load.main_gpu < 0 for member in spec.members)
    all_beside = len(models) > 1 and offloads and not (shared_out and must_take_turns())
    beside = [model for model in models if all_beside or isinstance(model, RemoteModel)]
    engine = Engine(names, models, _space(spec, models, report), spec.fusion, side_by_side=beside)
    resources = resources or contextlib.ExitStack()
    resources.callback(engine.close)
    sampling = sampling or spec.sampling
    return Ensemble(spec, models, engine, sampling, resources.pop_all(), parallel=parallel)


@contextlib.contextmanager
def open_models(
    spec: EnsembleSpec, report: Report | None = None, *, parallel: int = 1, bytewise: bool = False
) -> Iterator[list[LlamaModel | RemoteModel]]:
    """Open the members of `spec` in llama.cpp, here or elsewhere, for the length of a `with` block.

    `bytewise`, they can follow several rows of tokens in each of `parallel` texts, as bytes need.
    """
    # Members in several roles of one model share it.
    firsts = {each.opened: each for each in spec.members[::-1]}.values()
    paths = {one: Path() if one.on else locate(one) for one in spec.members if one in firsts}
    models: dict[object, LlamaModel | RemoteModel] = {}
    notices: list[str] = []
    with contextlib.ExitStack() as stack:
        for member, path in paths.items():
            told = report and partial(report, f"loading {member.name}")
            opened: Callable[..., LlamaModel | RemoteModel] = partial(RemoteModel, member)
            if not member.on:
                opened = partial(LlamaModel, path, member.load, progress=told)
            n_sequences = parallel * sum(map(member.is_of, spec.members))
            model = opened(n_sequences=n_sequences, n_branches=BRANCHES if bytewise else 1)
            models[member.opened] = model
            stack.callback(model.close)
            notices.append(member.shortened(model.n_ctx))
            if not model.vocabulary.end_ids:
                notices.append(
                    f"{model.path.name} has no token that ends an answer: max_tokens ends it"
                )
            if bytewise and not member.load.swa_full:
                notices.append(f"{member.name}: bytes need a whole window, as with swa_full = true")
        for one, other in combinations(spec.members, 2):
            twice = one.role == other.role and spec.sampling.thinking != "apart"
            if twice and not marks(one).isdisjoint(marks(other)):
                both = f"members {one.name} and {other.name} are the same model in the same role"
                notices.append(f"{spec.name}: {both}, which has two votes")
        if spec.fusion.weights == "thought" and spec.sampling.thinking != "apart":
            notices.append(f"{spec.name}: weights = thought are equal without thinking = apart")
        if spec.fusion.gate < 1 and spec.fusion.drafter not in ("auto", "off"):
            notices.append(f"{spec.name}: nothing is drafted, as the gate asks one after the other")
        for notice in dict.fromkeys(filter(None, notices)):
            log.warning("%s", notice)
        yield [models[member.opened] for member in spec.members]


def _space(
    spec: EnsembleSpec, models: Sequence[Model], report: Report | None
) -> PivotSpace | ByteSpace:
    if spec.fusion.space == "bytes":
        return ByteSpace(models, pivot=spec.pivot_index)
    pivot = models[spec.pivot_index]
    folders = mapping_folders()
    mappings = []
    for member, model in zip(spec.members, models, strict=True):
        warn_if_foreign(member.name, model, spec.pivot, pivot)
        told = report and partial(report, f"mapping {member.name} to {spec.pivot}")
        mappings.append(find_or_build(spec.fusion.mapping, model, pivot, folders, told))
    return PivotSpace(models, mappings, pivot=spec.pivot_index, n_candidates=spec.fusion.candidates)


def slots_that_fit(spec: EnsembleSpec, most: int) -> int:
    """Return how many texts, at most `most`, fit into memory beside the weights."""
    for member in (each for each in spec.members if not each.on):
        n_rows = sum(map(member.is_of, spec.members)) * planned(spec, member).n_branches
        # One sequence may have to guard a window.
        most = max(1, min(most, (MOST_SEQUENCES - 1) // n_rows))
    for _, free, weights, caches in rooms(spec):
        left = (free - sum(weights.values())) * (1 - _LEFT_FREE)
        most = max(1, min(most, int(left / max(caches, 1))))
    return most


def rooms(spec: EnsembleSpec) -> Iterator[tuple[str, int, dict[MemberSpec, int], int]]:
    """Yield each memory of which it is told what is free: its name, that, and what members need.

    That are weights, by the first member of each model that lies there, and the caches of a text.
    GPUs that share out a member's layers count as one. Left out is who lies half on a GPU, or
    elsewhere.
    """
    gpus, lying = free_on_gpus(), dict[int | None, list[MemberSpec]]()
    for member in (each for each in spec.members if not each.on):
        home = member.load.main_gpu if gpus and member.load.n_gpu_layers else None
        if home is None or (home < len(gpus) and member.load.n_gpu_layers < 0):
            lying.setdefault(home, []).append(member)
    for home, members in lying.items():
        free = free_memory() if home is None else sum(gpus) if home < 0 else gpus[home]
        where = "" if home is None else " of all GPUs" if home < 0 else f" of GPU {home}"
        firsts = {member.opened: member for member in members[::-1]}.values()
        plans = {member: planned(spec, member).working_bytes for member in firsts}
        weights = {member: (size(member) or 0) + plan for member, plan in plans.items()}
        caches = sum(planned(spec, member).text_bytes for member in members)
        if free is not None:
            yield f"memory{where}", free, weights, caches


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that are free, or None where the system does not tell."""
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        # What is free is not told here; half of all there is rarely is too much.
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    with contextlib.suppress(OSError, ValueError):
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        if found := re.search(r"^MemAvailable:\s*(\d+)", told, re.MULTILINE):
            limits = [int(found[1]) * 1024]
    with contextlib.suppress(OSError, ValueError):
        # What a container may still use.
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        limits.append(max(limit - used, 0))
    return min(limits, default=None)


def planned(spec: EnsembleSpec, member: MemberSpec) -> LlamaModel:
    """Return the model of a member as one text needs it, without its weights and closed."""
    path, branches = locate(member), BRANCHES if spec.fusion.space == "bytes" else 1
    return plan(path, member.load, branches, path.stat().st_mtime_ns)


@lru_cache
def plan(path: Path, load: LoadSettings, n_branches: int, _changed: int = 0) -> LlamaModel:
    """Return a model as it would be for one text, closed: no memory is taken for it."""
    with LlamaModel(path, load, n_branches=n_branches, unfilled=True) as model:
        return model
