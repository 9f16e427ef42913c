"""Bytes and time of a training step over a network link, against the model of docs/scaling.md.

    PYTHONPATH=. python benchmarks/network.py     # as root: 2 hosts in network namespaces

Two workers train on hosts of their own, first over an unshaped link, then over slower ones. Counted
are the bytes that a worker's interface sends in a step, measured is the time of a step; predicted
are both. Links are shaped by tc (token bucket); a delay needs netem, and is left out where the
kernel has none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

from conr_ray.config import RunConfig, load_preset
from conr_ray.data.store import open_images
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.training_state import TrainingState
from tests.clusters.caller import ROOT
from tests.clusters.namespaces import Host, Sandbox

_ADDRESSES = ("10.77.0.11", "10.77.0.12")
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
    """Of each host to the others; None is as fast as this machine."""

    mbit_per_s: float | None = None
    delay_ms: float = 0.0

    def shape(self, host: Host) -> bool:
        """Whether the kernel can do it."""
        if self.mbit_per_s is None:
            return True
        rate = f"rate {self.mbit_per_s}mbit"
        rule = f"netem {rate} delay {self.delay_ms}ms limit 100000"
        if not self.delay_ms:
            rule = f"tbf {rate} burst 256kb latency 400ms"
        return host.run(f"tc qdisc replace dev eth0 root {rule}").returncode == 0

    def __str__(self) -> str:
        if self.mbit_per_s is None:
            return "unshaped"
        return f"{self.mbit_per_s:g} Mbit/s" + (f", {self.delay_ms:g} ms" if self.delay_ms else "")


def sent_bytes() -> int:
    """What this host has sent so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    [figures] = [line.partition(":")[2].split() for line in lines if line.strip()[:5] == "eth0:"]
    return int(figures[8])


def work(rank: int, folder: Path) -> None:
    """One worker: train, and write time and bytes after each step."""
    torch.set_num_threads(1)
    config = load_preset("digits", _CONFIG)
    store = dist.TCPStore(_ADDRESSES[0], 29500, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    images = open_images(config.data)
    steps_per_epoch = images.num_images // config.optim.batch_size
    marks: list[tuple[float, int]] = []
    register_optimizer_step_post_hook(lambda *_: marks.append((time.perf_counter(), sent_bytes())))
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
    (folder / f"rank{rank}.json").write_text(json.dumps(steps))


def predicted(config: RunConfig) -> dict[str, tuple[float, int]]:
    """Bytes that one of two workers sends in a step of each stage, and its exchanges."""
    state = TrainingState.create(config, 1, torch.device("cpu"))
    norms = [m.num_features for m in state.online.modules() if isinstance(m, _BatchNorm)]
    encoder = [m.num_features for m in state.target.modules() if isinstance(m, _BatchNorm)]
    batch, width = config.optim.batch_size, config.model.embedding_dim
    near = config.neighborhood
    gradients = 4 * sum(p.numel() for p in state.online.parameters())
    # Of each view: sums with a count and squares forward, both gradients' sums backward.
    statistics_ = 2 * 4 * (sum(4 * c + 1 for c in norms) + sum(2 * c + 1 for c in encoder))
    instance = gradients + statistics_
    exchanges = 2 * (3 * len(norms) + 2 * len(encoder)) + 1
    keys = 2 * batch // 2 * width * 4
    lists = batch * (4 * near.k1 - 2) * 8
    numbers = 2 * batch // 2 * near.k * 8
    sums = 2 * batch * width * 4
    group = instance + keys + lists + numbers + sums
    return {"instance": (instance, exchanges), "group": (group, exchanges + 9)}


def measure(link: Link, folder: Path) -> dict[str, tuple[float, float]] | None:
    """Median seconds and bytes of a step of each stage; None where the link cannot be had."""
    folder.mkdir()
    variables = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    with Sandbox(folder) as sandbox:
        hosts = [sandbox.add_host([address], "", variables) for address in _ADDRESSES]
        if not all([link.shape(host) for host in hosts]):
            return None
        script = f"GLOO_SOCKET_IFNAME=eth0 python {Path(__file__).resolve()} --folder {folder}"
        workers: list[subprocess.Popen[bytes]] = [
            host.start(f"{script} --rank {rank}", folder / f"{rank}.log")
            for rank, host in enumerate(hosts)
        ]
        for rank, worker in enumerate(workers):
            assert worker.wait(timeout=900) == 0, (folder / f"{rank}.log").read_text()
    found = json.loads((folder / "rank0.json").read_text())
    return {
        stage: (statistics.median(s for s, _ in steps), statistics.median(b for _, b in steps))
        for stage, steps in found.items()
    }


def main() -> None:
    """Parse; be a worker, or measure all links and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.rank is not None:
        work(args.rank, args.folder)
        return
    model = predicted(load_preset("digits", _CONFIG))
    links = [Link(), Link(1000), Link(200), Link(50), Link(1000, 1.0)]
    print("| link | stage | sent a step | predicted | step | predicted | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for number, link in enumerate(links):
            found = measure(link, Path(root) / str(number))
            if found is None:
                print(f"| {link} | - | this kernel cannot shape it | - | - | - | - |")
                continue
            base = base or found
            for stage, (step_s, sent) in found.items():
                wanted, exchanges = model[stage]
                wanted_s = base[stage][0]
                if link.mbit_per_s is not None:
                    wanted_s += wanted * 8 / link.mbit_per_s / 1e6
                wanted_s += exchanges * 2 * link.delay_ms / 1e3
                print(
                    f"| {link} | {stage} | {sent / 1e6:.2f} MB | {wanted / 1e6:.2f} MB | "
                    f"{step_s * 1e3:.0f} ms | {wanted_s * 1e3:.0f} ms | "
                    f"{wanted_s / step_s - 1:+.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
