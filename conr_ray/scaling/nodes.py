"""The nodes of the connected cluster, and calls of a function on each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from conr_ray.errors import UserError, last_line

_TIMEOUT_S = 60.0

# Ray's records of nodes, by address.
Nodes = dict[str, dict[str, Any]]


def alive_nodes() -> Nodes:
    """All nodes that are alive; the name of a second one at an address includes its port."""
    found: Nodes = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            address = node["NodeManagerAddress"]
            name = address if address not in found else f"{address}:{node['NodeManagerPort']}"
            found[name] = node
    return found


def on_each(
    nodes: Nodes,
    function: Callable[..., Any],
    *args: Any,
    num_gpus: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Results of `function` by node, with an exception for a node that fails or is silent.

    Nodes that leave the cluster meanwhile, such as idle ones under autoscaling, are left out.
    """
    pending = {}
    for name, node in nodes.items():
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
        if num_gpus is not None:
            options["num_gpus"] = num_gpus[name]
        pending[name] = ray.remote(**options)(function).remote(*args)
    found: dict[str, Any] = {}
    for name, reference in pending.items():
        try:
            found[name] = ray.get(reference, timeout=_TIMEOUT_S)
        except GetTimeoutError:
            found[name] = UserError(f"no answer within {_TIMEOUT_S:g} s")
        except Exception as error:
            found[name] = error
    staying = {node["NodeID"] for node in alive_nodes().values()}
    return {
        name: answer
        for name, answer in found.items()
        if not isinstance(answer, Exception) or nodes[name]["NodeID"] in staying
    }


def all_well(found: dict[str, Any]) -> dict[str, Any]:
    """Return `found`; raise UserError if it holds an exception for any node."""
    for name, value in found.items():
        if isinstance(value, Exception):
            raise UserError(f"node {name}: {last_line(value)}")
    return found
