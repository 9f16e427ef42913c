"""clusters/aws.yaml, really brought up: moto is AWS, and each instance a host with an SSH server.

The steps of docs/clusters.md, in its order and with its commands. What is not as shipped stands in
`_for_here` and `_host_variables`, and nowhere else.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shlex
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from tests.clusters import namespaces
from tests.clusters.ec2 import VARIABLES, Ec2
from tests.clusters.namespaces import GATEWAY, Host, Sandbox
from tests.tiny_runs import TINY, as_settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing())),
]

ROOT = Path(__file__).parents[2]
BUCKET = "conr-ray-test"
WANDB_KEY = secrets.token_hex(20)
# The search that is submitted: on both GPU nodes, results to S3.
SEARCH = [
    *("python", "-m", "conr_ray.tune", "--address", "auto", "--space", "~/tiny.yaml"),
    *("--workers-per-trial", "2", "--gpus-per-worker", "1"),
    *("--storage", f"s3://{BUCKET}/searches", "--name", "first"),
]


def _for_here(cluster: dict[str, Any]) -> dict[str, Any]:
    """The shipped file with what has to differ.

    - An idle node goes after half a minute, not ten.
    - Nodes find the packages of this test's environment, of which there is no second copy: the
      package itself is installed for real.
    """
    cluster["idle_timeout_minutes"] = 0.5
    [after] = [
        n for n, c in enumerate(cluster["setup_commands"]) if "-m venv" in c and "apt" not in c
    ]
    cluster["setup_commands"].insert(after + 1, _link_packages())
    return cluster


def _link_packages() -> str:
    """A shell command that lets the environment of a node import what this one has."""
    packages = [path for path in site.getsitepackages() if path.endswith("site-packages")]
    # First, since the setuptools of a new environment may be too old. Plain lines would come last.
    path = f"import sys; sys.path[1:1] = {packages}"
    ray = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    return (
        "cd ~/conr_ray/.venv && "
        f"echo {shlex.quote(path)} > $(echo lib/python3*/site-packages)/of_the_test.pth && "
        f"(echo '#!'$PWD/bin/python; echo {shlex.quote(ray)}) > bin/ray && chmod +x bin/ray"
    )


def _host_variables(folder: Path) -> dict[str, str]:
    """The environment of a host.

    - Moto's address and keys; on AWS the role of the instance brings keys.
    - `python3` is the one that this environment was made with.
    - pip has no registry, and builds with this environment's setuptools.
    """
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (binaries / "python3").chmod(0o755)
    return {
        **VARIABLES,
        "PATH": f"{binaries}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@dataclass
class Caller:
    """Who brings the cluster up: in the sandbox, at the gateway's address."""

    sandbox: Sandbox
    home: Path
    ec2: Ec2
    file: Path

    @property
    def env(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        # RAY_UP_...: as Ray has it by default, without a note about it.
        return {
            **VARIABLES,
            "HOME": str(self.home),
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_UP_enable_autoscaler_v2": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "WANDB_API_KEY": WANDB_KEY,
        }

    def run(self, *command: str, timeout_s: float = 120) -> str:
        """A command in the root of the checkout."""
        return self.sandbox.run(command, self.env, ROOT, timeout_s)

    def on_head(self, command: str, timeout_s: float = 120) -> str:
        """`ray exec`; gives what the command printed."""
        return self.run("ray", "exec", "--no-config-cache", str(self.file), command)

    def nodes(self) -> dict[str, Host]:
        """The host of each node that runs, by the name of its type and its instance's id."""
        named = {}
        for instance in self.ec2.instances():
            if instance["State"]["Name"] == "running":
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                name = f"{tags['ray-user-node-type']} {instance['InstanceId']}"
                named[name] = self.ec2.hosts[instance["InstanceId"]]
        return named

    def head(self) -> Host:
        [head] = [host for name, host in self.nodes().items() if name.startswith("head ")]
        return head


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("aws")
    cluster = _for_here(yaml.safe_load((ROOT / "clusters" / "aws.yaml").read_text()))
    file = folder / "aws.yaml"
    file.write_text(yaml.safe_dump(cluster, sort_keys=False))
    home = folder / "caller"
    home.mkdir()
    with Sandbox(folder) as sandbox, Ec2(sandbox, _host_variables(folder)) as ec2:
        caller = Caller(sandbox, home, ec2, file)
        account = str(ROOT / "clusters" / "aws_account.py")
        began = time.monotonic()
        print(caller.run("python", account, "--bucket", BUCKET, "--ssh-from", f"{GATEWAY}/32"))
        caller.run("ray", "get-auth-token", "--generate")
        print(f"account: {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        print(caller.run("ray", "up", "-y", "--no-config-cache", str(file), timeout_s=400))
        print(f"ray up: {time.monotonic() - began:.0f} s")
        yield caller


def test_the_head_has_this_checkout(caller: Caller) -> None:
    where = "import conr_ray, os; print('at', os.path.dirname(conr_ray.__file__))"
    printed = caller.on_head(f"python -c {shlex.quote(where)}")
    assert f"at {caller.head().home}/conr_ray/.venv/lib" in printed
