"""Bytes and time of a training step over a network link, against the model of docs/scaling.md.

    PYTHONPATH=. python benchmarks/network.py     # as root: 2 hosts in network namespaces

Two workers train on hosts of their own, first over an unshaped link, then over slower ones. Counted
are the bytes that a worker's interface sends in a step, measured is the time of a step; predicted
are both. What a link really does is measured beside it, by a stream and by small messages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from slow_link import ADDRESSES, INTERFACE, slow_link
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

from conr_ray.config import RunConfig, load_preset
from conr_ray.data.store import open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.training_state import TrainingState
from conr_ray.method.frameworks import byol
from tests.clusters.caller import ROOT
from tests.clusters.namespaces import Sandbox

_HOSTS = ("10.77.0.11", "10.77.0.12")
_CONFIG: dict[str, Any] = {
    "model.head_hidden_dim": 1024,
    "model.embedding_dim": 256,
    "optim.batch_size": 256,
    "bank.size": 1024,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
    "schedule.group_start": 3,
    "schedule.relax_epochs": 0,
    "evaluation.every": 100,
    "evaluation.neighbors": False,
}


@dataclass(frozen=True)
class Link:
    """Of each host to the other; without a rate it is as fast as this machine."""

    mbit_per_s: float | None = None
    delay_ms: float = 0.0

    def __str__(self) -> str:
        if self.mbit_per_s is None:
            return "unshaped"
        return f"{self.mbit_per_s:g} Mbit/s" + (f", {self.delay_ms:g} ms" if self.delay_ms else "")


def sent_bytes(interface: str) -> int:
    """What this host has sent through an interface so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    parts = (line.partition(":") for line in lines)
    [figures] = [figures.split() for name, _, figures in parts if name.strip() == interface]
    return int(figures[8])


def probed(rank: int) -> dict[str, float]:
    """What the link does: Mbit/s of a stream, and ms that the smallest message is under way."""
    stream, message = torch.zeros(10_000_000, dtype=torch.uint8), torch.zeros(1)

    def both_ways(tensor: torch.Tensor) -> float:
        began = time.perf_counter()
        for sender in (0, 1):
            pass_on = dist.send if rank == sender else dist.recv
            pass_on(tensor, 1 - rank)
        return (time.perf_counter() - began) / 2

    both_ways(stream)
    stream_s = statistics.median(both_ways(stream) for _ in range(5))
    message_s = statistics.median(both_ways(message) for _ in range(50))
    return {"mbit_per_s": len(stream) * 8 / stream_s / 1e6, "delay_ms": message_s * 1e3}


def work(rank: int, interface: str, address: str, folder: Path) -> None:
    """One worker: train, and write time and bytes of each step; the first is at the address."""
    torch.set_num_threads(1)
    config = load_preset("digits", _CONFIG)
    store = dist.TCPStore(address, 29500, 2, rank == 0)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    link = probed(rank)
    images = open_data(config.data)
    steps_per_epoch = images.num_rows // config.optim.batch_size
    marks: list[tuple[float, int]] = []
    register_optimizer_step_post_hook(
        lambda *_: marks.append((time.perf_counter(), sent_bytes(interface)))
    )
    run = RunDirectory(folder / "run")
    train(config, images, run, Observers(), torch.device("cpu"))
    # The first step of an epoch has in it what lies between epochs; the first epoch compiles.
    start = config.schedule.group_start
    assert isinstance(start, int)
    steps: dict[str, list[list[float]]] = {"instance": [], "group": []}
    for number in range(1, len(marks)):
        epoch, step = divmod(number, steps_per_epoch)
        if step and epoch not in (0, start):
            before, after = marks[number - 1], marks[number]
            stage = "group" if epoch >= start else "instance"
            steps[stage].append([after[0] - before[0], after[1] - before[1]])
    (folder / f"rank{rank}.json").write_text(json.dumps({"link": link, "steps": steps}))
    dist.destroy_process_group()


def predicted(config: RunConfig) -> dict[str, tuple[float, int]]:
    """Bytes that one of two workers sends in a step of each stage, and delays that it waits for."""
    framework = TrainingState.create(config, (1, 8, 8), Acceleration(torch.device("cpu"))).framework
    assert isinstance(framework, byol.Framework)
    online = (*framework.encoder.modules(), *framework.predictor.modules())
    norms = [m.num_features for m in online if isinstance(m, _BatchNorm)]
    encoder = [m.num_features for m in framework.target.modules() if isinstance(m, _BatchNorm)]
    batch, width = config.optim.batch_size, config.model.embedding_dim
    near = config.neighborhood
    gradients = 4 * sum(p.numel() for p in framework.parameters() if p.requires_grad)
    # Of each view: means, squares and a count forward, both gradients' sums backward.
    statistics_ = 2 * 4 * (sum(4 * c + 1 for c in norms) + sum(2 * c + 1 for c in encoder))
    instance = gradients + statistics_
    # gloo's ring takes one step to gather and two to reduce; in each the receiver first says that
    # it is ready, which is a delay of its own.
    gather, reduce = 2, 4
    instance_delays = 2 * (2 * len(norms) + len(encoder)) * gather + reduce
    keys = 2 * batch // 2 * width * 4
    lists = batch * (4 * near.k1 - 2) * 8
    numbers = 2 * batch // 2 * near.k * 8
    sums = 2 * batch * width * 4
    group = instance + keys + lists + numbers + sums
    return {
        "instance": (instance, instance_delays),
        "group": (group, instance_delays + 8 * gather + 3 * reduce),
    }


def measure(link: Link, folder: Path) -> tuple[Link, dict[str, tuple[float, float]]]:
    """The link as probed, and median seconds and bytes of a step of each stage."""
    folder.mkdir()
    variables = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    with ExitStack() as open_:
        sandbox = open_.enter_context(Sandbox(folder))
        first, second = (sandbox.add_host([address], "", variables) for address in _HOSTS)
        interface, address = "eth0", _HOSTS[0]
        if link.mbit_per_s is not None:
            open_.enter_context(slow_link((first, second), link.mbit_per_s, link.delay_ms))
            interface, address = INTERFACE, ADDRESSES[0]
        where = f"--interface {interface} --address {address} --folder {folder}"
        script = f"GLOO_SOCKET_IFNAME={interface} python {Path(__file__).resolve()} {where}"
        workers: list[subprocess.Popen[bytes]] = [
            host.start(f"{script} --rank {rank}", folder / f"{rank}.log")
            for rank, host in enumerate((first, second))
        ]
        for rank, worker in enumerate(workers):
            assert worker.wait(timeout=900) == 0, (folder / f"{rank}.log").read_text()
    found = json.loads((folder / "rank0.json").read_text())
    return Link(**found["link"]), {
        stage: (statistics.median(s for s, _ in steps), statistics.median(b for _, b in steps))
        for stage, steps in found["steps"].items()
    }


def main() -> None:
    """Parse; be a worker, or measure all links and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int)
    parser.add_argument("--interface")
    parser.add_argument("--address")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.rank is not None:
        work(args.rank, args.interface, args.address, args.folder)
        return
    model = predicted(load_preset("digits", _CONFIG))
    links = [Link(), Link(1000), Link(200), Link(50), Link(1000, 1.0), Link(200, 1.0)]
    print("| link | probed | stage | sent a step | predicted | step | predicted | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    base: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for number, link in enumerate(links):
            probe, found = measure(link, Path(root) / str(number))
            base = base or found
            for stage, (step_s, sent) in found.items():
                wanted, delays = model[stage]
                wanted_s = base[stage][0]
                if link.mbit_per_s is not None:
                    wanted_s += wanted * 8 / link.mbit_per_s / 1e6
                wanted_s += delays * link.delay_ms / 1e3
                print(
                    f"| {link} | {probe.mbit_per_s:.0f} Mbit/s, {probe.delay_ms:.2f} ms | {stage} "
                    f"| {sent / 1e6:.2f} MB | {wanted / 1e6:.2f} MB "
                    f"| {step_s * 1e3:.0f} ms | {wanted_s * 1e3:.0f} ms "
                    f"| {wanted_s / step_s - 1:+.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
