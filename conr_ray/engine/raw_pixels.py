"""Whether a finished run is better than k-means on raw pixels, which needs no network."""

from __future__ import annotations

import numpy as np

from conr_ray.config import RunConfig
from conr_ray.data.data_set import DataSet
from conr_ray.edits.folder import read_assignments
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import StorageError

# Images looked at, and their most values: of 32 pixels in colour.
_MOST_ROWS, _MOST_VALUES, _STARTS = 2000, 3 * 32 * 32, 3
# With so many steps, runs on digits were far from k-means on pixels yet: docs/log.md.
FEW_STEPS = 210


def against_raw_pixels(config: RunConfig, data: DataSet, directory: RunDirectory) -> str | None:
    """A line that says that a run is too short to be better; None if it is better, or not known.

    With labels and small images, NMI of the run and of k-means on the same images, at most 2,000.
    Without labels nobody can tell: then the line is about the number of steps alone. Runs that
    begin with weights of others are not spoken of.
    """
    if config.embeds_once or config.model.init is not None or data.rows.ndim == 2:
        return None
    schedule, num_steps = config.schedule, data.num_rows // config.optim.batch_size
    num_steps *= schedule.epochs
    if data.labels is None:
        if num_steps > FEW_STEPS:
            return None
        return (
            f"a short run: {num_steps} steps in schedule.epochs={schedule.epochs}; with up to "
            f"{FEW_STEPS}, those on handwritten digits are worse than k-means on raw pixels: raise "
            "it, unless this was a trial"
        )
    try:
        table = read_assignments(directory)
    except StorageError:
        return None
    if table is None or table.num_rows != data.num_rows:
        return None
    clusters = np.asarray(table["cluster"])
    rows = np.flatnonzero(data.labels >= 0)
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, _MOST_ROWS, replace=False))
    if np.prod(data.row_shape) > _MOST_VALUES or len(np.unique(data.labels[rows])) < 2:
        return None
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score as nmi

    labels = data.labels[rows]
    pixels = data.rows[rows].reshape(len(rows), -1).astype(np.float32) / 255
    own = len(np.unique(clusters[rows]))
    of_pixels = KMeans(own, n_init=_STARTS, random_state=config.seed).fit_predict(pixels)
    ours, theirs = nmi(labels, clusters[rows]), nmi(labels, of_pixels)
    if ours > theirs:
        return None
    return (
        f"no better than k-means on raw pixels: NMI {ours:.3f}, that of k-means {theirs:.3f} on "
        f"{len(rows):,} of the images: train longer than schedule.epochs={schedule.epochs} "
        f"({num_steps:,} steps)"
    )
