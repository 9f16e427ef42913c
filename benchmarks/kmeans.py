"""k-means against faiss and scikit-learn: seconds and fit at the same number of starts.

    python benchmarks/kmeans.py --clusters 10 100

Rows are unit-length Gaussian mixtures of overlapping clusters. The peers take turns; seconds are
medians over rounds, of processor time with `--cpu-time`, which other processes on the machine
lengthen less. OMP_NUM_THREADS holds for all peers. The fit is the mean cosine of a row and its
centre, which all three maximise (faiss and scikit-learn minimise squared distances to centres that
are then scaled to unit length).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.cores import usable_cores


def mixture(num_rows: int, width: int, clusters: int) -> Tensor:
    """Rows around random directions, so close that clusters overlap."""
    generator = torch.Generator().manual_seed(0)
    centers_cd = normalize(torch.randn(clusters, width, generator=generator))
    labels_n = torch.randint(clusters, (num_rows,), generator=generator)
    noise_nd = torch.randn(num_rows, width, generator=generator) / width**0.5
    return normalize(centers_cd[labels_n] + 1.2 * noise_nd)


def ours(rows_nd: Tensor, clusters: int, starts: int) -> Tensor:
    """Spherical k-means: starts on a sample, the best one on all rows."""
    from conr_ray.method.clustering.kmeans import spherical_kmeans

    return spherical_kmeans(rows_nd, len(rows_nd), clusters, seed=0, restarts=starts).centers_cd


def by_faiss(rows_nd: Tensor, clusters: int, starts: int) -> Tensor:
    """All rows, 100 iterations."""
    import faiss

    kmeans = faiss.Kmeans(
        rows_nd.shape[1],
        clusters,
        niter=100,
        nredo=starts,
        spherical=True,
        max_points_per_centroid=len(rows_nd),
    )
    kmeans.train(rows_nd.numpy())
    return normalize(torch.from_numpy(kmeans.centroids))


def by_scikit_learn(rows_nd: Tensor, clusters: int, starts: int) -> Tensor:
    """All rows, at most 100 iterations, its default tolerance."""
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=starts, max_iter=100, random_state=0).fit(rows_nd.numpy())
    return normalize(torch.from_numpy(found.cluster_centers_).float())


PEERS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "conr_ray": ours,
    "faiss": by_faiss,
    "scikit-learn": by_scikit_learn,
}


def main() -> None:
    """Parse, time the peers in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--starts", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    # Compiled loops are not timed.
    ours(mixture(500, args.width, 10), 10, 1)
    print(f"{args.rows:,} x {args.width}, {torch.get_num_threads()} threads")
    print("| clusters | starts | peer | seconds | fit |")
    print("| --- | --- | --- | --- | --- |")
    for clusters in args.clusters:
        rows_nd = mixture(args.rows, args.width, clusters)
        for starts in args.starts:
            times: dict[str, list[float]] = {name: [] for name in args.peers}
            fits = {}
            for _ in range(args.rounds):
                for name in args.peers:
                    began = clock()
                    centers_cd = PEERS[name](rows_nd, clusters, starts)
                    times[name].append(clock() - began)
                    fits[name] = float((rows_nd @ centers_cd.T).amax(1).mean())
            for name, seconds in times.items():
                median = statistics.median(seconds)
                print(f"| {clusters} | {starts} | {name} | {median:.2f} | {fits[name]:.5f} |")


if __name__ == "__main__":
    main()
