"""Which key of a sample to enqueue: the mean of both views' keys, or one view's; by purity.

    python benchmarks/enqueued_key.py --preset digits

The target network of a run without a group stage is frozen; two banks are then filled with the
same samples, and the neighbours of the same keys are found in both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from conr_ray.config import RunConfig, load_preset, parse_overrides
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.training_state import TrainingState
from conr_ray.method import keyed_random
from conr_ray.method.clustering.metrics import neighbor_purity
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood

CPU = torch.device("cpu")


@torch.no_grad()
def purities(config: RunConfig, images: DataSet, folder: Path, k: int) -> list[float]:
    """Purity of neighbours in a bank of mean keys, and in one of the first view's keys."""
    state = TrainingState.create(config, images.row_shape, Acceleration(CPU))
    epoch = config.schedule.epochs
    state.load(RunDirectory(folder).load_checkpoint(epoch, CPU), config, images.fingerprint)
    inputs = make_inputs(config, images, CPU)
    classes = torch.from_numpy(images.labels)
    batch_size = config.optim.batch_size
    near = Neighborhood("contextual", k1=k, k2=2, k=k)
    width = config.model.embedding_dim
    banks = [MemoryBank(images.num_rows, width, batch_size, near) for _ in range(2)]
    found: list[list[float]] = [[], []]
    for epoch in range(3):
        order = keyed_random.permutation(keyed_random.fold(1, epoch), images.num_rows)
        for step in range(images.num_rows // batch_size):
            ids = order[step * batch_size : (step + 1) * batch_size]
            batch, positions = inputs.take(ids), torch.arange(batch_size)
            keys = [
                state.framework.embed(
                    inputs.random(
                        batch, keyed_random.fold(2, view, epoch, step), positions, mild=True
                    )
                )
                for view in (1, 2)
            ]
            for place, (bank, enqueued) in enumerate(zip(banks, (keys, keys[:1]), strict=True)):
                neighbors = bank.find(enqueued, ids)[0]
                # The first epoch fills the banks.
                if epoch:
                    labels = classes[neighbors.sample_ids_bk]
                    found[place].append(float(neighbor_purity(labels, classes[ids])))
    return [statistics.mean(values) for values in found]


def main() -> None:
    """Parse, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    torch.set_num_threads(2)
    fixed = {"schedule.group_start": "never", "schedule.epochs": args.epochs}
    print("| seed | k | mean of both views | one view |")
    print("| --- | --- | --- | --- |")
    for seed in range(args.seeds):
        config = load_preset(args.preset, parse_overrides(args.settings) | fixed | {"seed": seed})
        images = open_data(config.data)
        with tempfile.TemporaryDirectory() as folder:
            train(config, images, RunDirectory(folder), Observers(), CPU)
            for k in (10, 50):
                mean, one = purities(config, images, Path(folder), k)
                print(f"| {seed} | {k} | {mean:.4f} | {one:.4f} |", flush=True)


if __name__ == "__main__":
    main()
