"""Cluster a folder of photographs, report on it, and place pictures that are new.

python examples/cluster_photos.py FOLDER --clusters 20    # your own
python examples/cluster_photos.py                         # parts of scikit-learn's two photographs

Needs `pip install 'conr_ray[photos]'`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from conr_ray import Clusterer
from conr_ray.report import main as report


def main() -> None:
    """Cluster, report, place."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of pictures (default: made here)")
    parser.add_argument("--clusters", default="2", help="a number, a range as 5..30, or auto")
    parser.add_argument("--out", type=Path, default=Path("runs/photos-example"))
    parser.add_argument("--count", type=int, default=200, help="pictures, if they are made")
    parser.add_argument("--size", type=int, default=128, help="pixels that the network sees")
    args = parser.parse_args()
    folder = args.folder or made(args.out.with_name(f"{args.out.name}-pictures"), args.count)
    clusterer = Clusterer(
        num_clusters=int(args.clusters) if args.clusters.isdigit() else args.clusters,
        preset="photos",
        folder=str(args.out),
        data__stored_size=args.size,
        views__size=args.size,
    )
    clusterer.fit(str(folder))
    print(f"pictures of each cluster: {np.bincount(clusterer.labels_).tolist()}")
    report([str(args.out)])
    # Later, in another program: the run is in its folder.
    again = Clusterer.load(args.out)
    placed = again.place(str(folder))
    surest = placed.boundary_ratios_n.argsort()[:5].tolist()
    print(f"surest pictures: rows {surest}, boundary ratios below 1 are inside their cluster")


def made(folder: Path, count: int) -> Path:
    """Square parts of a photograph of a palace and of one of a flower, drawn at random."""
    random = np.random.default_rng(0)
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        side = int(random.integers(180, 300))
        top, left = (int(random.integers(0, most - side)) for most in photo.shape[:2])
        file = folder / ("palace", "flower")[number % 2] / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[top : top + side, left : left + side]).save(file)
    return folder


if __name__ == "__main__":
    main()
