"""Rows over processes of a Ray cluster: as one process answers them, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batches import errand, texts, write_rows
from clusters import WITH_RAY

from eva_local.batch import fleet as fleets
from eva_local.batch.fleet import Fleet
from eva_local.batch.job import Progress, carry_out
from eva_local.cluster.worker import LostError, installed, joined
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import ConfigError, StoreError
from eva_local.opening import open_ensemble
from eva_local.types import Sampling
from tools.processes import children, ends, hosts, kill

pytestmark = WITH_RAY

N_ROWS, N_KILLS = 200, 5
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spec(models: Path) -> EnsembleSpec:
    overrides = {"batch_invariant": True, "threads": 1}
    spec = load_config(models / "models.toml", {}, overrides).ensemble("pair")
    return replace(spec, sampling=Sampling(max_tokens=12))


def test_200_rows_and_a_worker_killed_5_times(cluster, spec, tmp_path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", N_ROWS)
    wishes = {"sampling": spec.sampling, "wishes": {"raw": True}}
    one, out = tmp_path / "one.jsonl", tmp_path / "out.jsonl"
    carry_out(errand(rows, one, spec, **wishes), lambda _: open_ensemble(spec, parallel=4))
    moments = [20 + 35 * number for number in range(N_KILLS)]
    killed: list[int] = []

    def told(progress: Progress) -> None:
        if moments and progress.n_done >= moments[0] and (found := hosts("RowHost")):
            del moments[0]
            killed.append(found[len(killed) % len(found)])
            kill(killed[-1])

    job = errand(rows, out, spec, **wishes)
    outcome = carry_out(job, lambda _: Fleet(cluster, spec, 2, 2), told=told)
    assert len(set(killed)) == N_KILLS
    assert (outcome.finished, outcome.n_done, outcome.n_failed) == (True, N_ROWS, 0)
    assert texts(out) == texts(one)
    assert len(texts(out)) == N_ROWS
    again = carry_out(job, lambda _: pytest.fail("all is done"))
    assert again.n_rows == 0
    assert ends(lambda: hosts("RowHost"))


def test_all_traffic_is_on_this_machine_and_asks_for_a_token(cluster) -> None:
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = {f[9]: f[1] for f in map(str.split, table.splitlines()[1:]) if f[3] == "0A"}
    ours = set()
    for pid in children(os.getpid()):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                ours.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    addresses = {listening[inode].partition(":")[0] for inode in ours & listening.keys()}
    # 127.0.0.1, and the same in IPv6, as the kernel writes them.
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_what_a_worker_says_of_a_row_is_its_error(cluster, spec, tmp_path) -> None:
    rows = tmp_path / "in.jsonl"
    prompts = {"good": "the", "long": 999 * "z"}
    lines = [json.dumps({"id": row_id, "prompt": prompt}) for row_id, prompt in prompts.items()]
    rows.write_text("\n".join(lines))
    out = tmp_path / "out.jsonl"
    job = errand(rows, out, spec, sampling=spec.sampling, wishes={"raw": True})
    outcome = carry_out(job, lambda _: Fleet(cluster, spec, 1, 2))
    assert (outcome.n_done, outcome.n_failed) == (2, 1)
    assert texts(out)["good"]
    assert "does not fit" in out.read_text()


def test_another_version_or_file_cannot_join(spec, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"eva-local 0\.0.*install the same"):
        joined("eva-local 0.0", spec.members[0], None)
    with pytest.raises(StoreError, match="and 1234 is asked for"):
        joined(installed(), spec.members[0], "1234")
    with pytest.raises(StoreError, match="and 5678 is asked for"):
        joined(installed(), replace(spec.members[0], sha256="5678"), None)
    monkeypatch.setattr("eva_local.cluster.worker.verify", lambda _: pytest.fail("it was read"))
    assert joined(installed(), spec.members[0], None) == spec.members[0].source.path


def test_a_row_that_ends_every_worker_is_an_error(cluster, spec, tmp_path, monkeypatch) -> None:
    from eva_local.batch import fleet

    class Fatal(fleet.RowHost):
        async def answer(self, request: object) -> object:
            if "fatal" in str(request):
                os._exit(1)
            return await super().answer(request)

    monkeypatch.setattr(fleet, "RowHost", Fatal)
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"id": 1, "prompt": "fatal"}\n' + '{"prompt": "the"}\n' * 3)
    job = errand(rows, tmp_path / "out", spec, sampling=spec.sampling, wishes={"raw": True})
    outcome = carry_out(job, lambda _: Fleet(cluster, spec, 1, 1))
    assert (outcome.n_done, outcome.n_failed) == (4, 1)
    assert "4 workers died over it" in (tmp_path / "out").read_text()


def test_a_cluster_that_does_not_answer(tmp_path) -> None:
    code = "from eva_local.cluster.worker import nodes; nodes('ray://127.0.0.1:1')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "ConfigError: ray://127.0.0.1:1: no Ray cluster answers" in found.stderr


def test_members_elsewhere_are_not_spread_again(spec) -> None:
    members = tuple(replace(member, on="ray") for member in spec.members)
    with pytest.raises(ConfigError, match="one has an `on` too"):
        Fleet("ray", replace(spec, members=members), 1, 1)


def test_a_signal_ends_as_it_did_before() -> None:
    code = """
import os, signal, threading
from eva_local.cluster.worker import nodes
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
opening = threading.Thread(target=nodes, args=["ray"])
opening.start(), opening.join()
os.kill(os.getpid(), signal.SIGTERM)
print("told" if told.wait(9) else "not told")
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "told"), found.stderr


@pytest.mark.parametrize(("n_kills", "opens"), [(2, True), (5, False)])
def test_workers_that_die_while_they_open(cluster, spec, monkeypatch, caplog, n_kills, opens):
    killed: list[int] = []
    step = Fleet.step

    def killing(fleet: Fleet) -> list[Any]:
        found = [pid for pid in hosts("RowHost") if pid not in killed]
        if found and len(killed) < n_kills:
            killed.append(found[0])
            kill(found[0])
        return step(fleet)

    monkeypatch.setattr(Fleet, "step", killing)
    with contextlib.ExitStack() as stack:
        if not opens:
            stack.enter_context(pytest.raises(LostError, match="its process died"))
        assert stack.enter_context(Fleet(cluster, spec, 1, 1)).n_slots == 1
    assert len(killed) == n_kills
    assert caplog.text.count("a worker died while it opened") == min(n_kills, 4)
    assert ends(lambda: hosts("RowHost"))


def test_who_waits_for_room_says_so(cluster, spec, monkeypatch, caplog) -> None:
    monkeypatch.setattr(fleets, "_LONG_S", 0.5)

    def warned(fleet: Fleet) -> list[Any]:
        if "no worker is open yet" in caplog.text:
            raise KeyboardInterrupt
        return step(fleet)

    with Fleet(cluster, spec, 1, 1):
        step = Fleet.step
        monkeypatch.setattr(Fleet, "step", warned)
        with pytest.raises(KeyboardInterrupt):
            Fleet(cluster, spec, 1, 1)
    assert "or waits for 2 CPUs and 0 GPUs" in caplog.text
    assert caplog.text.count("no worker is open yet") == 1


def test_one_fleet_does_several_jobs(cluster, spec, tmp_path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 40)
    how = {"sampling": spec.sampling, "wishes": {"raw": True}}
    jobs = [errand(rows, tmp_path / f"{number}.jsonl", spec, **how) for number in range(3)]
    with Fleet(cluster, spec, 1, 4) as fleet:
        lent = contextlib.nullcontext(fleet)
        moments = iter([False] * 30 + [True])
        # The first is interrupted with rows under way, of which nothing is heard in the next.
        first = carry_out(jobs[0], lambda _: lent, stopped=lambda: next(moments))
        assert not first.finished
        for job in (jobs[1], jobs[0]):
            assert carry_out(job, lambda _: lent).finished
    carry_out(jobs[2], lambda _: open_ensemble(spec, parallel=4))
    assert texts(tmp_path / "0.jsonl") == texts(tmp_path / "1.jsonl") == texts(tmp_path / "2.jsonl")


def test_no_machine_has_the_label(cluster, spec) -> None:
    with pytest.raises(ConfigError, match="no such machine"):
        Fleet(f"{cluster}#elsewhere", spec, 1, 1)


def test_a_machine_that_dies_and_no_other_has_room(spec, models, tmp_path) -> None:
    shutil.copy(models / "models.toml", tmp_path)
    rows = write_rows(tmp_path / "in.jsonl", 120)
    job = errand(rows, tmp_path / "one.jsonl", spec, sampling=spec.sampling, wishes={"raw": True})
    carry_out(job, lambda _: open_ensemble(spec, parallel=4))
    program = Path(__file__).with_name("two_machines.py")
    found = subprocess.run(
        [sys.executable, program, tmp_path],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "120 done, 0 failed, 0 left" in found.stdout, found.stderr
    assert texts(tmp_path / "out.jsonl") == texts(tmp_path / "one.jsonl")
