"""Which settings make short runs good? Runs of equal compute, each with one change.

    OMP_NUM_THREADS=1 python benchmarks/fast_recipe.py --data cifar10.parquet

A narrow network on a part of CIFAR-10. Compute is counted in pixels of training views: smaller ones
in the first half of a run pay for more epochs. A row is printed when its runs have ended.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

FIGURES = ("acc", "nmi", "neighbor_purity", "data_purity_euclidean")


def base(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the run that all others change: a short BYOL with an in-batch group stage."""
    return {
        "data.source": "parquet",
        "data.path": args.data,
        "data.limit": args.images,
        "data.stored_size": args.side,
        "views.size": args.side,
        "views.crop_scale": [0.2, 1.0],
        "model.backbone": "convnet",
        "model.widths": args.widths,
        "model.head_hidden_dim": 8 * args.widths[-1],
        "model.embedding_dim": args.widths[-1],
        "optim.batch_size": args.batch,
        "optim.lr": 0.1,
        "optim.weight_decay": 1e-4,
        "optim.group_stage_lr_factor": 1.0,
        "byol.momentum": 0.99,
        "byol.group_stage_predictor_lr_factor": 10.0,
        "schedule.epochs": args.epochs,
        "schedule.warmup_epochs": max(1, args.epochs // 20),
        "schedule.group_start": args.epochs // 2,
        "schedule.relax_epochs": args.epochs // 5,
        "clustering.restarts": 5,
        "evaluation.every": args.epochs,
        "checkpoint.every": 10 * args.epochs,
        "tracking.wandb": "off",
    }


def settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each run changes in `base`, by its name; settings without a group stage first."""
    epochs, side = args.epochs, args.side
    start = "schedule.group_start"
    # Half of the epochs at a quarter of the pixels: 1.6 times as many cost the same.
    longer = round(epochs / (0.5 + 0.5 / 4))
    smaller_views = {
        "schedule.epochs": longer,
        "evaluation.every": longer,
        "views.sizes": [[0, side // 2], [longer // 2, side]],
    }
    instance: dict[str, dict[str, Any]] = {
        "BYOL": {},
        "momentum 0.996": {"byol.momentum": 0.996},
        "momentum 0.97": {"byol.momentum": 0.97},
        "lr x 2": {"optim.lr": 0.2},
        "small views first": smaller_views,
        "batch x 2": {"optim.batch_size": 2 * args.batch},
        "lr x 4": {"optim.lr": 0.4},
    }
    wide = {"neighborhood.k1": 20, "neighborhood.k2": 4, "neighborhood.k": 20}
    bank = {"bank.size": args.images // 2}
    return {
        **{name: {start: "never", **changes} for name, changes in instance.items()},
        "group stage from 1/2": {},
        "group stage from 1/4": {start: epochs // 4},
        "group stage from 3/4": {start: 3 * epochs // 4},
        "from 1/2, bank of half the images": bank,
        "from 1/2, bank, k = 20": {**bank, **wide},
    }


def last_row(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a run; the metrics of its last epoch, and how long it took."""
    import torch

    from conr_ray.config import load_preset
    from conr_ray.data.store import open_data
    from conr_ray.engine.loop import train
    from conr_ray.engine.observer import Observers
    from conr_ray.engine.run_directory import RunDirectory

    torch.set_num_threads(1)
    config = load_preset("cifar10", fields)
    directory, data = RunDirectory(folder), open_data(config.data)
    started = time.process_time()
    rows = train(config, data, directory, Observers(), torch.device("cpu"))
    return {**rows[-1], "cpu_s": time.process_time() - started}


def main() -> None:
    """Train the runs one after another; print a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="Parquet file of CIFAR-10")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", help="names of settings")
    args = parser.parse_args()
    print(f"| {args.images} images, {args.side} px | {' | '.join(FIGURES)} | CPU s |")
    print(f"| --- |{' --- |' * (len(FIGURES) + 1)}")
    for name, changes in settings(args).items():
        if args.only and name not in args.only:
            continue
        found = []
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as root:
                found.append(last_row({**base(args), **changes, "seed": seed}, Path(root)))
        cells = [_cell([row.get(figure) for row in found]) for figure in (*FIGURES, "cpu_s")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _cell(values: list[Any]) -> str:
    if None in values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
