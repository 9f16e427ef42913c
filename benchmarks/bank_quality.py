"""Does the bank help? Forks of one trunk: in-batch against banks, k grown, contextual or Euclidean.

    python benchmarks/bank_quality.py --preset digits --banks 4096

Of each seed one run trains without a group stage; every variant goes on from its checkpoint at
schedule.group_start and trains the same epochs. One process and one thread a run.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from conr_ray.cores import usable_cores

FIGURES = ("acc", "nmi", "neighbor_purity", "bank_share")


def train_in(folder: Path, preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train the run in `folder` from its newest checkpoint; the last epoch's metrics."""
    import torch

    from conr_ray.config import load_preset
    from conr_ray.data.store import open_data
    from conr_ray.engine.loop import train
    from conr_ray.engine.observer import Observers
    from conr_ray.engine.run_directory import RunDirectory

    torch.set_num_threads(1)
    config = load_preset(preset, overrides)
    images = open_data(config.data)
    rows = train(config, images, RunDirectory(folder), Observers(), torch.device("cpu"))
    return dict(rows[-1])


def fork(trunk: Path, folder: Path, epoch: int, preset: str, overrides: dict[str, Any]) -> Any:
    """Train a variant from the trunk's checkpoint after `epoch` epochs."""
    name = f"checkpoints/epoch_{epoch:06d}"
    shutil.copytree(trunk / name, folder / name)
    return train_in(folder, preset, overrides)


def variants(banks: list[int], batch_size: int) -> dict[str, dict[str, Any]]:
    """Fields of each variant by its name: k1 grows with k, and k2 with k1."""
    found: dict[str, dict[str, Any]] = {}
    for size in [0, *banks]:
        pool = f"bank of {size:,}" if size else "in-batch"
        for k, k2 in ((10, 2), (20, 2), (50, 4), (100, 6)):
            if k >= batch_size and not size:
                continue
            for kind in ("euclidean", "contextual"):
                near = {"kind": kind, "k1": k, "k2": k2, "k": k}
                fields = {f"neighborhood.{name}": value for name, value in near.items()}
                found[f"{pool}, {kind}, k={k}"] = {"bank.size": size, **fields}
    return found


def main() -> None:
    """Parse, train trunks and forks, print the table."""
    from conr_ray.config import load_preset, parse_overrides

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--banks", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--only", nargs="*", help="variants whose names hold one of these words")
    parser.add_argument("--processes", type=int, default=usable_cores())
    args = parser.parse_args()
    fixed = parse_overrides(args.settings)
    config = load_preset(args.preset, fixed)
    start = config.group_start_epoch
    assert start
    chosen = {
        name: fields
        for name, fields in variants(args.banks, config.optim.batch_size).items()
        if not args.only or any(word in name for word in args.only)
    }
    # Every run's checkpoints are at the fork and at the end.
    fixed |= {"checkpoint.every": start, "checkpoint.keep": 9}
    results: dict[str, list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory() as root,
        ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool,
    ):
        trunks = [Path(root) / f"trunk {seed}" for seed in range(args.seeds)]
        never = {**fixed, "schedule.group_start": "never"}
        plain = [
            pool.submit(train_in, trunk, args.preset, {**never, "seed": seed})
            for seed, trunk in enumerate(trunks)
        ]
        results["BYOL"] = [future.result() for future in plain]
        pending = {
            (name, seed): pool.submit(
                fork,
                trunk,
                Path(root) / f"{name} {seed}",
                start,
                args.preset,
                {**fixed, **fields, "seed": seed},
            )
            for name, fields in chosen.items()
            for seed, trunk in enumerate(trunks)
        }
        for (name, _), future in pending.items():
            results.setdefault(name, []).append(future.result())
    print(f"| {args.preset}, {args.seeds} seeds | ACC | NMI | purity | share from the bank |")
    print("| --- | --- | --- | --- | --- |")
    for name, rows in results.items():
        print(f"| {name} | {' | '.join(_cell([row.get(f) for row in rows]) for f in FIGURES)} |")


def _cell(values: list[Any]) -> str:
    if None in values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
