"""The samples of a run, to be curated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from conr_ray.config import RunConfig, override
from conr_ray.curation.pictures import DataPictures, Pictures
from conr_ray.curation.samples import Samples, of_array
from conr_ray.data.store import DataSet
from conr_ray.edits.folder import read_assignments
from conr_ray.engine.recluster import Reclustering
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError
from conr_ray.frozen import open_samples

Opened = tuple[Samples, Pictures | None, list[str]]


def of_run(uri: str, data_path: str | None, folder: Path) -> Opened:
    """The samples of the run in a folder, their pictures if it has images, and notes.

    Their vectors are those of its backbone where that does not train, and else its embeddings,
    which are stored with the run. Where its data is gone, the samples of its snapshot are taken.

    Args:
        uri: the run's folder, which may be in a bucket.
        data_path: where its samples are now; None for `data.path`.
        folder: for files on the way.

    Raises:
        UserError: there is no run, or neither its data nor a snapshot.
    """
    directory = RunDirectory(uri)
    config = directory.read_config()
    if config is None:
        raise UserError(f"--run {uri}: it holds no run (no config.yaml): give a run's folder")
    if data_path is not None:
        config = override(config, {"data.path": data_path})
    try:
        data = open_samples(config, directory)
    except UserError as error:
        return _of_snapshot(directory, error, folder)
    keys = {"sample_id": pa.array(data.sample_ids)}
    if data.names is not None:
        keys["path"] = pa.array(data.names)
    if len(data.row_shape) == 1:
        vectors_nw = np.asarray(data.rows)
    else:
        vectors_nw = _embeddings(config, data, directory, folder)
    clusters_n = _clusters(directory, data.sample_ids)
    samples = of_array(vectors_nw, pa.table(keys), clusters_n, folder, f"--run {uri}")
    pictures = DataPictures(data, uri) if data.what == "images" else None
    return samples, pictures, [data.line]


def _embeddings(
    config: RunConfig, data: DataSet, directory: RunDirectory, folder: Path
) -> NDArray[np.float32]:
    """All embeddings, in a file."""
    run = TrainedRun.load(directory, "cuda" if torch.cuda.is_available() else "cpu")
    parts = Reclustering.of(run, data, directory).embeddings()
    place, start = folder / "embeddings.npy", 0
    vectors_nd: NDArray[np.float32] | None = None
    for part_bd in parts:
        part = part_bd.cpu().numpy()
        if vectors_nd is None:
            shape = data.num_rows, part.shape[1]
            vectors_nd = np.lib.format.open_memmap(place, "w+", np.float32, shape)
        vectors_nd[start : start + len(part)] = part
        start += len(part)
    assert vectors_nd is not None
    return vectors_nd


def _clusters(directory: RunDirectory, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The run's clusters of samples; None before it has ended."""
    table = read_assignments(directory)
    if table is None:
        return None
    known, clusters = (table.column(name).to_numpy() for name in ("sample_id", "cluster"))
    order = np.argsort(known)
    places = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    found = order[places]
    return np.where(known[found] == ids, clusters[found], -1)


def _of_snapshot(directory: RunDirectory, gone: UserError, folder: Path) -> Opened:
    snapshot = Snapshot.read(directory)
    if snapshot is None or snapshot.samples is None:
        raise gone
    table = snapshot.samples
    keys = table.select([name for name in ("sample_id", "path") if name in table.column_names])
    clusters_n = table.column("cluster").to_numpy()
    samples = of_array(snapshot.embeddings, keys, clusters_n, folder, f"--run {directory.uri}")
    note = (
        f"The run's samples cannot be opened ({gone}). The {samples.num_rows:,} of its snapshot "
        f"are looked at, of {snapshot.num_images:,}."
    )
    return samples, None, [note]
