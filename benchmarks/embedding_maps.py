"""2-D maps of a run's embeddings by several libraries: how true they are, and how long they take.

    python benchmarks/embedding_maps.py runs/digits runs/fashion_mnist

Each method runs in a process of its own on one thread, its imports and compilation timed apart.
*Kept*: share of the 10 nearest neighbours that are still among the 10 nearest on the map.
*Trustworthiness*: scikit-learn's, of 10 neighbours, on 2,000 samples. *Class*: accuracy of the 10
nearest neighbours on the map, which sees what a reader sees. *Order*: Spearman's correlation of the
distances between cluster centres on the map and before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot

Points = npt.NDArray[np.float32]
_NUM_NEIGHBORS, _NUM_TRUSTED = 10, 2000


def pca(points: Points) -> Points:
    """The two directions of largest variance."""
    from sklearn.decomposition import PCA

    return np.asarray(PCA(2, random_state=0).fit_transform(points))


def sklearn_tsne(points: Points) -> Points:
    """Barnes-Hut t-SNE."""
    from sklearn.manifold import TSNE

    return np.asarray(TSNE(random_state=0, n_jobs=1).fit_transform(points))


def opentsne(points: Points) -> Points:
    """t-SNE with interpolation for many points."""
    import openTSNE

    return np.asarray(openTSNE.TSNE(random_state=0, n_jobs=1).fit(points))


def opentsne_short(points: Points) -> Points:
    """Half the steps."""
    import openTSNE

    options = {"early_exaggeration_iter": 100, "n_iter": 250}
    return np.asarray(openTSNE.TSNE(random_state=0, n_jobs=1, **options).fit(points))


def umap(points: Points) -> Points:
    """UMAP."""
    from umap import UMAP

    return np.asarray(UMAP(random_state=0, n_jobs=1).fit_transform(points))


METHODS: dict[str, Callable[[Points], Points]] = {
    "PCA": pca,
    "scikit-learn t-SNE": sklearn_tsne,
    "openTSNE": opentsne,
    "openTSNE, half the steps": opentsne_short,
    "UMAP": umap,
}


def timed(name: str, points: Points) -> tuple[Points, float, float]:
    """The map, seconds of its making, and of imports and compilation before."""
    started = time.perf_counter()
    METHODS[name](points[:200])
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    return METHODS[name](points), time.perf_counter() - started, first_s


def quality(points: Points, positions: Points, snapshot: Snapshot) -> dict[str, float]:
    """The figures of the table."""
    labels = snapshot.samples["label"].to_numpy()
    clusters = snapshot.samples["cluster"].to_numpy()
    before, after = (
        NearestNeighbors(n_neighbors=_NUM_NEIGHBORS).fit(x).kneighbors(return_distance=False)
        for x in (points, positions)
    )
    kept = [len(set(a) & set(b)) for a, b in zip(before, after, strict=True)]
    votes = np.apply_along_axis(lambda row: np.bincount(row).argmax(), 1, labels[after])
    part = np.random.default_rng(0).permutation(len(points))[:_NUM_TRUSTED]
    centers = [
        pdist(np.stack([x[clusters == c].mean(0) for c in np.unique(clusters)]))
        for x in (points, positions)
    ]
    return {
        "kept": float(np.mean(kept)) / _NUM_NEIGHBORS,
        "trustworthiness": trustworthiness(
            points[part], positions[part], n_neighbors=_NUM_NEIGHBORS
        ),
        "class": float((votes == labels).mean()),
        "order": spearmanr(*centers).statistic,
    }


def main() -> None:
    """Parse, draw, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="directories of runs that have ended")
    for run in parser.parse_args().runs:
        snapshot = Snapshot.read(RunDirectory(run))
        assert snapshot is not None, f"{run} has no snapshot"
        points = snapshot.embeddings
        print(f"\n{run}: {len(points)} x {points.shape[1]}\n")
        print("| method | time s | first use s | kept | trustworthiness | class | order |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name in METHODS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                positions, time_s, first_s = pool.submit(timed, name, points).result()
            found: dict[str, Any] = quality(points, positions, snapshot)
            figures = " | ".join(f"{value:.3f}" for value in found.values())
            print(f"| {name} | {time_s:.1f} | {first_s:.1f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
