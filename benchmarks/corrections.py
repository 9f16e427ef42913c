"""What a person's corrections of clusters give, after one more fit.

    python benchmarks/corrections.py VECTORS.parquet --rows 3300 --seeds 3

VECTORS has a column `embedding`, a list of floats, and `label`. They are centred and clustered by
k-means in as many clusters as there are labels. A simulated person, who knows the labels, makes 20
steps, in this order: clusters of one label are merged; for labels that no cluster stands for, in
turn, images are moved to a cluster of their own; wrong images, as they come, are moved where they
belong. A move is of 1, 5 or 20 images of one label in one cluster, chosen at random, which one
page shows. Printed: ACC of k-means; with the corrections alone; after `corrected_clusters`, as
`recluster --edits` does; and of the same without any correction, which tells what the fit alone
gives.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.clustering.corrections import corrected_clusters
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.clustering.metrics import agreement
from conr_ray.method.neighbors.reranking import contextual_neighbors

Ints = npt.NDArray[np.int64]


def corrected_by_a_person(
    clusters_n: Ints, labels_n: Ints, steps: int, per_move: int, seed: int
) -> tuple[Ints, list[int]]:
    """The clusters after the steps, and the rows that were moved."""
    found_n, fixed = clusters_n.copy(), []
    count = int(labels_n.max()) + 1
    counts = np.zeros((count, count), np.int64)
    np.add.at(counts, (found_n, labels_n), 1)
    home: dict[int, int] = {}
    for label in range(count):
        own = [c for c in range(count) if counts[c].argmax() == label]
        if not own:
            continue
        home[label] = max(own, key=lambda c: int(counts[c, label]))
        for cluster in own:
            if cluster != home[label] and steps:
                found_n[found_n == cluster] = home[label]
                steps -= 1
    free = [c for c in range(count) if not (found_n == c).any()]
    missing = [label for label in range(count) if label not in home]
    if len(free) < len(missing):
        raise SystemExit("more clusters to merge than steps: give more")
    home.update(zip(missing, free, strict=False))
    order = np.random.default_rng(seed).permutation(len(labels_n))
    homes_n = np.array([home[label] for label in range(count)])[labels_n]
    for turn in range(steps):
        wrong = order[found_n[order] != homes_n[order]]
        if turn < 3 * len(missing):
            wrong = wrong[labels_n[wrong] == missing[turn % len(missing)]]
        if len(wrong):
            first = wrong[0]
            same = (labels_n[wrong] == labels_n[first]) & (found_n[wrong] == found_n[first])
            chosen = wrong[same][:per_move]
            found_n[chosen] = homes_n[chosen]
            fixed += chosen.tolist()
    return found_n, fixed


def vectors(path: str, rows: int | None) -> tuple[Tensor, Ints]:
    """At most `rows` vectors, evenly spaced, centred and of unit length; and their labels."""
    table = pq.read_table(path, columns=["embedding", "label"])
    count = min(rows or len(table), len(table))
    table = table.take(np.arange(count) * len(table) // count)
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    found_nd = torch.from_numpy(np.array(flat, np.float32).reshape(count, -1))
    labels_n: Ints = np.unique(table["label"].to_numpy(), return_inverse=True)[1]
    return normalize(found_nd - found_nd.mean(0)), labels_n


def main() -> None:
    """Print a row for each seed and size of a move."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    rows_nd, labels_n = vectors(args.vectors, args.rows)
    count = int(labels_n.max()) + 1
    near_nk = contextual_neighbors(rows_nd, k1=50, k2=10, k=21)[1][:, 1:]
    print(f"{len(rows_nd):,} vectors, {count} classes, {args.steps} steps", flush=True)
    print("| seed | images in a move | k-means | corrections alone | one more fit | fit alone |")
    print("| --- | --- | --- | --- | --- | --- |")

    def acc(clusters_n: Ints | Tensor) -> float:
        return agreement(labels_n, np.asarray(clusters_n))["acc"]

    def fitted(clusters_n: Ints, fixed: list[int]) -> Tensor:
        fixed_n = torch.zeros(len(rows_nd), dtype=torch.bool)
        fixed_n[torch.tensor(fixed, dtype=torch.int64)] = True
        return corrected_clusters(near_nk, torch.from_numpy(clusters_n), fixed_n, count)

    for seed in range(args.seeds):
        begun_n = spherical_kmeans(rows_nd, len(rows_nd), count, seed=seed).labels_b.numpy()
        alone = acc(fitted(begun_n, []))
        for per_move in (1, 5, 20):
            changed_n, fixed = corrected_by_a_person(begun_n, labels_n, args.steps, per_move, seed)
            figures = [acc(begun_n), acc(changed_n), acc(fitted(changed_n, fixed)), alone]
            told = " | ".join(f"{figure:.3f}" for figure in figures)
            print(f"| {seed} | {per_move} | {told} |", flush=True)


if __name__ == "__main__":
    main()
