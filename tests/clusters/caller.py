"""Who brings a cluster up, by `ray` commands in a sandbox, and what its hosts need for them."""

from __future__ import annotations

import json
import os
import shlex
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clusters.namespaces import Sandbox
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]


def with_packages_of_the_test(cluster: dict[str, Any]) -> dict[str, Any]:
    """A cluster file whose nodes find the packages of this test's environment.

    There is no second copy of them, and no registry. conr_ray itself is installed for real.
    """
    commands = cluster["setup_commands"]
    [made] = [n for n, c in enumerate(commands) if "-m venv" in c]
    return {**cluster, "setup_commands": [*commands[: made + 1], _link(), *commands[made + 1 :]]}


def _link() -> str:
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


def host_variables(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a host.

    - `python3` is the one that this environment was made with.
    - pip has no registry, and builds with this environment's setuptools.
    """
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (binaries / "python3").chmod(0o755)
    return {
        **more,
        "PATH": f"{binaries}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@dataclass
class Caller:
    """At the sandbox's own address, in the root of this checkout."""

    sandbox: Sandbox
    home: Path
    file: Path
    variables: Mapping[str, str]

    @property
    def env(self) -> dict[str, str]:
        # PYTHONPATH: this checkout, whichever this environment was made for. RAY_UP_...: as Ray has
        # it by default, without a note about it.
        return {
            **self.variables,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_UP_enable_autoscaler_v2": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def run(self, *command: str) -> str:
        """A command; gives what it printed, and fails where it does."""
        return self.sandbox.run(command, self.env, ROOT)

    def ray(self, verb: str, *arguments: str) -> str:
        """`ray up`, `ray exec` and their like, on this caller's cluster."""
        # The cache is shared by all on this machine.
        cache = ("--no-config-cache",) if verb in ("up", "exec") else ()
        return self.run("ray", verb, *cache, str(self.file), *arguments)

    def python_on_head(self, code: str) -> str:
        """Gives what it printed."""
        return self.ray("exec", f"python -c {shlex.quote(code)}")

    def packages(self, resource: str, num_nodes: int) -> list[str]:
        """Where `num_nodes` nodes with a resource have the package; waits for them, as tasks do."""
        code = f"""
import json, ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In
ray.init("auto")
@ray.remote(num_cpus=0)
def where():
    import conr_ray
    return conr_ray.__file__
group = ray.util.placement_group([{{"{resource}": 1}}] * {num_nodes}, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout={HANG_S})
asked = [where.options(scheduling_strategy=In(group, n)).remote() for n in range({num_nodes})]
print("found:" + json.dumps(ray.get(asked)))
"""
        printed = self.python_on_head(code).split("\n")
        [line] = [line for line in printed if line.startswith("found:")]
        return list(json.loads(line.removeprefix("found:")))
