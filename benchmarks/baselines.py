"""CoNR against its baselines: the same preset, epochs and seeds; mean and deviation.

    python benchmarks/baselines.py --preset digits --figure docs/digits.svg

Variants: plain BYOL (no group stage), Euclidean neighbours, contextual neighbours (CoNR). Runs are
whole runs, one process and one thread each, as many at a time as there are cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "BYOL": {"schedule.group_start": "never"},
    "Euclidean": {"neighborhood.kind": "euclidean"},
    "CoNR": {},
}
FIGURES = ("acc", "nmi", "ari")


def run(preset: str, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """One run's metrics, an epoch a row."""
    import torch

    from conr_ray.config import load_preset
    from conr_ray.data.store import open_images
    from conr_ray.engine.loop import train
    from conr_ray.engine.observer import Observers
    from conr_ray.engine.run_directory import RunDirectory

    torch.set_num_threads(1)
    config = load_preset(preset, overrides)
    with tempfile.TemporaryDirectory() as folder:
        rows = train(
            config,
            open_images(config.data),
            RunDirectory(folder),
            Observers(),
            torch.device("cpu"),
        )
    return [dict(row) for row in rows]


def main() -> None:
    """Parse, run all variants and seeds, print the table, draw."""
    from conr_ray.config import parse_overrides

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--figure", type=Path, help="draw NMI over epochs into this file")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    fixed = parse_overrides(args.settings)

    jobs = {
        (variant, seed): {**fixed, **VARIANTS[variant], "seed": seed}
        for seed in range(args.seeds)
        for variant in args.variants
    }
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        pending = {key: pool.submit(run, args.preset, job) for key, job in jobs.items()}
        results = {key: future.result() for key, future in pending.items()}

    print(f"| {args.preset}, {args.seeds} seeds | ACC | NMI | ARI | purity | s/epoch |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant in args.variants:
        runs = [rows for (name, _), rows in results.items() if name == variant]
        cells = [_mean_and_deviation([rows[-1][name] for rows in runs]) for name in FIGURES]
        purity = [rows[-1].get("neighbor_purity") for rows in runs]
        cells.append("-" if None in purity else _mean_and_deviation(purity))
        times = [row["epoch_time_s"] for rows in runs for row in rows]
        print(f"| {variant} | {' | '.join(cells)} | {statistics.median(times):.2f} |")
    for key, rows in results.items():
        print(*key, " ".join(f"{name} {rows[-1][name]:.4f}" for name in FIGURES))
    if args.figure:
        draw(results, args.preset, args.figure)


def draw(results: dict[tuple[str, int], list[dict[str, Any]]], preset: str, file: Path) -> None:
    """NMI over epochs: a line for each variant's mean, a band from its worst to its best seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = {"BYOL": "#8a8f98", "Euclidean": "#d98a2b", "CoNR": "#2563eb"}
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    starts = [row["epoch"] for rows in results.values() for row in rows if row["stage"] == "group"]
    if starts:
        axes.axvline(min(starts), color="#c0c4cc", linestyle="--", linewidth=1)
        axes.text(min(starts) + 0.5, 0.02, "group stage", transform=axes.get_xaxis_transform())
    for variant in dict.fromkeys(name for name, _ in results):
        runs = [rows for (name, _), rows in results.items() if name == variant]
        by_epoch: dict[int, list[float]] = {}
        for rows in runs:
            for row in rows:
                if row.get("nmi") is not None:
                    by_epoch.setdefault(row["epoch"] + 1, []).append(row["nmi"])
        epochs = sorted(by_epoch)
        values = [by_epoch[epoch] for epoch in epochs]
        axes.plot(epochs, [statistics.mean(v) for v in values], color=colors[variant])
        axes.fill_between(
            epochs,
            [min(v) for v in values],
            [max(v) for v in values],
            alpha=0.15,
            color=colors[variant],
            linewidth=0,
        )
        axes.annotate(
            f"{variant} {statistics.mean(values[-1]):.3f}",
            (epochs[-1], statistics.mean(values[-1])),
            xytext=(6, -3),
            textcoords="offset points",
            color=colors[variant],
        )
    axes.set(xlabel="epoch", ylabel="NMI", title=f"{preset}: mean of {len(runs)} seeds and range")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    figure.tight_layout()
    figure.subplots_adjust(right=0.84)
    figure.savefig(file, dpi=150)


def _mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
