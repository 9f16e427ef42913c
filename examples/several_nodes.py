"""A Ray cluster of two nodes on this machine, and a run with a worker on each.

python examples/several_nodes.py

The nodes are processes here, with a core each. On real machines `ray up` or `ray start` makes the
cluster (docs/aws.md), and the rest stays as it is, with a folder that all nodes see.
"""

import argparse
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from sklearn.datasets import load_digits

from conr_ray import Clusterer, clustering_accuracy


def main() -> None:
    """Start nodes, train on both, end them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60, help="at least 5")
    parser.add_argument("--out", type=Path, default=Path("runs/nodes-example"))
    args = parser.parse_args()
    node = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        alive = [one["NodeID"][:8] for one in ray.nodes() if one["Alive"]]
        print(f"nodes: {', '.join(alive)}")
        # A Ray that this process has is used, and left as it is.
        clusterer = Clusterer(
            num_clusters=10,
            workers=2,
            folder=str(args.out.absolute()),
            schedule__epochs=args.epochs,
            schedule__group_start=max(1, args.epochs // 2),
        )
        digits = load_digits()
        clusters = clusterer.fit_predict(digits.images)
        print(f"ACC on two nodes: {clustering_accuracy(digits.target, clusters):.3f}")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
