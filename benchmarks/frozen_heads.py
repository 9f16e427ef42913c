"""Clustering heads on frozen features: against k-means, other neighbours, and others' heads.

    python benchmarks/frozen_heads.py cifar10 fashion_mnist
    python benchmarks/frozen_heads.py cifar10 --neighbors --seeds 5
    python benchmarks/frozen_heads.py cifar10 --peers
    python benchmarks/frozen_heads.py --vectors vectors.parquet

Images are embedded with the backbone of the preset `photos`, into the cache (CONR_RAY_CACHE),
where a second use finds them; a table of `python -m conr_ray.embed` or another one serves as well.
k-means (scikit-learn, best of 10 starts), the peers and the neighbours that purity is of get the
vectors centred and at unit length. Our head is a run of the preset, with its checkpoints and
evaluations, timed as a whole. No label is read but for the figures, which are means and deviations
over seeds.

What the features allow: a classifier by the 20 nearest others (k-NN), and logistic regression on
80% of the rows, tested on the others (probe).

The peers are those of heads_of_others.py, with our number of heads, rows of a batch and steps; each
learning rate of three is tried, and the one with the smallest loss counts.

Shapes: n rows, b of a batch, d width, h heads, c clusters, k neighbours.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads_of_others import Budget, Learn, learn_scan, learn_temi
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.config import RunConfig, load_preset, override, parse_overrides
from conr_ray.cores import usable_cores
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.frozen import embedded
from conr_ray.frozen.store import is_embedded
from conr_ray.method.clustering.metrics import agreement, neighbor_purity
from conr_ray.method.frameworks.heads import Config as Heads
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors

DATA_SETS = {
    "cifar10": ("cifar10.parquet", "label"),
    "cifar20": ("cifar100.parquet", "coarse_label"),
    "cifar100": ("cifar100.parquet", "label"),
    "fashion_mnist": ("fashion_mnist.parquet", "label"),
}
# Of k, k1 and k2.
WIDTHS = ((20, 50, 5), (50, 100, 10), (100, 200, 20))
RATES = {"TEMI": (1e-3, 5e-3, 2.5e-2), "SCAN": (1e-4, 1e-3, 1e-2)}
Scores = dict[str, float]


@dataclass(frozen=True)
class Features:
    """A data set as vectors, the same centred and at unit length, and what is known of it."""

    title: str
    config: RunConfig
    data: DataSet
    unit_nd: Tensor
    labels_n: Any

    @property
    def num_clusters(self) -> int:
        """Number of classes."""
        return len(np.unique(self.labels_n))


class Clock:
    """Seconds since it was made, and how many of them this process computed, over its threads."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> Scores:
        """As `seconds` and `cpu_s`."""
        wall, cpu = self._began
        return {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def opened(title: str, fields: dict[str, Any]) -> Features:
    """Features of a data set, embedded or found; tells how long that took."""
    config = load_preset("photos", {"data.stored_size": None, **fields})
    images = open_data(config.data)
    found, began = is_embedded(config, images), time.perf_counter()
    data = embedded(config, images)
    took = time.perf_counter() - began
    if data.images is None:
        how = "given vectors"
    elif found:
        how = f"found in the store in {took:.2f} s"
    else:
        how = f"embedded in {took:.0f} s, {data.num_rows / took:.1f} images/s"
    print(f"\n{title}: {data.num_rows:,} rows of {data.row_shape[0]}, {how}\n", flush=True)
    labels_n = data.labels
    assert labels_n is not None
    unit_nd = normalize(torch.from_numpy(np.array(data.rows)) - torch.tensor(data.mean))
    config = override(config, {"clustering.num_clusters": len(np.unique(labels_n))})
    return Features(title, config, data, unit_nd, labels_n)


def by_kmeans(features: Features, seed: int) -> Scores:
    """scikit-learn's k-means, best of 10 starts."""
    from sklearn.cluster import KMeans

    clock = Clock()
    kmeans = KMeans(features.num_clusters, n_init=10, random_state=seed)
    clusters_n = kmeans.fit_predict(features.unit_nd.numpy())
    return {**clock.read(), **agreement(features.labels_n, clusters_n)}


def by_head(features: Features, seed: int, fields: dict[str, Any] | None = None) -> Scores:
    """A run of the preset with other fields."""
    config = override(features.config, {"seed": seed, **(fields or {})})
    with tempfile.TemporaryDirectory() as folder:
        place, clock = RunDirectory(folder), Clock()
        rows = train(config, features.data, place, Observers(), torch.device("cpu"))
        took = clock.read()
    return took | {name: float(rows[-1][name] or 0) for name in ("acc", "nmi", "ari")}


def by_nearest(features: Features) -> float:
    """Accuracy of the class that is most frequent among the 20 nearest others."""
    _, rows_nk = euclidean_neighbors(features.unit_nd, k=21)
    near_nk = features.labels_n[rows_nk[:, 1:].numpy()]
    count = int(features.labels_n.max()) + 1
    votes_nc = np.stack([(near_nk == label).sum(1) for label in range(count)], 1)
    return float((votes_nc.argmax(1) == features.labels_n).mean())


def by_probe(features: Features) -> float:
    """Accuracy of logistic regression on a fifth of the rows, learned on the others."""
    from sklearn.linear_model import LogisticRegression

    order = np.random.default_rng(0).permutation(len(features.labels_n))
    learned, tested = np.split(order, [len(order) * 4 // 5])
    # At unit length the default penalty would be too strong.
    rows_nd, labels_n = 10 * features.unit_nd.numpy(), features.labels_n
    probe = LogisticRegression(max_iter=200).fit(rows_nd[learned], labels_n[learned])
    return float(probe.score(rows_nd[tested], labels_n[tested]))


def by_peer(
    features: Features,
    learn: Learn,
    rates: Sequence[float],
    near_nk: Tensor,
    budget: Budget,
    seed: int,
) -> Scores:
    """The best of the learning rates by its loss; seconds are those of its run."""
    found = []
    for rate in rates:
        torch.manual_seed(seed)
        clock = Clock()
        loss, clusters_n = learn(features.unit_nd, near_nk, budget, rate)
        found.append((loss, clusters_n, {"rate": rate, **clock.read()}))
    _, clusters_n, took = min(found, key=lambda one: one[0])
    return {**took, **agreement(features.labels_n, clusters_n.numpy())}


def show(features: Features, seeds: range) -> None:
    """Table of k-means and the head, and of what the features allow."""
    rows = {
        "k-means": [by_kmeans(features, seed) for seed in seeds],
        "heads": [by_head(features, seed) for seed in seeds],
    }
    _print_table(features.title, rows)
    means = {name: statistics.mean(one["acc"] for one in found) for name, found in rows.items()}
    print(f"\nGain in ACC: {means['heads'] - means['k-means']:+.3f}. The features allow", end=" ")
    print(f"{by_nearest(features):.3f} (k-NN), {by_probe(features):.3f} (probe).", flush=True)


def show_neighbors(features: Features, seeds: range, chosen: Sequence[int]) -> None:
    """Table of the head with each kind of neighbours, and their purity, for the `chosen` k."""
    labels_n = torch.from_numpy(features.labels_n)
    print(f"| {features.title}, {len(seeds)} seeds | purity | ACC | NMI | ACC of each seed |")
    print("| --- | --- | --- | --- | --- |")
    for k, k1, k2 in (width for width in WIDTHS if width[0] in chosen):
        gains: list[list[float]] = []
        for kind in ("euclidean", "contextual"):
            if kind == "contextual":
                _, near_nk = contextual_neighbors(features.unit_nd, k1=k1, k2=k2, k=k)
            else:
                _, near_nk = euclidean_neighbors(features.unit_nd, k=k)
            purity = float(neighbor_purity(labels_n[near_nk], labels_n))
            near = {"kind": kind, "k": k, "k1": k1, "k2": k2}
            fields: dict[str, Any] = {f"neighborhood.{name}": is_ for name, is_ in near.items()}
            fields |= {"evaluation.neighbors": False}
            found = [by_head(features, seed, fields) for seed in seeds]
            gains.append([one["acc"] for one in found])
            wide = f", k1={k1}, k2={k2}" if kind == "contextual" else ""
            print(
                f"| {kind}, k={k}{wide} | {purity:.3f} | {_cell(found, 'acc')} | "
                f"{_cell(found, 'nmi')} | {_each(found)} |",
                flush=True,
            )
        pairs = [new - old for old, new in zip(*gains, strict=True)]
        deviation = statistics.stdev(pairs) if len(pairs) > 1 else 0.0
        print(f"| gain of the same seed | | {statistics.mean(pairs):+.3f} ± {deviation:.3f} | | |")


def show_peers(features: Features, seeds: range, epochs: int | None, *, hidden: bool) -> None:
    """Table of the head and its peers."""
    config = features.config
    batch, own = config.optim.batch_size, config.framework
    assert isinstance(own, Heads)
    steps = (epochs or config.schedule.epochs) * (features.data.num_rows // batch)
    budget = Budget(steps, batch, own.num_heads, features.num_clusters)
    print(f"{steps} steps of {batch} for {own.num_heads} heads\n")
    widest = euclidean_neighbors(features.unit_nd, k=50)[1]
    rows = {"heads, contextual": [by_head(features, seed) for seed in seeds]}
    plain = {"neighborhood.kind": "euclidean"}
    rows["heads, Euclidean"] = [by_head(features, seed, plain) for seed in seeds]
    kinds: list[tuple[str, int, Learn]] = [("TEMI", 50, partial(learn_temi, hidden=hidden))]
    kinds += [("SCAN", 20, learn_scan), ("SCAN", 50, learn_scan)]
    for name, k, learn in kinds:
        title = f"{name}, {'512-256' if hidden and name == 'TEMI' else 'linear'}, k={k}"
        near_nk = widest[:, :k]
        rows[title] = [
            by_peer(features, learn, RATES[name], near_nk, budget, seed) for seed in seeds
        ]
        rates = ", ".join(f"{one['rate']:g}" for one in rows[title])
        print(f"{title}: learning rates {rates}", flush=True)
    print()
    _print_table(features.title, rows)


def _print_table(title: str, rows: dict[str, list[Scores]]) -> None:
    count = len(next(iter(rows.values())))
    print(f"| {title}, {count} seeds | ACC | NMI | ARI | s | CPU s | ACC of each seed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, found in rows.items():
        cells = " | ".join(_cell(found, figure) for figure in ("acc", "nmi", "ari"))
        times = (statistics.median(one[clock] for one in found) for clock in ("seconds", "cpu_s"))
        seconds = " | ".join(f"{time_s:.1f}" for time_s in times)
        print(f"| {name} | {cells} | {seconds} | {_each(found)} |", flush=True)


def _cell(found: Sequence[Scores], figure: str) -> str:
    values = [one[figure] for one in found]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def _each(found: Sequence[Scores]) -> str:
    return ", ".join(f"{one['acc']:.3f}" for one in found)


def main() -> None:
    """Print the tables of each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_sets", nargs="*", choices=[*DATA_SETS, []], metavar="DATA_SET")
    parser.add_argument("--data", default="../shared/data", help="folder of the Parquet files")
    parser.add_argument("--split", choices=["test", "all"], default="test")
    parser.add_argument("--vectors", help="Parquet file with embedding and label, instead")
    parser.add_argument("--limit", type=int, help="rows of a random subset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--neighbors",
        type=int,
        nargs="*",
        choices=(20, 50, 100),
        metavar="K",
        help="table of kinds of neighbours, for k of 20, 50 and 100 or those given",
    )
    parser.add_argument("--peers", action="store_true", help="table of TEMI's and SCAN's heads")
    parser.add_argument("--peer-epochs", type=int, help="epochs of the peers, instead of ours")
    parser.add_argument("--hidden", action="store_true", help="give TEMI's heads hidden layers")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="field=value")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    shared = {"data.limit": args.limit, **parse_overrides(args.settings)}
    chosen = {}
    for name in args.data_sets:
        file, column = DATA_SETS[name]
        place = {"path": str(Path(args.data) / file), "label_column": column}
        splits = None if args.split == "all" else ("test",)
        fields = {"source": "parquet", "splits": splits, **place}
        chosen[name] = {f"data.{field}": value for field, value in fields.items()}
    if args.vectors:
        fields = {"data.source": "vectors", "data.path": args.vectors}
        fields |= {"model.backbone": "identity", "model.weights": "hub", "model.train": "all"}
        chosen[Path(args.vectors).stem] = fields
    seeds = range(args.seeds)
    for title, fields in chosen.items():
        features = opened(title, {**fields, **shared})
        if args.neighbors is not None:
            show_neighbors(features, seeds, args.neighbors or [k for k, *_ in WIDTHS])
        if args.peers:
            show_peers(features, seeds, args.peer_epochs, hidden=args.hidden)
        if args.neighbors is None and not args.peers:
            show(features, seeds)


if __name__ == "__main__":
    main()
