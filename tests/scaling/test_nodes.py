"""Runs on clusters of several nodes, which are hosts of a sandbox with addresses of their own."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from conr_ray.config import load_preset
from conr_ray.engine.run_directory import RunDirectory
from tests.clusters import namespaces
from tests.clusters.caller import ROOT
from tests.clusters.namespaces import Host, Sandbox
from tests.gloo_workers import run_workers
from tests.tiny_runs import TINY, as_settings, run_here, without_times
from tests.waiting import HANG_S, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing())),
]
RUN = {**TINY, "evaluation.neighbors": False}
# Of a cluster with a head without cores. The others are processes on its host that Ray's autoscaler
# starts for work.
GROWS: dict[str, Any] = {
    "cluster_name": "grows",
    "provider": {
        "type": "fake_multinode",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {},
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "worker_setup_commands": [],
    "worker_start_ray_commands": [],
}


class Nodes:
    """A Ray cluster of hosts, whose addresses end with numbers from `first` on."""

    def __init__(self, sandbox: Sandbox, first: int = 10) -> None:
        self._sandbox, self._first = sandbox, first
        self.hosts: list[Host] = []

    def add(self, num_cpus: int, cluster_file: Path | None = None) -> Host:
        """A node with so many cores; the first one is the head, which can have a cluster file."""
        number = len(self.hosts) + self._first
        variables = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "CONR_RAY_CACHE": str(self._sandbox.folder / "cache"),
            "WANDB_MODE": "disabled",
        }
        if cluster_file:
            variables |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        options = f"--autoscaling-config={cluster_file}" if cluster_file else ""
        host = self._sandbox.add_host([f"10.77.0.{number}"], "", variables)
        head = self.hosts[0].addresses[0] if self.hosts else None
        alone = "--head --port=6379 --ray-client-server-port=10001"
        where = f"--address={head}:6379" if head else alone
        done = host.run(
            f"ray start {where} --node-ip-address={host.addresses[0]} --num-cpus={num_cpus} "
            f"--object-store-memory=200000000 --disable-usage-stats {options}"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.hosts.append(host)
        return host

    def stranger(self) -> Host:
        """A host that is no node."""
        variables = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
        }
        return self._sandbox.add_host(["10.77.0.200"], "", variables)

    def another(self) -> Nodes:
        """A cluster beside this one, without nodes yet."""
        return Nodes(self._sandbox, self._first + 40)

    def train(self, folder: Path, name: str, settings: dict[str, Any], workers: int = 2) -> str:
        """The command of a run that writes to `folder`/`name`."""
        words = ["python", "-m", "conr_ray.train", "--preset", "digits", "--address", "auto"]
        words += ["--workers", str(workers), "--cpus-per-worker", "1"]
        words += ["--storage", str(folder), "--name", name]
        return shlex.join([*words, *as_settings(settings)])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Sandbox(tmp_path) as sandbox:
        yield Nodes(sandbox)


def _train(folder: str) -> None:
    run_here(load_preset("digits", RUN), Path(folder))


@pytest.mark.long
def test_workers_on_two_nodes_train_as_workers_of_one_machine_without_ray(
    nodes: Nodes, tmp_path: Path
) -> None:
    for num_cpus in (0, 1, 1):
        nodes.add(num_cpus)
    done = nodes.hosts[0].run(nodes.train(tmp_path, "nodes", RUN))
    assert done.returncode == 0, done.stdout + done.stderr
    run_workers(_train, 2, str(tmp_path / "here"))
    found, here = (RunDirectory(tmp_path / name).metric_rows() for name in ("nodes", "here"))
    assert without_times(found) == without_times(here)
    assert len(found) == 4


@pytest.mark.long
def test_each_node_needs_the_initial_weights(nodes: Nodes, tmp_path: Path) -> None:
    for num_cpus in (0, 1, 1):
        nodes.add(num_cpus)
    head, _, other = nodes.hosts
    source = tmp_path / "old/checkpoints/epoch_000004/state.pt"
    run_here(load_preset("digits", {**RUN, "seed": 1}), tmp_path / "old")
    settings = {**RUN, "model.init": tmp_path / "old"}
    done = head.run(nodes.train(tmp_path, "both", settings))
    assert done.returncode == 0, done.stdout + done.stderr
    # Empty on one node.
    assert other.run(f"mount --bind /dev/null {source}").returncode == 0
    done = head.run(nodes.train(tmp_path, "one", settings))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: model.init={tmp_path}/old: ")
    # What has a checkpoint needs them no more.
    longer = f"{nodes.train(tmp_path, 'both', {**settings, 'schedule.epochs': 5})} --resume"
    done = head.run(longer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(RunDirectory(tmp_path / "both").metric_rows()) == 5


def test_a_run_goes_on_when_a_node_is_lost(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(0)
    first, _, _ = nodes.add(1), nodes.add(1), nodes.add(1)
    run = RunDirectory(tmp_path / "runs" / "one")
    settings = {**RUN, "schedule.epochs": 400, "data.limit": 1200}
    process = nodes.hosts[0].start(
        nodes.train(tmp_path / "runs", "one", settings), tmp_path / "train.log"
    )
    until(lambda: len(run.metric_rows()) > 3)
    first.end()
    lost = time.monotonic()
    seen = len(run.metric_rows())
    until(lambda: len(run.metric_rows()) > seen + 1)
    print(f"trains on after {time.monotonic() - lost:.0f} s")
    summary = run.read_text(f"{run.checkpoint_name(run.checkpoint_epochs()[-1])}/summary.json")
    assert json.loads(summary or "")["workers"] == 2
    process.terminate()
    process.wait()
    rows = run.metric_rows()
    assert [row["epoch"] for row in rows] == list(range(len(rows)))


def test_a_command_from_elsewhere_runs_on_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(0)
    nodes.add(2)
    elsewhere = nodes.stranger()
    space = {"preset": "digits", "trials": 2, "scheduler": None, "fixed": RUN}
    space["search"] = {"seed": {"int": [0, 9]}}
    (elsewhere.home / "mine.yaml").write_text(yaml.safe_dump(space))
    tune = "python -m conr_ray.tune --address=ray://10.77.0.10:10001 --space ~/mine.yaml"
    # Ray's server of a client dies now and then as it is started; here its first one always does.
    begun = "pgrep -f 'client[.]server.*--mode=specific-server'"
    killed = f"until server=$({begun}); do sleep 0.01; done; kill -KILL $server; echo killed"
    killer = nodes.hosts[0].start(killed, tmp_path / "killer.log")
    done = elsewhere.run(f"{tune} --storage {tmp_path}/runs --name one")
    killer.wait()
    assert (tmp_path / "killer.log").read_text() == "killed\n"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best: trial" in done.stdout
    table = pq.read_table(tmp_path / "runs" / "one" / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == ["complete"] * 2
    # An error there is an error here.
    done = elsewhere.run(f"{tune} --storage {tmp_path}/runs --name one")
    assert done.returncode == 1
    assert "holds this search: add --resume, or choose another --name" in done.stdout

    check = "python -m conr_ray.train --check --workers 2 --cpus-per-worker 1"
    check += " --address ray://10.77.0.10:10001"
    done = elsewhere.run(f"{check} --storage {tmp_path}/runs")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if "ok " in line]
    assert len(found) == 7
    # Each host has a /dev/shm of its own: a folder that the others do not see.
    done = elsewhere.run(f"{check} --storage /dev/shm/runs")
    assert done.returncode == 1
    assert "does not see /dev/shm/runs" in done.stdout


@pytest.mark.long
def test_a_check_looks_at_the_nodes_that_come_for_it(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "grows.yaml").write_text(yaml.safe_dump(GROWS))
    head = nodes.add(0, tmp_path / "grows.yaml")
    check = "python -m conr_ray.train --check --address auto --autoscaling --cpus-per-worker 1"
    for workers, num_nodes in ((1, 2), (2, 3)):
        done = head.run(f"{check} --workers {workers} --storage {tmp_path}/runs")
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
        found = dict(line.split(maxsplit=2)[1:] for line in lines)
        assert found["nodes"].count("10.77.0.10") == num_nodes, done.stdout
        assert found["nodes"].count("1 CPU") == num_nodes - 1
    assert list(found) == ["nodes", "state", "versions", "clocks", "storage", "GPUs", "all-reduce"]
    assert found["all-reduce"].startswith("2 workers on 2 nodes by gloo")


@pytest.mark.long
def test_a_node_that_reads_and_does_not_write_is_told(nodes: Nodes, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    head, other = nodes.add(0), nodes.add(1)
    check = "python -m conr_ray.train --check --address auto --cpus-per-worker 1"

    def check_with(mount: str) -> str:
        assert other.run(mount).returncode == 0
        done = head.run(f"{check} --storage {runs}")
        assert other.run(f"umount {runs}").returncode == 0
        assert done.returncode == 1, done.stdout + done.stderr
        # Long lines are wrapped.
        return " ".join(done.stdout.split())

    told = check_with(f"mount --bind {runs} {runs} && mount -o remount,bind,ro {runs}")
    assert f"--storage: node 10.77.0.11 cannot use {runs}: " in told
    assert "Read-only file system" in told
    # Its own layer over the folder takes what it writes.
    layers = f"lowerdir={runs},upperdir=/dev/shm/upper,workdir=/dev/shm/work"
    told = check_with(
        f"mkdir /dev/shm/upper /dev/shm/work && mount -t overlay -o {layers} overlay {runs}"
    )
    assert f"files of node 10.77.0.11 in {runs} do not arrive here: give --storage s3://" in told
    assert list(runs.iterdir()) == []


@pytest.mark.long
def test_ctrl_c_reaches_a_command_that_was_sent_to_the_cluster(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add(0)
    nodes.add(2)
    elsewhere = nodes.stranger()
    space = {"preset": "digits", "trials": 2, "scheduler": None}
    space |= {"fixed": {**RUN, "schedule.epochs": 400, "data.limit": 1200}}
    space["search"] = {"seed": {"int": [0, 9]}}
    (elsewhere.home / "mine.yaml").write_text(yaml.safe_dump(space))
    tune = "python -m conr_ray.tune --address=ray://10.77.0.10:10001 --space ~/mine.yaml"
    log = tmp_path / "tune.log"
    # In the place of the shell, so that the signal is the command's.
    process = elsewhere.start(
        f"echo $$ > ~/pid; exec {tune} --storage {tmp_path}/runs --name one", log
    )
    trials = tmp_path / "runs" / "one" / "trials"

    def trained() -> int:
        return sum(len(RunDirectory(folder).metric_rows()) for folder in trials.glob("*"))

    until(lambda: trained() > 5)
    elsewhere.run("kill -INT $(cat ~/pid)")
    assert process.wait(timeout=HANG_S) == 130, log.read_text()
    told = log.read_text()
    assert "interrupted: resume with the same command and --name one --resume" in told
    assert "interrupted, and on the cluster too" in told

    def at_work() -> str:
        return nodes.hosts[0].run("pgrep -f conr_ray.tune").stdout

    until(lambda: not at_work())
    stopped = trained()
    time.sleep(5)
    assert trained() == stopped


@pytest.mark.long
def test_a_search_loses_nothing_with_a_node(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(0)
    lost, _ = nodes.add(1), nodes.add(1)
    space = {
        "preset": "digits",
        "metric": "nmi",
        "trials": 4,
        "scheduler": None,
        "fixed": {**RUN, "schedule.epochs": 30, "schedule.group_start": 15},
        "search": {"neighborhood.k1": {"int": [5, 20]}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(space))
    tune = f"python -m conr_ray.tune --address auto --space {tmp_path}/mine.yaml"
    process = nodes.hosts[0].start(
        f"{tune} --storage {tmp_path}/runs --name one", tmp_path / "tune.log"
    )
    trials = tmp_path / "runs" / "one" / "trials"

    def trained() -> int:
        return sum(len(RunDirectory(folder).metric_rows()) for folder in trials.glob("*"))

    until(lambda: trained() > 35)
    lost.end()
    assert process.wait(timeout=HANG_S) == 0, (tmp_path / "tune.log").read_text()
    table = pq.read_table(tmp_path / "runs" / "one" / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == ["complete"] * 4
    for folder in trials.glob("*"):
        rows = RunDirectory(folder).metric_rows()
        assert [row["epoch"] for row in rows] == list(range(30))


@pytest.mark.long
def test_a_search_whose_head_is_lost_goes_on_on_another_cluster(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add(0)
    nodes.add(1)
    space = {"preset": "digits", "metric": "nmi", "trials": 2, "scheduler": None}
    space |= {"fixed": {**RUN, "schedule.epochs": 30, "schedule.group_start": 15}}
    space["search"] = {"neighborhood.k1": {"int": [5, 20]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(space))
    tune = f"python -m conr_ray.tune --address auto --space {tmp_path}/mine.yaml"
    tune += f" --storage {tmp_path}/runs --name one"
    nodes.hosts[0].start(tune, tmp_path / "tune.log")
    trials = tmp_path / "runs" / "one" / "trials"

    def trained() -> int:
        return sum(len(RunDirectory(folder).metric_rows()) for folder in trials.glob("*"))

    until(lambda: trained() > 10)
    nodes.hosts[0].end()
    successor = nodes.another().add(1)
    done = successor.run(f"{tune} --resume")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pq.read_table(tmp_path / "runs" / "one" / "trials.parquet").to_pylist()
    assert [row["state"] for row in table] == ["complete"] * 2
    for folder in trials.glob("*"):
        rows = RunDirectory(folder).metric_rows()
        assert [row["epoch"] for row in rows] == list(range(30))
