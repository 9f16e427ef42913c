"""The clusters of a run's samples for people: a table that spreadsheets open.

Shapes: n samples.
"""

from __future__ import annotations

import codecs
import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from conr_ray.storage.files import Folder

FILE_NAME = "clusters.csv"
# What a spreadsheet opens, without the line of names.
MOST_ROWS = 2**20 - 1
_SAFE_MARKS = ("_", ".", "/")


def confident_ratio(ratios_n: npt.NDArray[np.float32], fraction: float) -> float:
    """The largest boundary ratio of the share `fraction` of the samples with the smallest."""
    rank = max(1, round(fraction * len(ratios_n))) - 1
    return float(np.partition(ratios_n, rank)[rank])


def certainty(ratios_n: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """1 at the own centre, 0 at the boundary to another cluster and beyond; to four decimals."""
    sure_n: npt.NDArray[np.float64] = 1.0 - ratios_n.astype(np.float64)
    return sure_n.clip(0.0, 1.0).round(4)


def write_clusters_csv(folder: Folder, assignments: pa.Table, fraction: float) -> bool:
    """Write clusters.csv from a table of assignments; return whether it was written.

    A row for each sample: path (sample_id of those without), cluster, `certainty`, and whether it
    is confident: among the share `fraction` of all with the smallest boundary ratios. Sorted by
    cluster, the surest first. With more than `MOST_ROWS` rows, which no spreadsheet opens, nothing
    is written, and an older file is deleted: part of the clusters would look like all of them.

    Raises:
        StorageError: it cannot be written.
    """
    if assignments.num_rows > MOST_ROWS:
        if folder.has(FILE_NAME):
            folder.delete_file(FILE_NAME)
        return False
    folder.write_bytes(FILE_NAME, clusters_csv(assignments, fraction))
    return True


def clusters_csv(assignments: pa.Table, fraction: float) -> bytes:
    """The bytes of clusters.csv: UTF-8 that begins with the mark by which spreadsheets know it."""
    ratios_n = assignments.column("boundary_ratio").to_numpy()
    clusters_n = assignments.column("cluster").to_numpy()
    if "path" in assignments.column_names:
        column = [safe_path(name) for name in assignments.column("path").to_pylist()]
        names = {"path": pa.array(column, pa.string())}
    else:
        names = {"sample_id": assignments.column("sample_id")}
    sure = ratios_n <= confident_ratio(ratios_n, fraction) if len(ratios_n) else ratios_n > 0
    table = pa.table(
        {
            **names,
            "cluster": clusters_n,
            "certainty": certainty(ratios_n),
            "confident": pa.array(np.where(sure, "yes", "no"), pa.string()),
        }
    )
    # Stable, so that equal ones stay in the order of the samples.
    order = np.lexsort((ratios_n, clusters_n))
    buffer = io.BytesIO(codecs.BOM_UTF8)
    buffer.seek(0, io.SEEK_END)
    pacsv.write_csv(table.take(pa.array(order)), buffer)
    return buffer.getvalue()


def safe_path(path: str) -> str:
    """The same path, begun with ./ where a spreadsheet might take it for a formula."""
    first = path[:1]
    return path if first.isalnum() or first in _SAFE_MARKS else f"./{path}"
