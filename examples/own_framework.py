"""Train with a framework of your own, alone and with CoNR's group stage.

python examples/own_framework.py

The framework is examples/frameworks/in_batch.py; its name is that of its file. A minute a run on
one core.
"""

import argparse
from pathlib import Path

from sklearn.datasets import load_digits

import conr_ray
from conr_ray.method import frameworks


def main() -> None:
    """Train both, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60, help="at least 5")
    args = parser.parse_args()
    # Files of this folder are frameworks too, from before conr_ray's config is loaded on. Those in
    # the package's own folder are by themselves, also on the nodes of a cluster.
    frameworks.__path__.append(str(Path(__file__).parent / "frameworks"))
    digits, start = load_digits(), args.epochs // 2
    for name, group_start in (("alone", "never"), ("with the group stage", start)):
        clusterer = conr_ray.Clusterer(
            num_clusters=10,
            model__framework="in_batch",
            in_batch__temperature=0.3,
            schedule__epochs=args.epochs,
            schedule__group_start=group_start,
        )
        clusters = clusterer.fit_predict(digits.images)
        accuracy = conr_ray.clustering_accuracy(digits.target, clusters)
        print(f"in_batch {name}: ACC {accuracy:.3f}, score {clusterer.score(digits.images):.3f}")


if __name__ == "__main__":
    main()
