"""A program: a job over two machines, one of which dies. Ray counts two of its nodes as such.

python two_machines.py FOLDER    (with models.toml, the rows in in.jsonl, and out.jsonl to come)
"""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path

# Before Ray is imported.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

from batches import errand
from ray.cluster_utils import Cluster

from eva_local.batch.fleet import Fleet
from eva_local.batch.job import Progress, carry_out
from eva_local.config.config import load_config
from eva_local.types import Sampling

SAMPLING = Sampling(max_tokens=12)


def main(folder: Path) -> None:
    held = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**held, "include_dashboard": False})
    second = [cluster.add_node(**held)]
    os.environ["RAY_ADDRESS"] = cluster.address
    overrides = {"batch_invariant": True, "threads": 1}
    spec = load_config(folder / "models.toml", {}, overrides).ensemble("pair")
    spec = replace(spec, sampling=SAMPLING)
    job = errand(
        folder / "in.jsonl", folder / "out.jsonl", spec, sampling=SAMPLING, wishes={"raw": True}
    )

    def told(progress: Progress) -> None:
        if second and progress.n_slots == 4 and progress.n_done >= 30:
            cluster.remove_node(second.pop(), allow_graceful=False)

    try:
        outcome = carry_out(job, lambda _: Fleet("ray", spec, None, 2), told=told)
        print(f"{outcome.n_done} done, {outcome.n_failed} failed, {len(second)} left")
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
