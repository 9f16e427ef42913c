"""Measure an all-reduce among the workers of a run."""

from __future__ import annotations

import secrets
import time
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed

from conr_ray.scaling.resources import WorkerResources
from conr_ray.storage.files import Folder

_REDUCED_MIB = 64
_REPEATS = 5


def time_all_reduce(directory: Folder, resources: WorkerResources) -> str:
    """Time an all-reduce among the workers of a run, spread over the nodes.

    A single worker is only started if nodes start on demand, so that its node starts.
    """
    alone = "a single worker has no peers: use more workers" if resources.workers == 1 else None
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
