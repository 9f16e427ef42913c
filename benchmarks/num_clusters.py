"""How many clusters: criteria without labels, compared on the same vectors.

    python benchmarks/num_clusters.py digits
    python benchmarks/num_clusters.py cifar10.parquet fashion_mnist.parquet

A file is a table of `python -m conr_ray.embed` with `embedding` and `label`; digits are
scikit-learn's, pixels as they are. Of each: all ten classes and five sets of five, with as many
seeds, each of other rows and other starts. Printed is the number each criterion takes of 2 to 30
(prediction strength and coding length: of 2 to 20); labels only tell the true number.

tree        ours: `conr_ray.method.clustering.number`
modularity  the cut of one merge tree with the greatest modularity
gap         the cut of that tree before the merging whose height falls most, as a ratio
silhouette  of that tree's cuts, on 10 principal components
strength    prediction strength, Tibshirani & Walther 2005: the most clusters with 0.8 or more,
            k-means on halves, 20 principal components
coding      length of k-means' clusters as Gaussians, Ma et al. 2007; 20 components, distortion 0.7
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from torch.nn.functional import normalize

from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.clustering.merge_tree import MergeTree, links_between
from conr_ray.method.clustering.number import choose_number
from conr_ray.method.neighbors.reranking import contextual_neighbors

SUBSETS = (
    tuple(range(10)),
    (0, 1, 2, 3, 4),
    (5, 6, 7, 8, 9),
    (0, 2, 4, 6, 8),
    (1, 3, 5, 7, 9),
    (0, 1, 4, 5, 9),
)
MOST, COMPARED = 30, range(2, 21)


def read(name: str) -> tuple[Any, Any]:
    """Vectors (n, d) float32 and labels (n,)."""
    if name == "digits":
        digits = load_digits()
        return digits.data.astype(np.float32), digits.target
    table = pq.read_table(name)
    vectors = table.column("embedding").combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(table.num_rows, -1), table.column("label").to_numpy()


def cases(labels_n: Any, rows: int, seeds: int) -> Iterator[tuple[tuple[int, ...], int, Any]]:
    """Classes, seed and row numbers."""
    for classes in SUBSETS:
        for seed in range(seeds):
            chosen = np.flatnonzero(np.isin(labels_n, classes))
            yield classes, seed, np.random.default_rng(seed).permutation(chosen)[:rows]


def of_tree(unit_nd: torch.Tensor, low_nd: Any, seed: int) -> dict[str, int]:
    """Criteria of the cuts of one tree."""
    count = len(unit_nd)
    width = min(count // 20, count - 1)
    weights, near = contextual_neighbors(unit_nd, k1=50, k2=5, k=width + 1)
    small = spherical_kmeans(unit_nd, count, min(120, count // 8), seed=seed, restarts=1)
    small_n = np.unique(small.labels_b.numpy(), return_inverse=True)[1]
    links_aa = links_between(small_n, near[:, 1:].numpy(), weights[:, 1:].numpy())
    tree = MergeTree.of(links_aa, MOST + 1)
    cuts = range(2, MOST + 1)
    gain = {c: tree.within[c] - tree.expected[c] for c in cuts}
    # What a merging changes: links that come inside over those expected to.
    height = {
        c: (tree.within[c] - tree.within[c + 1]) / (tree.expected[c] - tree.expected[c + 1])
        for c in range(1, MOST + 1)
    }
    fall = {c: height[c] / max(height[c - 1], 1e-9) for c in cuts}
    shape = {c: silhouette_score(low_nd[:600], tree.clusters[c][small_n][:600]) for c in cuts}
    found = {"modularity": gain, "gap": fall, "silhouette": shape}
    return {name: max(one, key=one.__getitem__) for name, one in found.items()}


def prediction_strength(low_nd: Any, seed: int) -> int:
    """The most clusters whose worst one is found again in the other half."""
    half = len(low_nd) // 2
    kept = 1
    for number in COMPARED:
        left = KMeans(number, n_init=2, random_state=seed).fit(low_nd[:half])
        right = KMeans(number, n_init=2, random_state=seed).fit(low_nd[half:])
        counts = np.zeros((number, number))
        np.add.at(counts, (right.labels_, left.predict(low_nd[half:])), 1)
        sizes = counts.sum(1)
        together = ((counts**2).sum(1) - sizes) / np.maximum(sizes * (sizes - 1), 1)
        if together.min() >= 0.8:
            kept = number
    return kept


def coding_length(low_nd: Any, seed: int) -> int:
    """The number whose clusters take the fewest bits."""
    bits = {}
    width = low_nd.shape[1]
    distortion = 0.7**2 * (low_nd**2).sum(1).mean()
    for number in COMPARED:
        labels_n = KMeans(number, n_init=1, random_state=seed).fit_predict(low_nd)
        bits[number] = 0.0
        for one in range(number):
            rows = low_nd[labels_n == one]
            size, mean = len(rows), rows.mean(0)
            spread = np.eye(width) + width / distortion / size * (rows - mean).T @ (rows - mean)
            bits[number] += (size + width) / 2 * np.linalg.slogdet(spread)[1] / np.log(2)
            bits[number] += width / 2 * np.log2(1 + mean @ mean / distortion)
            bits[number] -= size * np.log2(size / len(low_nd))
    return min(bits, key=bits.__getitem__)


def main() -> None:
    """Print every case, then in how many each criterion is within 1 of the truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-tree", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[tuple[str, int, str], list[int]] = {}
    for source in args.data:
        name = Path(source).stem
        vectors_nd, labels_n = read(source)
        for classes, seed, rows in cases(labels_n, args.rows, args.seeds):
            unit_nd = torch.from_numpy(vectors_nd[rows])
            unit_nd = normalize(unit_nd - unit_nd.mean(0))
            found = {"tree": choose_number(unit_nd, len(rows), 2, MOST, seed=seed).num_clusters}
            if not args.only_tree:
                low_nd = PCA(20, random_state=0).fit_transform(unit_nd.numpy())
                found |= of_tree(unit_nd, low_nd[:, :10], seed)
                found["strength"] = prediction_strength(low_nd, seed)
                found["coding"] = coding_length(low_nd, seed)
            told = " ".join(f"{one} {number}" for one, number in found.items())
            print(f"{name} {','.join(map(str, classes))} seed {seed}: {told}", flush=True)
            for one, number in found.items():
                errors.setdefault((name, len(classes), one), []).append(number - len(classes))
    print("\n| data | classes | criterion | within 1 | errors |\n| --- | --- | --- | --- | --- |")
    for (name, count, one), off in errors.items():
        good = sum(abs(error) <= 1 for error in off)
        print(f"| {name} | {count} | {one} | {good} of {len(off)} | {off} |")


if __name__ == "__main__":
    main()
