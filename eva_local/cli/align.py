"""The command `align`: learn the mappings of an ensemble, and say how good they are."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import click

from eva_local.cli.options import Load, json_option, setting_options
from eva_local.cli.outputs import print_json, print_table, shown
from eva_local.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from eva_local.llama.llama_model import LlamaModel

# What is known of a mapping, beside its path, and the head of its column.
_FACTS = {
    "member": "MEMBER",
    "pivot": "PIVOT",
    "method": "METHOD",
    "state": "STATE",
    "anchors": "ANCHORS",
    "mapped": "MAPPED",
    "held_out_rank_1": "RANK 1",
    "held_out_rank_10": "RANK 10",
    "retained": "RETAINED",
    "seconds": "SECONDS",
    "bytes": "BYTES",
}


@click.command()
@setting_options("ensemble")
@click.option("--method", "methods", multiple=True, help="This mapping; may be repeated.")
@click.option("--force", is_flag=True, help="Build again what is here already.")
@json_option
@click.pass_obj
def align(
    load: Load,
    overrides: dict[str, object],
    methods: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Learn the mappings between the vocabularies of an ensemble.

    Every member is aligned to the pivot by the ensemble's own method, unless --method names
    others. Says of each mapping: anchors (tokens with equal bytes), the share of the
    vocabulary that is mapped, how many anchors that were held out are found again at rank 1
    and 10 (methods with embeddings), the probability that is kept on a sample of text, and
    what it cost.
    """
    from eva_local.opening import open_models

    spec = load(overrides).ensemble()
    reports: list[dict[str, object]] = []
    with closing(ProgressDisplay()) as progress, open_models(spec) as models:
        pivot = models[spec.pivot_index]
        for member, model in zip(spec.members, models, strict=True):
            if member.name == spec.pivot:
                continue
            if model.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
                count = int(model.vocabulary.speakable.sum())
                facts = (member.name, spec.pivot, "-", "shared", count, 1.0, *[None] * 6)
                reports.append(dict(zip((*_FACTS, "path"), facts, strict=True)))
                continue
            for method in methods or (spec.fusion.mapping,):
                names = (member.name, spec.pivot)
                reports.append(_report(method, names, model, pivot, progress, force=force))
    if as_json:
        print_json(reports)
    else:
        print_table(tuple(_FACTS.values()), [_worded(report) for report in reports])


def _report(
    method: str,
    names: tuple[str, str],
    model: LlamaModel,
    pivot: LlamaModel,
    progress: ProgressDisplay,
    *,
    force: bool,
) -> dict[str, object]:
    from eva_local.alignment import library, quality
    from eva_local.alignment.mapping import twins
    from eva_local.alignment.weights import output_layer

    told = partial(progress, f"{method}: {names[0]} to {names[1]}")
    folders = library.mapping_folders()
    path = None if force else library.find(method, model, pivot, folders)
    state, seconds, found = "here", None, None
    if path is None:
        began = time.perf_counter()
        path = library.build(method, model, pivot, folders[0], told)
        state, seconds = "built", time.perf_counter() - began
    if method in library.BY_EMBEDDING:
        sides = output_layer(model), output_layer(pivot)
        directions = library.BY_EMBEDDING[method].get("directions")
        found = quality.held_out(*sides, directions=directions, progress=told)
    mapping = library.read(path, model, pivot)
    return {
        "member": names[0],
        "pivot": names[1],
        "method": method,
        "state": state,
        "anchors": int((twins(model.vocabulary, pivot.vocabulary) >= 0).sum()),
        "mapped": mapping.share,
        "held_out_rank_1": None if found is None else found.csls_1,
        "held_out_rank_10": None if found is None else found.csls_10,
        "retained": quality.retained_mass(model, mapping),
        "seconds": seconds,
        "bytes": path.stat().st_size,
        "path": str(path),
    }


def _worded(report: dict[str, object]) -> list[str]:
    forms = dict.fromkeys(_FACTS, ".1%") | {"seconds": ".1f"}
    return [
        shown(report[key], form if isinstance(report[key], float) else "")
        for key, form in forms.items()
    ]
