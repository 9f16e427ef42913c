"""k-means on raw pixels: what a clustering has to beat; the best of 10 starts.

python benchmarks/kmeans_raw_pixels.py --preset digits
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.cluster import KMeans

from conr_ray.config import load_preset, parse_overrides
from conr_ray.data.store import open_data
from conr_ray.method.clustering.metrics import agreement

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    images = open_data(load_preset(args.preset, parse_overrides(args.settings)).data)
    assert images.labels is not None
    pixels = np.asarray(images.rows).reshape(images.num_rows, -1) / 255.0
    clusters = KMeans(images.num_classes, n_init=10, random_state=0).fit_predict(pixels)
    figures = agreement(images.labels, clusters)
    print(args.preset, "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
