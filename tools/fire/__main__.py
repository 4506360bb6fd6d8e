"""Let the program go through fire.

    .venv/bin/python -m tools.fire [--part kills] [--seed 0] [--n 500] [--json OUT]

Parts: kills, workers, damage, law, disks, clocks, memory, term; `soak` by itself, for as long as
`--seconds` say. Without a part, all but the soak. How far it is goes to stderr, with each finding
at once; the table comes in the end. Exit code 1: something was found. What was found can be had
again: a case rests on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from eva_local.llama.backend import library
from tools.fire.campaign import Campaign
from tools.fire.disks import clocks, disks, memory
from tools.fire.kills import kills
from tools.fire.law import law
from tools.fire.load import ended, soak
from tools.fire.subjects import SUBJECTS, damage
from tools.fire.workers import workers

PARTS: dict[str, Callable[[Campaign], None]] = {
    "kills": kills,
    "workers": workers,
    "damage": damage,
    "law": law,
    "disks": disks,
    "clocks": clocks,
    "memory": memory,
    "term": ended,
    "soak": soak,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that were asked for; return 1 where something was found."""
    parser = argparse.ArgumentParser(prog="tools.fire", description="Let it go through fire.")
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given again")
    parser.add_argument("--what", choices=SUBJECTS, help="of the damage, one kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, help="trials, where a part has its own number")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of the soak")
    parser.add_argument("--ensemble", default="pair", help="of load and soak")
    parser.add_argument("--folder", type=Path, help="where work and findings lie")
    parser.add_argument("--json", type=Path, help="the figures as JSON")
    given = parser.parse_args(arguments)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="eva-local-fire-"))
    how = {key: getattr(given, key) for key in ("seed", "n", "first", "workers", "seconds")}
    campaign = Campaign(folder.resolve(), ensemble=given.ensemble, **how)
    # Of all cores, the workers and what they start have one each.
    os.environ["EVA_LOCAL_THREADS"] = "1"
    # What llama.cpp says while models are made is nothing to look at.
    library()
    for name in given.part or [name for name in PARTS if name != "soak"]:
        if name == "damage":
            damage(campaign, given.what)
        else:
            PARTS[name](campaign)
        print(campaign.table(), file=sys.stderr)
    print(campaign.table())
    if given.json is not None:
        given.json.write_text(campaign.as_json(), encoding="utf-8")
    if campaign.findings:
        print(f"{len(campaign.findings)} findings; their cases lie in {campaign.folder}/findings")
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
