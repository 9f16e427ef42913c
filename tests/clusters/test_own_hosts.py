"""clusters/onprem.yaml, really brought up on three hosts with the addresses that stand in it."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from conr_ray.engine.run_directory import RunDirectory
from tests.clusters import namespaces
from tests.clusters.caller import (
    ROOT,
    Caller,
    host_variables,
    with_packages_of_the_test,
)
from tests.clusters.namespaces import Host, Sandbox
from tests.tiny_runs import TINY, as_settings
from tests.waiting import until


@pytest.mark.slow
@pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
def test_own_hosts_become_a_cluster_and_are_left_as_they_were(tmp_path: Path) -> None:
    shipped = yaml.safe_load((ROOT / "clusters" / "onprem.yaml").read_text())
    home = tmp_path / "caller"
    key = home / ".ssh" / "conr_ray"
    # Where the file says, but ssh takes ~ for the home of this machine's user, not of the caller.
    assert shipped["auth"]["ssh_private_key"] == "~/.ssh/conr_ray"
    shipped["auth"]["ssh_private_key"] = str(key)
    runs = tmp_path / "runs"
    file = tmp_path / "onprem.yaml"
    file.write_text(yaml.safe_dump(with_packages_of_the_test(shipped), sort_keys=False))
    key.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    provider = shipped["provider"]
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    variables = host_variables(tmp_path, {})
    with Sandbox(tmp_path) as sandbox:
        public = key.with_suffix(".pub").read_text()
        hosts = [sandbox.add_host([address], public, variables) for address in addresses]
        (home / ".conr_ray").mkdir()
        (home / ".conr_ray" / "onprem.sh").write_text(f"export CONR_RAY_STORAGE={runs}\n")
        caller = Caller(sandbox, home, file, {})
        caller.run("ray", "get-auth-token", "--generate")
        began = time.monotonic()
        caller.ray("up", "-y")
        paths = caller.packages("CPU", len(hosts))
        print(f"all hosts: {time.monotonic() - began:.0f} s")
        homes = {path.partition("/conr_ray/.venv/")[0] for path in paths}
        assert homes == {str(host.home) for host in hosts}
        # Workers with all cores of a host each.
        told = _submit(caller, f"--check --workers 3 --cpus-per-worker {os.cpu_count()}")
        assert "FAILS" not in told
        assert f"{runs} is written and read from every node" in told
        assert "3 workers on 3 nodes by gloo" in told
        run = f"--preset digits --workers 3 --cpus-per-worker {os.cpu_count()} --name one"
        settings = {**TINY, "optim.batch_size": 96}
        _submit(caller, shlex.join([*run.split(), *as_settings(settings)]))
        rows = RunDirectory(runs / "one").metric_rows()
        assert [row["epoch"] for row in rows] == list(range(TINY["schedule.epochs"]))
        print(f"check and run: {time.monotonic() - began:.0f} s")

        caller.ray("down", "-y")
        # The head at once; the others, which only the head knows, when they missed it for a minute.
        assert not _runs_ray(hosts[0])
        until(lambda: not any(_runs_ray(host) for host in hosts))
        print(f"down: {time.monotonic() - began:.0f} s after the start")
        assert not any(host.ended for host in hosts)


def _submit(caller: Caller, arguments: str) -> str:
    """Run the train command as a job, submitted on the head; gives what it printed."""
    command = f"python -m conr_ray.train --address auto {arguments}"
    submit = f"ray job submit --address http://localhost:8265 -- {command}"
    # On three hosts that share two slow cores, each compiles its loops for a minute of them.
    return caller.ray("exec", f"RAY_AUTH_MODE=token {submit}")


def _runs_ray(host: Host) -> bool:
    running = host.run("ps -eo comm").stdout.split()
    assert "sshd" in running
    return bool({"raylet", "gcs_server"} & set(running))
