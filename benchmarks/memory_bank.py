"""Neighbour discovery per step with a full memory bank, and bytes on the wire.

    python benchmarks/memory_bank.py

Keys drift as in training: samples in 100 clusters, each view with noise. Times are medians; peers
are timed in turn with the steps, in the same process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.config import build
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.training_state import TrainingState
from conr_ray.method.frameworks.base import Step
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.neighbors.reranking import contextual_neighbors
from conr_ray.method.stages.instance import InstanceStage

NEAR = Neighborhood("contextual", k1=10, k2=2, k=10)


def steps(size: int, batch_size: int, width: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Keys of both views and sample ids, from a data set of twice the bank's size."""
    generator = torch.Generator().manual_seed(0)
    num_samples = max(2 * size, 4 * batch_size)
    centers_cd = torch.randn(100, width, generator=generator)
    clusters_s = torch.randint(100, (num_samples,), generator=generator)
    samples_sd = torch.randn(num_samples, width, generator=generator) * 0.9
    samples_sd += centers_cd[clusters_s]
    while True:
        order = torch.randperm(num_samples, generator=generator)
        for ids in torch.split(order, batch_size)[: num_samples // batch_size]:
            views = [
                samples_sd[ids] + 0.5 * torch.randn(batch_size, width, generator=generator)
                for _ in range(2)
            ]
            yield [normalize(view) for view in views], ids


def seconds(call: Callable[..., Any], *args: Any, **options: Any) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call(*args, **options)
    return time.perf_counter() - started


def filled(bank: MemoryBank, source: Iterator[tuple[list[Tensor], Tensor]]) -> None:
    """Steps until the bank is full, and a few more."""
    while len(bank) < bank.size:
        bank.find(*next(source))
    for _ in range(3):
        bank.find(*next(source))


def one_process(sizes: list[int], batch_size: int, width: int, repeats: int) -> dict[int, float]:
    """Print times of a step and of its peers; the step's time by size of the bank."""
    print(f"B={batch_size}, D={width}, k1=10, k2=2, k=10, float32 rows, both directions a step\n")
    print("| M | step | product, B keys | product, both views' keys | rebuild of the graph |")
    print("| --- | --- | --- | --- | --- |")
    found = {}
    for size in sizes:
        bank, source = MemoryBank(size, width, batch_size, NEAR), steps(size, batch_size, width)
        filled(bank, source)
        rows_md = torch.cat([normalize(torch.cat(next(source)[0])) for _ in range(2)])
        rows_md = rows_md.repeat(-(-size // len(rows_md)), 1)[:size].contiguous()
        times: dict[str, list[float]] = {"step": [], "one": [], "both": []}
        for _ in range(repeats):
            keys, ids = next(source)
            times["step"].append(seconds(bank.find, keys, ids))
            times["one"].append(seconds(torch.matmul, keys[0], rows_md.T))
            both_nd = torch.cat(keys)
            times["both"].append(seconds(torch.matmul, both_nd, rows_md.T))
        step_s, one_s, both_s = (statistics.median(values) for values in times.values())
        # From scratch: the graph of the pool is searched for each direction.
        pool = torch.cat([next(source)[0][0] for _ in range(size // batch_size + 1)])
        once = [seconds(contextual_neighbors, pool, k1=10, k2=2, k=10) for _ in (1, 2)]
        rebuild_s = 2 * min(once)
        found[size] = step_s
        print(
            f"| {size:,} | {step_s * 1e3:.0f} ms | {one_s * 1e3:.0f} ms ({step_s / one_s:.1f} x) | "
            f"{both_s * 1e3:.0f} ms ({step_s / both_s:.1f} x) | "
            f"{rebuild_s * 1e3:.0f} ms ({rebuild_s / step_s:.1f} x) |",
            flush=True,
        )
    return found


def training_step(batch_size: int) -> float:
    """Time of a ResNet-18 step on CIFAR-sized images, without neighbours."""
    config = build({"data": {"source": "digits"}, "optim": {"batch_size": batch_size}})
    state = TrainingState.create(config, (3, 32, 32), Acceleration(torch.device("cpu")))
    framework, stage, ids = state.framework, InstanceStage(), torch.arange(batch_size)
    views = [
        torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    ]

    def step() -> None:
        now = Step(0, 1000, 0, 0, ids, ids)
        outputs = framework(views, now)
        loss, _ = stage.loss(framework, outputs, now)
        state.optimizer.zero_grad()
        torch.autograd.backward(loss)
        state.optimizer.step()
        framework.after_step(outputs, now)

    return seconds(step)


def _worker(
    rank: int, workers: int, folder: str, size: int, batch_size: int, width: int, sharded: bool
) -> tuple[float, float]:
    """Median time of a step, and the bytes that this worker receives in one."""
    torch.set_num_threads(1)
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    address = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers)
    received = 0
    gather, reduce = dist.all_gather, dist.all_reduce

    def counted_gather(parts: list[Tensor], local: Tensor) -> None:
        nonlocal received
        received += (workers - 1) * local.numel() * local.element_size()
        gather(parts, local)

    def counted_reduce(total: Tensor) -> None:
        nonlocal received
        # A ring receives each element's sum and its parts once.
        received += 2 * (workers - 1) * total.numel() * total.element_size() // workers
        reduce(total)

    dist.all_gather = counted_gather  # type: ignore[assignment]
    dist.all_reduce = counted_reduce  # type: ignore[assignment]
    bank = MemoryBank(size, width, batch_size, NEAR, sharded=sharded)
    source = steps(size, batch_size, width)
    filled(bank, source)
    received, times = 0, []
    for _ in range(6):
        keys, ids = next(source)
        dist.barrier()
        times.append(seconds(bank.find, keys, ids))
    result = statistics.median(times), received / 6
    dist.barrier()
    return result


def on_workers(sizes: list[int], batch_size: int, width: int) -> None:
    """Print bytes and times of sharded and replicated banks."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    print("\n| workers, M | rows | step | received a step | gathering the bank | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for workers, size in [(workers, size) for workers in (2, 4) for size in sizes]:
        for sharded in (True, False):
            with (
                tempfile.TemporaryDirectory() as folder,
                ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
            ):
                args = (workers, folder, size, batch_size, width, sharded)
                futures = [pool.submit(_worker, rank, *args) for rank in range(workers)]
                found = [future.result() for future in futures]
            step_s, received = max(step for step, _ in found), max(count for _, count in found)
            whole = size * width * 4 * (workers - 1) / workers
            ratio = f"{whole / received:.1f} x" if received else "-"
            print(
                f"| {workers}, {size:,} | {'sharded' if sharded else 'on every worker'} | "
                f"{step_s * 1e3:.0f} ms | {received / 1e6:.2f} MB | {whole / 1e6:.1f} MB | "
                f"{ratio} |",
                flush=True,
            )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 16384, 65536])
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--skip-training-step", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = one_process(args.sizes, args.batch_size, args.width, args.repeats)
    if not args.skip_training_step:
        step_s = training_step(args.batch_size)
        print(
            f"\nResNet-18, 32 x 32, a step of {args.batch_size} without neighbours: {step_s:.1f} s"
        )
        for size, time_s in found.items():
            print(f"discovery at M={size:,}: {time_s / step_s:.2%} of it", flush=True)
    on_workers([size for size in args.sizes if size <= 16384], args.batch_size, args.width)


if __name__ == "__main__":
    main()
