"""CoNR against its baselines: the same preset, epochs and seeds; mean and deviation.

    python benchmarks/baselines.py --preset digits --figure docs/digits.svg

Variants: plain BYOL (no group stage), Euclidean neighbours, contextual neighbours (CoNR). Runs are
whole runs, one process and one thread each, as many at a time as there are cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from conr_ray.cores import usable_cores

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
    from conr_ray.data.store import open_data
    from conr_ray.engine.loop import train
    from conr_ray.engine.observer import Observers
    from conr_ray.engine.run_directory import RunDirectory

    torch.set_num_threads(1)
    config = load_preset(preset, overrides)
    with tempfile.TemporaryDirectory() as folder:
        rows = train(
            config,
            open_data(config.data),
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
    parser.add_argument("--processes", type=int, default=usable_cores())
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
        known = [value for value in purity if value is not None]
        cells.append(_mean_and_deviation(known) if len(known) == len(purity) else "-")
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

    colors = {"BYOL": "#6b7280", "Euclidean": "#d97706", "CoNR": "#2563eb"}
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    starts = [row["epoch"] for rows in results.values() for row in rows if row["stage"] == "group"]
    ends = []
    for variant in dict.fromkeys(name for name, _ in results):
        runs = [rows for (name, _), rows in results.items() if name == variant]
        by_epoch: dict[int, list[float]] = {}
        for rows in runs:
            for row in rows:
                if row.get("nmi") is not None:
                    by_epoch.setdefault(row["epoch"] + 1, []).append(row["nmi"])
        epochs = sorted(by_epoch)
        means = [statistics.mean(by_epoch[epoch]) for epoch in epochs]
        low, high = ([end(by_epoch[epoch]) for epoch in epochs] for end in (min, max))
        axes.plot(epochs, means, color=colors[variant])
        axes.fill_between(epochs, low, high, alpha=0.12, color=colors[variant], linewidth=0)
        ends.append((means[-1], variant))
    # Before, the lines are one: what differs is the group stage.
    first = min(starts, default=0) // 2
    shown = [
        row["nmi"]
        for rows in results.values()
        for row in rows
        if row.get("nmi") and row["epoch"] >= first
    ]
    low, high = min(shown) - 0.01, max(shown) + 0.01
    axes.set(xlim=(first, epochs[-1]), ylim=(low, high), xlabel="epoch", ylabel="NMI")
    axes.set_title(f"{preset}: mean and range of {len(runs)} seeds")
    if starts:
        axes.axvline(min(starts), color="#9ca3af", linestyle="--", linewidth=1)
        axes.text(min(starts) + 0.4, low + 0.004, "group stage", color="#6b7280")
    height = low
    for mean, variant in sorted(ends):
        height = max(mean, height + (high - low) / 14)
        text = f"{variant} {mean:.3f}"
        axes.text(epochs[-1] + 0.6, height, text, color=colors[variant], va="center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.subplots_adjust(right=0.8)
    figure.savefig(file, dpi=150, metadata={"Date": None})


def _mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
