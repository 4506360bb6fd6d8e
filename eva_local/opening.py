"""From the name of an ensemble, or its spec, to one that answers: models, mappings, space."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

from eva_local.alignment.library import find_or_build, mapping_folders, warn_if_foreign
from eva_local.api import Ensemble, Report
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.engine import Engine
from eva_local.llama.backend import can_offload
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Model
from eva_local.models.store import locate, marks
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling

log = logging.getLogger("eva_local")


def load(
    ensemble: str | None = None,
    *,
    config: str | Path | None = None,
    report: Report | None = None,
    parallel: int = 1,
    **settings: object,
) -> Ensemble:
    """Open an ensemble (or one model) by its name in models.toml.

    `config` names another models.toml; `settings` override keys of its [defaults]. `parallel`
    answers are written side by side at most, each with memory of its own. Use the result in a
    `with` block, which frees the memory.

    Raises ConfigError, StoreError (a file that must be pulled first), ModelError.
    """
    effective = load_config(Path(config) if config else None, overrides=settings)
    return open_ensemble(effective.ensemble(ensemble), report=report, parallel=parallel)


def open_ensemble(
    spec: EnsembleSpec,
    sampling: Sampling | None = None,
    report: Report | None = None,
    *,
    parallel: int = 1,
) -> Ensemble:
    """Open the members of `spec` for `parallel` texts, and the mappings between them."""
    with contextlib.ExitStack() as stack:
        bytewise = spec.fusion.space == "bytes"
        opening = open_models(spec, report, parallel=parallel, bytewise=bytewise)
        models = stack.enter_context(opening)
        return ensemble_of(spec, models, sampling, report, parallel=parallel, resources=stack)


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

    Their caches are emptied: an ensemble that had these models before must not go on. It takes
    over the `resources`, which are closed with it.
    """
    for model in models:
        model.remove(ALL, 0)
    names = [member.name for member in spec.members]
    on_devices = can_offload() and all(member.load.n_gpu_layers for member in spec.members)
    space = _space(spec, models, report)
    side_by_side = len(models) > 1 and on_devices
    engine = Engine(names, models, space, spec.fusion, side_by_side=side_by_side)
    resources = resources or contextlib.ExitStack()
    resources.callback(engine.close)
    sampling = sampling or spec.sampling
    return Ensemble(spec, models, engine, sampling, resources.pop_all(), parallel=parallel)


@contextlib.contextmanager
def open_models(
    spec: EnsembleSpec,
    report: Report | None = None,
    *,
    parallel: int = 1,
    bytewise: bool = False,
) -> Iterator[list[LlamaModel]]:
    """Open the members of `spec` in llama.cpp for the length of a `with` block.

    Models that are opened `bytewise` can follow several rows of tokens in each of `parallel`
    texts, as the space of bytes needs; they serve any other space too.
    """
    paths = [locate(member) for member in spec.members]
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(
                LlamaModel(
                    path,
                    member.load,
                    n_sequences=parallel,
                    n_branches=BRANCHES if bytewise else 1,
                    progress=_labelled(report, f"loading {member.name}"),
                )
            )
            for path, member in zip(paths, spec.members, strict=True)
        ]
        pairs = zip(spec.members, models, strict=True)
        shortened = [member.shortened(model.n_ctx) for member, model in pairs]
        for notice in dict.fromkeys(filter(None, (*shortened, *_twins(spec)))):
            log.warning("%s", notice)
        yield models


def _twins(spec: EnsembleSpec) -> Iterator[str]:
    """Say which members are one model."""
    for one, other in combinations(spec.members, 2):
        if one == other or not marks(one).isdisjoint(marks(other)):
            yield (
                f"{spec.name}: members {one.name} and {other.name} are the same model, which is "
                "decoded twice and has two votes"
            )


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
        told = _labelled(report, f"mapping {member.name} to {spec.pivot}")
        mappings.append(find_or_build(spec.fusion.mapping, model, pivot, folders, told))
    return PivotSpace(models, mappings, pivot=spec.pivot_index, n_candidates=spec.fusion.candidates)


def _labelled(report: Report | None, label: str) -> Callable[[float], None] | None:
    return None if report is None else lambda share: report(label, share)
