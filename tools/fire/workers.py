"""SIGKILL of workers that answer rows elsewhere: each row once, as one process answers it."""

from __future__ import annotations

import importlib.util
import json
import sys
import time

from eva_local.batch.fleet import Fleet
from eva_local.batch.forms import Wishes
from eva_local.batch.job import Errand, Progress, carry_out
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec
from eva_local.opening import open_ensemble
from tools.fire.campaign import Campaign, Finding, Row, WrongError, check
from tools.fire.kills import answers_in
from tools.processes import hosts, kill

_N_KILLS = 50
_N_WORKERS, _N_SLOTS, _N_ROWS = 2, 2, 300
# Of all kills, so many follow the one before at once, while another worker opens.
_AT_ONCE = 0.25


def workers(campaign: Campaign) -> None:
    """Kill workers of jobs on a Ray cluster of this machine, as often as asked for."""
    if importlib.util.find_spec("ray") is None:
        print("workers: left out without Ray: pip install 'eva-local[ray]'", file=sys.stderr)
        return
    n = _N_KILLS if campaign.n is None else campaign.n
    began, done, stories, n_found = time.monotonic(), 0, 0, len(campaign.findings)
    config = load_config(campaign.models / "models.toml", {}, {"threads": 1})
    spec = config.ensemble("pair")
    folder = campaign.scratch("workers")
    source = folder / "in.jsonl"
    rows = [json.dumps({"id": f"r{n}", "prompt": f"the {n} light"}) for n in range(_N_ROWS)]
    source.write_text("\n".join(rows), encoding="utf-8")

    def errand(name: str) -> Errand:
        return Errand(str(source), str(folder / name), spec, Wishes(spec.sampling))

    carry_out(errand("one.jsonl"), lambda _: open_ensemble(spec, parallel=4))
    wanted = answers_in(folder / "one.jsonl")
    while done < n:
        try:
            done += _story(campaign, spec, errand(f"{stories}.jsonl"), stories, n - done)
            found = answers_in(folder / f"{stories}.jsonl")
            wrong = [row for row in wanted if found.get(row) != wanted[row]]
            check(not wrong and len(found) == len(wanted), f"wrong rows: {wrong[:5]}")
        except WrongError as error:
            case = f"--part workers --seed {campaign.seed}, story {stories}"
            campaign.found(Finding("workers", "batch --on ray", case, str(error), str(folder)))
            break
        stories += 1
        campaign.told("workers", "batch --on ray", done, n)
    outcome = f"{stories} jobs done in the end"
    seconds, n_found = time.monotonic() - began, len(campaign.findings) - n_found
    campaign.rows.append(Row("workers", "`batch --on ray`", done, outcome, n_found, seconds))


def _story(campaign: Campaign, spec: EnsembleSpec, errand: Errand, number: int, most: int) -> int:
    """Do one job, in which workers are killed; return how many were."""
    chance = campaign.chance("workers", number)
    killed = set[int]()
    moment = chance.randint(0, 20)

    def told(progress: Progress) -> None:
        nonlocal moment
        alive = [pid for pid in hosts("RowHost") if pid not in killed]
        if alive and len(killed) < most and progress.n_done >= moment:
            killed.add(pid := chance.choice(alive))
            kill(pid)
            more = 0 if chance.random() < _AT_ONCE else chance.randint(1, 40)
            moment = progress.n_done + more

    def fleet(_: int) -> Fleet:
        return Fleet("ray", spec, _N_WORKERS, _N_SLOTS)

    outcome = carry_out(errand, fleet, told=told)
    check(outcome.finished and not outcome.n_failed, f"{outcome.n_failed} rows failed")
    return len(killed)
