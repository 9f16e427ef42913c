"""What has to be right before a run on a cluster: looked at, not assumed."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_nodes

import conr_ray
from conr_ray.errors import NotShared, StorageError, UserError, last_line
from conr_ray.scaling.cluster import WorkerResources
from conr_ray.storage.files import Folder

_NODE_TIMEOUT_S = 60.0
# In which what a run had on the nodes is given back after its end.
_RETURN_S = 5.0
_MOST_SKEW_S = 1.0
_REDUCED_MIB = 64
_REPEATS = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it was.
        detail: what was found, with the remedy where it is not well.
        error: why a run cannot go on with it, None where it can.
    """

    subject: str
    detail: str
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether a run can go on with it."""
        return self.error is None


def check_storage(directory: Folder, *, more_to_come: bool) -> None:
    """Look whether each node of the connected cluster shares a folder with this one.

    Where there is one node, a folder of its own will do, unless `more_to_come`.

    Args:
        directory: the folder; files are written to it, read and deleted again.
        more_to_come: the cluster starts nodes when there is work.

    Raises:
        NotShared: a node does not see the folder, or not what others write to it.
        StorageError: one cannot read or write.
    """
    nodes = _nodes()
    if not _is_for_one_node(directory, nodes, more_to_come):
        _exchange(directory, nodes)


def preflight(directory: Folder, resources: WorkerResources) -> list[Finding]:
    """Look at the connected cluster as a run of such workers would use it."""
    # First, since this brings the nodes that the others look at, where they come for work.
    reduced = _find("all-reduce", lambda: _all_reduce(directory, resources))
    nodes = _nodes()
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


def _nodes() -> dict[str, dict[str, Any]]:
    """Nodes that are alive by their address; of several at one address, all."""
    found: dict[str, dict[str, Any]] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            address = node["NodeManagerAddress"]
            name = address if address not in found else f"{address}:{node['NodeManagerPort']}"
            found[name] = node
    return found


def _holds(node: dict[str, Any]) -> str:
    resources = node["Resources"]
    return ", ".join(f"{resources[k]:g} {k}" for k in ("CPU", "GPU") if resources.get(k))


def _on_each(
    nodes: dict[str, dict[str, Any]],
    function: Callable[..., Any],
    *args: Any,
    num_gpus: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What `function` returns on each node; an error where it raises or gives no answer.

    Without the nodes that have left meanwhile, as idle ones of a cluster that grows do.
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
            found[name] = ray.get(reference, timeout=_NODE_TIMEOUT_S)
        except GetTimeoutError:
            found[name] = UserError(f"no answer within {_NODE_TIMEOUT_S:g} s")
        except Exception as error:
            found[name] = error
    staying = {node["NodeID"] for node in _nodes().values()}
    return {
        name: answer
        for name, answer in found.items()
        if not isinstance(answer, Exception) or nodes[name]["NodeID"] in staying
    }


def _all_well(found: dict[str, Any]) -> dict[str, Any]:
    for name, value in found.items():
        if isinstance(value, Exception):
            raise UserError(f"node {name}: {last_line(value)}")
    return found


def _is_for_one_node(
    directory: Folder, nodes: dict[str, dict[str, Any]], more_to_come: bool
) -> bool:
    """Whether there is nobody to share a folder with.

    Raises:
        NotShared: there will be.
    """
    if not directory.is_local or len(nodes) > 1:
        return False
    if more_to_come:
        raise NotShared(f"{directory.uri} is on this node, others that come later would not see it")
    return True


def _exchange(directory: Folder, nodes: dict[str, dict[str, Any]]) -> None:
    """Have each node read what is written here, and write what is read here.

    Raises:
        StorageError: one cannot.
    """
    try:
        found = _read_and_written(directory, nodes)
    except (OSError, UserError) as error:
        raise StorageError(f"{directory.uri} cannot be used: {last_line(error)}") from None
    if failed := [name for name, answer in found.items() if isinstance(answer, Exception)]:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        cause = found[failed[0]]
        if isinstance(cause, RayTaskError):
            # Without the trace of that node's process.
            cause = cause.cause
        raise StorageError(
            f"node {failed[0]}{others} cannot use {directory.uri}: {last_line(cause)}"
        )
    if blind := [name for name, (read, _) in found.items() if not read]:
        raise NotShared(f"node {', '.join(blind)} does not see {directory.uri}")
    if apart := [name for name, (_, written) in found.items() if not written]:
        raise NotShared(f"what node {', '.join(apart)} writes to {directory.uri} does not arrive")


def _read_and_written(directory: Folder, nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether each node reads what is written here, and whether what it writes is read here.

    An error in the place of the two where a node raises one or gives no answer.
    """
    name, token = f".seen-{secrets.token_hex(4)}", secrets.token_hex(8)

    def read_and_write(uri: str) -> bool:
        there = Folder(uri)
        if there.read_text(name) != token:
            # Another folder, in which nothing is to be left.
            return False
        there.write_text(f"{name}-{ray.get_runtime_context().get_node_id()}", token)
        return True

    answers = {node_name: f"{name}-{node['NodeID']}" for node_name, node in nodes.items()}
    directory.write_text(name, token)
    try:
        found = _on_each(nodes, read_and_write, directory.uri)
        for node_name, read in found.items():
            if not isinstance(read, Exception):
                written = directory.read_text(answers[node_name]) == token
                found[node_name] = (read, written)
    finally:
        for file in (name, *answers.values()):
            if directory.has(file):
                directory.delete_file(file)
    return found


def _state_api() -> str:
    address = ray.get_runtime_context().gcs_address
    return f"answers, {len(list_nodes(address=address, timeout=15))} nodes"


def _versions(nodes: dict[str, dict[str, Any]]) -> str:
    def versions() -> dict[str, str]:
        return {
            "conr_ray": conr_ray.__version__,
            "Python": platform.python_version(),
            "ray": ray.__version__,
            "torch": torch.__version__,
            "pyarrow": pyarrow.__version__,
        }

    found = _all_well(_on_each(nodes, versions))
    here = versions()
    for name, there in found.items():
        for what, version in there.items():
            if version != here[what]:
                raise UserError(
                    f"node {name} has {what} {version}, this process {here[what]}: install one"
                )
    return ", ".join(f"{what} {version}" for what, version in here.items())


def _clocks(nodes: dict[str, dict[str, Any]]) -> str:
    worst = 0.0
    for name, node in nodes.items():
        # The first answer has the start of a process in it.
        for _ in range(2):
            asked = time.time()
            told = _all_well(_on_each({name: node}, lambda: time.time())).get(name)
            answered = time.time()
        if told is None:
            continue
        skew = abs(told - (asked + answered) / 2)
        # What the answer took could all have been on one way.
        sure = max(0.0, skew - (answered - asked) / 2)
        if sure > _MOST_SKEW_S:
            raise UserError(f"node {name} is {skew:.1f} s off: run a time service on all nodes")
        worst = max(worst, skew)
    return f"at most {worst * 1000:.0f} ms apart"


def _storage(directory: Folder, nodes: dict[str, dict[str, Any]], more_to_come: bool) -> str:
    _is_for_one_node(directory, nodes, more_to_come)
    started = time.perf_counter()
    _exchange(directory, nodes)
    took = time.perf_counter() - started
    return f"{directory.uri} is written and read from every node, {took:.1f} s"


def _gpus(nodes: dict[str, dict[str, Any]]) -> str:
    totals = {name: n["Resources"]["GPU"] for name, n in nodes.items() if n["Resources"].get("GPU")}
    if not totals:
        return "none, runs use cores"
    available = _available_gpus({name: nodes[name] for name in totals})
    # A worker can have whole ones and parts of one; devices are counted whole.
    free = {name: int(amount) for name, amount in available.items() if amount >= 1}

    def names() -> list[str]:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

    found = _all_well(_on_each({name: nodes[name] for name in free}, names, num_gpus=free))
    for name, devices in found.items():
        if len(devices) != free[name]:
            raise UserError(
                f"node {name} offers {free[name]} GPUs, torch sees {len(devices)}: look at its "
                "driver"
            )
    kinds = sorted({device for devices in found.values() for device in devices})
    told = [f"{sum(free.values())} x {', '.join(kinds)}"] if found else []
    told += [
        f"node {name}: {total - available[name]:g} of {total:g} in use"
        for name, total in totals.items()
        if available[name] < total
    ]
    return "; ".join(told)


def _available_gpus(nodes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """GPUs of each node that nobody has, or has given back within a moment."""
    deadline = time.monotonic() + _RETURN_S
    while True:
        by_id = available_resources_per_node()  # type: ignore[no-untyped-call]
        found = {name: by_id.get(n["NodeID"], {}).get("GPU", 0.0) for name, n in nodes.items()}
        missing = any(found[name] < node["Resources"]["GPU"] for name, node in nodes.items())
        if not missing or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _all_reduce(directory: Folder, resources: WorkerResources) -> str:
    """Time an all-reduce among the workers of a run, spread over the nodes.

    A single worker is started where nodes come for work: for its node.
    """
    alone = "one worker has nobody to talk to: give --workers" if resources.workers == 1 else None
    if alone and not resources.more_to_come:
        return alone
    backend = "nccl" if resources.gpus_per_worker else "gloo"
    name = f".preflight-{secrets.token_hex(4)}"
    trainer = ray.train.torch.TorchTrainer(
        _reduce_often,
        train_loop_config={"uri": directory.uri, "name": name},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=resources.bundle(),
            placement_strategy="SPREAD",
        ),
        torch_config=ray.train.torch.TorchConfig(backend=backend, timeout_s=120),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=directory.uri,
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
        text = directory.read_text(name + ".txt")
        assert text is not None
        seconds, num_hosts = text.split()
    finally:
        directory.delete_folder(name)
        if directory.has(name + ".txt"):
            directory.delete_file(name + ".txt")
    if alone:
        return alone
    share = 2 * (resources.workers - 1) / resources.workers
    rate = share * _REDUCED_MIB * 2**20 * 8 / float(seconds) / 1e9
    return (
        f"{resources.workers} workers on {num_hosts} nodes by {backend}, {_REDUCED_MIB} MiB in "
        f"{float(seconds) * 1000:.0f} ms, {rate:.1f} Gbit/s each"
    )


def _reduce_often(job: dict[str, str]) -> None:
    device = ray.train.torch.get_device()
    values = torch.ones(_REDUCED_MIB * 2**18, device=device)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.distributed.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    hosts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(hosts, ray.get_runtime_context().get_node_id())
    if torch.distributed.get_rank() == 0:
        median = sorted(times)[_REPEATS // 2]
        Folder(job["uri"]).write_text(job["name"] + ".txt", f"{median} {len(set(hosts))}")
