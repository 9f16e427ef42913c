"""Checks of a cluster before a run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow
import ray
import torch
from ray._private.state import available_resources_per_node
from ray.util.state import list_nodes

import conr_ray
from conr_ray.errors import UserError, last_line
from conr_ray.scaling.all_reduce import time_all_reduce
from conr_ray.scaling.nodes import Nodes, alive_nodes, all_well, on_each
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.shared_storage import exchange, is_for_one_node
from conr_ray.storage.files import Folder

# Time in which the resources of a run that has ended become free.
_RETURN_S = 5.0
_MOST_SKEW_S = 1.0


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: what was checked.
        detail: what was found; for a failed check, with the remedy.
        error: why a run would fail; None if it would not.
    """

    subject: str
    detail: str
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether the check succeeded."""
        return self.error is None


def preflight(directory: Folder, resources: WorkerResources) -> list[Finding]:
    """Check the connected cluster as a run with these resources would use it."""
    # First: if nodes start on demand, this starts those that the other checks look at.
    reduced = _find("all-reduce", lambda: time_all_reduce(directory, resources))
    nodes = alive_nodes()
    return [
        Finding("nodes", ", ".join(f"{ip} ({_holds(n)})" for ip, n in nodes.items())),
        _find("state API", _state_api),
        _find("versions", lambda: _versions(nodes)),
        _find("clocks", lambda: _clocks(nodes)),
        _find("storage", lambda: _storage(directory, nodes, resources.more_to_come)),
        _find("GPUs", lambda: _gpus(nodes)),
        reduced,
    ]


def _find(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, check())
    except Exception as error:
        return Finding(subject, last_line(error), error)


def _holds(node: dict[str, Any]) -> str:
    resources = node["Resources"]
    return ", ".join(f"{resources[k]:g} {k}" for k in ("CPU", "GPU") if resources.get(k))


def _state_api() -> str:
    address = ray.get_runtime_context().gcs_address
    return f"answers, {len(list_nodes(address=address, timeout=15))} nodes"


def _versions(nodes: Nodes) -> str:
    def versions() -> dict[str, str]:
        return {
            "conr_ray": conr_ray.__version__,
            "Python": platform.python_version(),
            "ray": ray.__version__,
            "torch": torch.__version__,
            "pyarrow": pyarrow.__version__,
        }

    found = all_well(on_each(nodes, versions))
    here = versions()
    for name, there in found.items():
        for what, version in there.items():
            if version != here[what]:
                raise UserError(
                    f"node {name} has {what} {version}, this process {here[what]}: install the "
                    "same version"
                )
    return ", ".join(f"{what} {version}" for what, version in here.items())


def _clocks(nodes: Nodes) -> str:
    worst = 0.0
    for name, node in nodes.items():
        # The first answer includes the start of a process.
        for _ in range(2):
            asked = time.time()
            told = all_well(on_each({name: node}, lambda: time.time())).get(name)
            answered = time.time()
        if told is None:
            continue
        skew = abs(told - (asked + answered) / 2)
        # The time to answer may lie entirely before or after the reading of the clock.
        sure = max(0.0, skew - (answered - asked) / 2)
        if sure > _MOST_SKEW_S:
            raise UserError(f"node {name}: clock {skew:.1f} s off: run a time service on all nodes")
        worst = max(worst, skew)
    return f"at most {worst * 1000:.0f} ms apart"


def _storage(directory: Folder, nodes: Nodes, more_to_come: bool) -> str:
    is_for_one_node(directory, nodes, more_to_come)
    started = time.perf_counter()
    exchange(directory, nodes)
    took = time.perf_counter() - started
    return f"{directory.uri} is written and read from every node, {took:.1f} s"


def _gpus(nodes: Nodes) -> str:
    totals = {name: n["Resources"]["GPU"] for name, n in nodes.items() if n["Resources"].get("GPU")}
    if not totals:
        return "none, runs use cores"
    available = _available_gpus({name: nodes[name] for name in totals})
    # A worker may use a fraction of a GPU; only whole devices are counted.
    free = {name: int(amount) for name, amount in available.items() if amount >= 1}

    def names() -> list[str]:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

    found = all_well(on_each({name: nodes[name] for name in free}, names, num_gpus=free))
    for name, devices in found.items():
        if len(devices) != free[name]:
            raise UserError(
                f"node {name} offers {free[name]} GPUs, torch sees {len(devices)}: check its driver"
            )
    kinds = sorted({device for devices in found.values() for device in devices})
    told = [f"{sum(free.values())} x {', '.join(kinds)}"] if found else []
    told += [
        f"node {name}: {total - available[name]:g} of {total:g} in use"
        for name, total in totals.items()
        if available[name] < total
    ]
    return "; ".join(told)


def _available_gpus(nodes: Nodes) -> dict[str, float]:
    """Free GPUs of each node, after waiting for those that are about to become free."""
    deadline = time.monotonic() + _RETURN_S
    while True:
        by_id = available_resources_per_node()  # type: ignore[no-untyped-call]
        found = {name: by_id.get(n["NodeID"], {}).get("GPU", 0.0) for name, n in nodes.items()}
        missing = any(found[name] < node["Resources"]["GPU"] for name, node in nodes.items())
        if not missing or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
