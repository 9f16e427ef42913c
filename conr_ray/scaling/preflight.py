"""What has to be right before a run on a cluster: looked at, not assumed."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_nodes

import conr_ray
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError, last_line
from conr_ray.scaling.cluster import WorkerResources

_NODE_TIMEOUT_S = 60.0
_MOST_SKEW_S = 1.0
_REDUCED_MIB = 64
_REPEATS = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it was.
        ok: whether a run can go on with it.
        detail: what was found, with the remedy where it is not well.
    """

    subject: str
    ok: bool
    detail: str


def check_storage(directory: RunDirectory, *, more_to_come: bool) -> None:
    """Raise UserError where a node of the connected cluster cannot read what is written here.

    Where there is one node, a folder of its own will do, unless `more_to_come`.
    """
    nodes = _nodes()
    remedy = "give --storage s3://bucket/folder, or a folder that all nodes mount"
    if directory.is_local and len(nodes) == 1:
        if more_to_come:
            raise UserError(
                f"--storage: {directory.uri} is on this node, others that come later would not "
                f"see it: {remedy}"
            )
        return
    blind = [node for node, seen in _seen_from(directory, nodes).items() if seen is not True]
    if blind:
        raise UserError(
            f"--storage: node {', '.join(blind)} does not see {directory.uri}: {remedy}"
        )


def preflight(directory: RunDirectory, resources: WorkerResources) -> list[Finding]:
    """Look at the connected cluster as a run of such workers would use it."""
    nodes = _nodes()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("state API", _state_api),
        ("versions", lambda: _versions(nodes)),
        ("clocks", lambda: _clocks(nodes)),
        ("storage", lambda: _storage(directory, nodes, resources.more_to_come)),
        ("GPUs", lambda: _gpus(nodes)),
        ("all-reduce", lambda: _all_reduce(directory, resources)),
    ]
    findings = [Finding("nodes", True, ", ".join(f"{ip} ({_holds(n)})" for ip, n in nodes.items()))]
    for subject, check in checks:
        try:
            findings.append(Finding(subject, True, check()))
        except Exception as error:
            findings.append(Finding(subject, False, last_line(error)))
    return findings


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
    nodes: dict[str, dict[str, Any]], function: Callable[..., Any], *args: Any, gpus: bool = False
) -> dict[str, Any]:
    """What `function` returns on each node; an error where it raises or gives no answer."""
    pending = {}
    for name, node in nodes.items():
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
        if gpus:
            options["num_gpus"] = node["Resources"].get("GPU", 0)
        pending[name] = ray.remote(**options)(function).remote(*args)
    found: dict[str, Any] = {}
    for name, reference in pending.items():
        try:
            found[name] = ray.get(reference, timeout=_NODE_TIMEOUT_S)
        except Exception as error:
            found[name] = error
    return found


def _all_well(found: dict[str, Any]) -> dict[str, Any]:
    for name, value in found.items():
        if isinstance(value, Exception):
            raise UserError(f"node {name}: {last_line(value)}")
    return found


def _seen_from(directory: RunDirectory, nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether each node reads what is written here now."""
    name, token = f".seen-{secrets.token_hex(4)}", secrets.token_hex(8)
    try:
        directory.write_text(name, token)
    except OSError as error:
        raise UserError(f"--storage: {directory.uri} cannot be written: {error}") from None

    def sees(uri: str) -> bool:
        return RunDirectory(uri).read_text(name) == token

    try:
        return _on_each(nodes, sees, directory.uri)
    finally:
        directory.delete_file(name)


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
            told = _all_well(_on_each({name: node}, lambda: time.time()))[name]
            answered = time.time()
        skew = abs(told - (asked + answered) / 2)
        # What the answer took could all have been on one way.
        sure = max(0.0, skew - (answered - asked) / 2)
        if sure > _MOST_SKEW_S:
            raise UserError(f"node {name} is {skew:.1f} s off: run a time service on all nodes")
        worst = max(worst, skew)
    return f"at most {worst * 1000:.0f} ms apart"


def _storage(directory: RunDirectory, nodes: dict[str, dict[str, Any]], more_to_come: bool) -> str:
    check_storage(directory, more_to_come=more_to_come)
    started = time.perf_counter()
    _all_well(_seen_from(directory, nodes))
    return f"{directory.uri} is read from every node, {time.perf_counter() - started:.1f} s"


def _gpus(nodes: dict[str, dict[str, Any]]) -> str:
    with_gpus = {name: node for name, node in nodes.items() if node["Resources"].get("GPU")}
    if not with_gpus:
        return "none, runs use cores"

    def names() -> list[str]:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]

    found = _all_well(_on_each(with_gpus, names, gpus=True))
    for name, devices in found.items():
        wanted = int(with_gpus[name]["Resources"]["GPU"])
        if len(devices) != wanted:
            raise UserError(
                f"node {name} offers {wanted} GPUs, torch sees {len(devices)}: look at its driver"
            )
    kinds = sorted({device for devices in found.values() for device in devices})
    return f"{sum(map(len, found.values()))} x {', '.join(kinds)}"


def _all_reduce(directory: RunDirectory, resources: WorkerResources) -> str:
    """Time an all-reduce among the workers of a run, spread over the nodes."""
    if resources.workers == 1:
        return "one worker has nobody to talk to: give --workers"
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
        RunDirectory(job["uri"]).write_text(job["name"] + ".txt", f"{median} {len(set(hosts))}")
