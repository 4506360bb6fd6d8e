"""The command `bench`: what an ensemble costs against its members."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from eva_local.cli import outputs
from eva_local.cli.options import Given, Load


def bench(
    load: Load, overrides: Given, json_out: Path | None, html_out: Path | None, **what: Any
) -> None:
    """Measure what an ensemble costs against its members."""
    from eva_local.bench.trial import measure, report_page

    outputs.refuse_outputs({"json_out": json_out, "html_out": html_out})
    spec = load(overrides).ensemble()
    with closing(outputs.ProgressDisplay()) as progress:
        benchmark = measure(spec, **what, report=progress)
    show = partial(outputs.print_report, "bench/report.txt", benchmark=benchmark)
    page = partial(report_page, benchmark)
    outputs.write_outputs(asdict(benchmark), show, page, json_out, html_out)
