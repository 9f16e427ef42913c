"""Place images that come in batches: clusters, and how sure they are.

python examples/predict_stream.py

Half of scikit-learn's digits train a run; the other half then comes batch by batch, as from a
camera or a queue. Nothing of the stream is kept, so memory does not grow with it.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from conr_ray import Clusterer, TrainedRun, clustering_accuracy

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def main() -> None:
    """Train, then place the stream."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60, help="at least 5")
    parser.add_argument("--batch", type=int, default=64, help="images that come at once")
    parser.add_argument("--out", default="runs/stream-example", help="folder of the run")
    args = parser.parse_args()
    digits = load_digits()
    # Bytes, as a camera gives them: (n, c, h, w).
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
    half = len(images) // 2
    start = max(1, args.epochs // 2)
    fields = {"schedule__epochs": args.epochs, "schedule__group_start": start}
    Clusterer(num_clusters=10, folder=args.out, **fields).fit(images[:half])

    run = TrainedRun.load(args.out)
    assert run.confident_ratio is not None
    clusters, digits_seen, num_sure = [], [], 0
    for batch, truth in stream(images[half:], digits.target[half:], args.batch):
        placed = run.place(batch)
        sure = placed.boundary_ratios_n <= run.confident_ratio
        clusters += placed.clusters_n.tolist()
        digits_seen += truth.tolist()
        num_sure += int(sure.sum())
        print(f"{len(clusters):4} placed, {num_sure / len(clusters):.0%} of them confident")
    print(f"ACC of the stream: {clustering_accuracy(digits_seen, clusters):.3f}")


def stream(images: NDArray[np.uint8], labels: NDArray[np.int64], size: int) -> Iterator[Batch]:
    """Batches in the order in which images come; the last one may be smaller."""
    for first in range(0, len(images), size):
        yield images[first : first + size], labels[first : first + size]


if __name__ == "__main__":
    main()
