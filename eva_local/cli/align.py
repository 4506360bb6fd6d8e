"""The command `align`: learn the mappings of an ensemble, and say how good they are."""

from __future__ import annotations

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
    """What is known of one mapping; None where it has no file, or was here already."""

    member: str
    pivot: str
    method: str
    state: str
    anchors: int
    mapped: float
    seconds: float | None = None
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
    vocabulary that is mapped, and what it cost. What a mapping is worth says
    `eval --compare mapping=METHOD`.
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
    from eva_local.alignment import library
    from eva_local.alignment.mapping import twins

    folders = library.mapping_folders()
    path = None if force else library.find(method, model, pivot, folders)
    state, seconds = "here", None
    if path is None:
        told = partial(progress, f"{method}: {names[0]} to {names[1]}")
        began = time.perf_counter()
        path = library.build(method, model, pivot, folders[0], told)
        state, seconds = "built", time.perf_counter() - began
    return MappingReport(
        *names,
        method,
        state,
        anchors=int((twins(model.vocabulary, pivot.vocabulary) >= 0).sum()),
        mapped=library.read(path, model, pivot).share,
        seconds=seconds,
        bytes=path.stat().st_size,
        path=str(path),
    )


def _print(reports: list[MappingReport], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(report) for report in reports])
        return
    print_table(
        ("MEMBER", "PIVOT", "METHOD", "STATE", "ANCHORS", "MAPPED", "SECONDS", "FILE KB"),
        [
            (
                *(report.member, report.pivot, report.method, report.state, report.anchors),
                shown(report.mapped, ".1%"),
                shown(report.seconds, ".1f"),
                None if report.bytes is None else report.bytes // 1024,
            )
            for report in reports
        ],
    )
