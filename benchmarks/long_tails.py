"""Clusters of unequal sizes: balanced accuracy on long tails, of k-means and of the cut.

    OMP_NUM_THREADS=1 python benchmarks/long_tails.py --digits --vectors cifar10.parquet

Each data set is cut to a long tail (`data.imbalance`) of each ratio; 1 leaves it whole.

--digits: runs of the preset on images, as the paper has them (k-means, boundary filter over the
batch), and with clustering.kind=cut and boundary.per=cluster, with and without evenness.

--vectors: tables of embedding and label, as `python -m conr_ray.embed` writes them. On the vectors
as they are, centred: k-means, which is the paper's way to cluster, and the cut. Then runs of
clustering heads with either objective.

Figures are means and deviations over seeds; no label is seen but for them, and to make the tails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from conr_ray.config import RunConfig, load_preset, override
from conr_ray.cores import usable_cores
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.method.clustering.cut import cut_clusters
from conr_ray.method.clustering.kmeans import Clustering, spherical_kmeans
from conr_ray.method.clustering.metrics import agreement

FIGURES = ("balanced_acc", "acc", "nmi")
OF_RUNS: dict[str, dict[str, Any]] = {
    "k-means, filter of the batch (paper)": {},
    "k-means, filter of each cluster": {"boundary.per": "cluster"},
    "cut, filter of each cluster": {"clustering.kind": "cut", "boundary.per": "cluster"},
    "the same, evenness 0.5": {
        "clustering.kind": "cut",
        "boundary.per": "cluster",
        "clustering.evenness": 0.5,
    },
}
OF_HEADS: dict[str, dict[str, Any]] = {
    "heads, information": {},
    "heads, cut": {"heads.objective": "cut", "optim.lr": 10.0},
}
OF_VECTORS = {
    "data.source": "vectors",
    "model.backbone": "identity",
    "model.weights": "hub",
    "model.train": "all",
    "data.stored_size": None,
    "evaluation.neighbors": False,
}
Scores = Mapping[str, float]


def of_run(config: RunConfig, data: DataSet) -> Scores:
    """Scores after a run."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        rows = train(config, data, RunDirectory(folder), Observers(), torch.device("cpu"))
        took = time.process_time() - began
    return {"cpu_s": took, **{name: float(rows[-1][name] or 0) for name in FIGURES}}


def of_function(data: DataSet, cluster: Callable[[torch.Tensor, int], Clustering]) -> Scores:
    """Scores of clusters of centred vectors."""
    labels_n = data.labels
    assert labels_n is not None
    unit_nd = normalize(torch.from_numpy(np.array(data.rows)) - torch.tensor(data.mean))
    began = time.process_time()
    found = cluster(unit_nd, len(np.unique(labels_n)))
    took = time.process_time() - began
    return {"cpu_s": took, **agreement(labels_n, found.labels_b.numpy())}


def print_table(title: str, rows: Mapping[str, Sequence[Scores]]) -> None:
    """A row for each way."""
    count = len(next(iter(rows.values())))
    print(f"\n| {title}, {count} seeds | balanced ACC | ACC | NMI | CPU s | of each seed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in rows.items():
        cells = []
        for figure in FIGURES:
            values = [one[figure] for one in found]
            deviation = statistics.stdev(values) if count > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {deviation:.3f}")
        took = statistics.median(one["cpu_s"] for one in found)
        each = ", ".join(f"{one['balanced_acc']:.3f}" for one in found)
        print(f"| {name} | {' | '.join(cells)} | {took:.0f} | {each} |", flush=True)


def show_digits(ratio: float, seeds: range) -> None:
    """Runs of the preset digits."""
    begun = override(load_preset("digits"), {"data.imbalance": ratio if ratio > 1 else None})
    data = open_data(begun.data)
    rows = {
        name: [of_run(override(begun, {**fields, "seed": seed}), data) for seed in seeds]
        for name, fields in OF_RUNS.items()
    }
    print_table(f"digits, ratio {ratio:g}, {data.num_rows:,} images", rows)


def show_vectors(file: Path, ratio: float, seeds: range) -> None:
    """Both ways on vectors, and heads with both objectives."""
    fields: dict[str, Any] = {**OF_VECTORS, "data.path": str(file)}
    fields["data.imbalance"] = ratio if ratio > 1 else None
    begun = load_preset("photos", fields)
    data = open_data(begun.data)
    begun = override(begun, {"clustering.num_clusters": data.num_classes})
    rows: dict[str, list[Scores]] = {"k-means (paper)": [], "cut": []}
    for seed in seeds:
        for name, cluster in (("k-means (paper)", kmeans), ("cut", cut)):
            rows[name].append(of_function(data, partial(cluster, seed=seed)))
    for name, more in OF_HEADS.items():
        rows[name] = [of_run(override(begun, {**more, "seed": seed}), data) for seed in seeds]
    print_table(f"{file.stem}, ratio {ratio:g}, {data.num_rows:,} vectors", rows)


def kmeans(rows_nd: torch.Tensor, num_clusters: int, *, seed: int) -> Clustering:
    """As a run makes it."""
    return spherical_kmeans(rows_nd, len(rows_nd), num_clusters, seed=seed, restarts=10)


def cut(rows_nd: torch.Tensor, num_clusters: int, *, seed: int) -> Clustering:
    """As a run makes it."""
    return cut_clusters(rows_nd, len(rows_nd), num_clusters, seed=seed, restarts=10)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--vectors", nargs="*", type=Path, default=[])
    parser.add_argument("--ratios", nargs="*", type=float, default=[1, 10, 100])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for ratio in args.ratios:
        if args.digits:
            show_digits(ratio, range(args.seeds))
        for file in args.vectors:
            show_vectors(file, ratio, range(args.seeds))


if __name__ == "__main__":
    main()
