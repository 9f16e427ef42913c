"""A BYOL step and its views, against lightly's: seconds and ratios on this machine.

    pip install lightly; python benchmarks/byol_step.py     # 10 minutes on 2 cores

ResNet-18 with the CIFAR stem, heads of 4096 and 256, SGD, two views of 32 pixels. Both train this
on the same images; lightly also in channels-last, which is faster on CPUs and not its
default. End to end, lightly makes views with its transforms of PIL images, in this process or in
workers of a data loader, whichever is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, BYOLView1Transform
from on_gpu.paths import random_images
from on_gpu.stepper import Stepper, step_of
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from conr_ray.config import load_preset
from conr_ray.engine.acceleration import Acceleration
from conr_ray.method.networks import ResNet

CPU = torch.device("cpu")


class Lightly:
    """BYOL as lightly's own example writes it."""

    def __init__(self, layout: torch.memory_format, lr: float) -> None:
        self.layout = layout
        self.online = nn.Sequential(ResNet(18, "cifar", 3), BYOLProjectionHead(512, 4096, 256))
        self.predictor = BYOLPredictionHead(256, 4096, 256)
        self.target = nn.Sequential(ResNet(18, "cifar", 3), BYOLProjectionHead(512, 4096, 256))
        deactivate_requires_grad(self.target)
        for network in (self.online, self.predictor, self.target):
            network.to(memory_format=layout)
        parameters = [*self.online.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
        self.loss = NegativeCosineSimilarity()

    def train(self, views: list[Tensor]) -> None:
        """One step."""
        update_momentum(self.online, self.target, m=0.99)
        first, second = (view.to(memory_format=self.layout) for view in views)
        predictions = [self.predictor(self.online(view)) for view in (first, second)]
        with torch.no_grad():
            keys = [self.target(view) for view in (first, second)]
        loss = 0.5 * (self.loss(predictions[0], keys[1]) + self.loss(predictions[1], keys[0]))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class PilViews(Dataset[list[Tensor]]):
    """Two views of each image by lightly's transforms."""

    def __init__(self, images: Any) -> None:
        self.images = images
        jitter = {"input_size": 32, "gaussian_blur": 0.0}
        views = [BYOLView1Transform(**jitter) for _ in range(2)]
        self.transform = BYOLTransform(*views)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(Image.fromarray(self.images[row].transpose(1, 2, 0)))
        return views


def main() -> None:
    """Print medians and ratios; the contenders take turns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = load_preset("cifar10", {"optim.batch_size": args.batch, "optim.precision": "fp32"})
    data = random_images(4 * args.batch, 3, 32)
    ours = Stepper(config, data, Acceleration(CPU), grouped=False)
    grouped = Stepper(config, data, Acceleration(CPU), grouped=True)
    step = step_of(CPU, args.batch, 256)
    views = ours.views()
    plain, last = (
        Lightly(layout, 0.05) for layout in (torch.contiguous_format, torch.channels_last)
    )

    steps: dict[str, Callable[[], object]] = {
        "lightly": lambda: plain.train([view.contiguous() for view in views]),
        "lightly, channels-last": lambda: last.train(views),
        "conr_ray, instance stage": lambda: ours.train(views, step),
        "conr_ray, group stage": lambda: grouped.train(views, step),
    }
    print_table("a step", steps, args.rounds, peer="lightly, channels-last")

    def loaded(workers: int) -> Iterator[list[Tensor]]:
        loader = DataLoader(PilViews(data.rows), args.batch, num_workers=workers, drop_last=True)
        while True:
            yield from loader

    here, away = loaded(0), loaded(args.threads)
    whole: dict[str, Callable[[], object]] = {
        "lightly, channels-last": lambda: last.train(next(here)),
        f"the same, {args.threads} loaders": lambda: last.train(next(away)),
        "conr_ray": lambda: ours.train(ours.views(), step),
    }
    print_table("views and step", whole, args.rounds, peer="lightly, channels-last")


def print_table(
    title: str, contenders: dict[str, Callable[[], object]], rounds: int, *, peer: str
) -> None:
    """Median seconds of each, in turns after one that warms up, and the ratio to `peer`."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if turn:
                found[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in found.items()}
    print(f"\n| {title} | s | x {peer} |\n| --- | --- | --- |")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} | {seconds / medians[peer]:.2f} |")


if __name__ == "__main__":
    main()
