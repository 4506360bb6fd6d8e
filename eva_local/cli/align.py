"""The command `align`: learn the mappings of an ensemble, and say how good they are."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from eva_local.cli.outputs import print_json, print_table, shown
from eva_local.cli.progress import ProgressDisplay, progress_shown
from eva_local.cli.session import Session, json_option, pass_session, setting_options

if TYPE_CHECKING:
    from eva_local.llama.llama_model import LlamaModel


@dataclass(frozen=True, slots=True)
class MappingReport:
    """What is known of one mapping; None where it was not measured."""

    member: str
    pivot: str
    method: str
    state: str
    anchors: int
    mapped: float
    held_out_rank_1: float | None = None
    held_out_rank_10: float | None = None
    retained: float | None = None
    seconds: float | None = None
    peak_mb: int | None = None
    bytes: int | None = None
    path: str | None = None


@click.command()
@setting_options("ensemble")
@click.option("--method", "methods", multiple=True, help="This mapping; may be repeated.")
@click.option("--force", is_flag=True, help="Build again what is here already.")
@json_option
@pass_session
def align(
    session: Session,
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
    from eva_local.alignment import library
    from eva_local.opening import open_models

    spec = session.load(overrides).ensemble()
    reports = []
    with progress_shown() as progress, open_models(spec) as models:
        pivot = models[spec.pivot_index]
        for member, model in zip(spec.members, models, strict=True):
            if member.name == spec.pivot:
                continue
            if model.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
                count = int(model.vocabulary.speakable.sum())
                reports.append(MappingReport(member.name, spec.pivot, "-", "shared", count, 1.0))
                continue
            for method in methods or (spec.fusion.mapping,):
                library.check_method(method)
                names = (member.name, spec.pivot)
                reports.append(_report(method, names, model, pivot, progress, force=force))
    _print(reports, as_json=as_json)


def _report(
    method: str,
    names: tuple[str, str],
    model: LlamaModel,
    pivot: LlamaModel,
    progress: ProgressDisplay,
    *,
    force: bool,
) -> MappingReport:
    from eva_local.alignment import library, quality
    from eva_local.alignment.mapping import twins

    told = partial(progress, f"{method}: {names[0]} to {names[1]}")
    folders = library.mapping_folders()
    path = None if force else library.find(method, model, pivot, folders)
    state, seconds, found = "here", None, None
    if path is None:
        began = time.perf_counter()
        path = library.build(method, model, pivot, folders[0], told)
        state, seconds = "built", time.perf_counter() - began
    if method in library.BY_EMBEDDING:
        sides = library.embedded(model), library.embedded(pivot)
        directions = library.BY_EMBEDDING[method].get("directions")
        found = quality.held_out(*sides, directions=directions, progress=told)
    mapping = library.read(path, model, pivot)
    return MappingReport(
        *names,
        method,
        state,
        anchors=int((twins(model.vocabulary, pivot.vocabulary) >= 0).sum()),
        mapped=mapping.share,
        held_out_rank_1=None if found is None else found.csls_1,
        held_out_rank_10=None if found is None else found.csls_10,
        retained=quality.retained_mass(model, mapping),
        seconds=seconds,
        peak_mb=_peak_mb(),
        bytes=path.stat().st_size,
        path=str(path),
    )


def _peak_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kilobytes.
    return peak // 2**20 if sys.platform == "darwin" else peak // 1024


def _print(reports: list[MappingReport], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(report) for report in reports])
        return
    kept = ("MAPPED", "RANK 1", "RANK 10", "RETAINED")
    print_table(
        ("MEMBER", "PIVOT", "METHOD", "STATE", "ANCHORS", *kept, "SECONDS", "PEAK MB", "FILE KB"),
        [
            (
                *(report.member, report.pivot, report.method, report.state, report.anchors),
                shown(report.mapped, ".1%"),
                shown(report.held_out_rank_1, ".1%"),
                shown(report.held_out_rank_10, ".1%"),
                shown(report.retained, ".1%"),
                shown(report.seconds, ".1f"),
                report.peak_mb,
                None if report.bytes is None else report.bytes // 1024,
            )
            for report in reports
        ],
    )
