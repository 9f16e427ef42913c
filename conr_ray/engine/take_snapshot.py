"""Take a snapshot of a run: choose the samples, neighbours and examples to show.

Shapes: n images, m samples of the snapshot, q queries, d width, k neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from conr_ray.data.store import DataSet
from conr_ray.engine.evaluation import DataClustering
from conr_ray.engine.snapshot import Snapshot
from conr_ray.method.clustering.metrics import match_clusters
from conr_ray.method.collectives import rank, share
from conr_ray.method.neighbors.data_neighbors import KINDS, DataNeighbors
from conr_ray.method.stages.boundary import boundary_ratio

MOST_SAMPLES = 10_000
# Rows of a list of neighbours, the query itself first.
NUM_SHOWN = 11
_NUM_QUERIES = 10
# The number of (largest) clusters with examples, and of examples of each kind.
_MOST_CLUSTERS, _NUM_EXAMPLES = 50, 5


def take_snapshot(
    near: DataNeighbors,
    clustering: DataClustering,
    data: DataSet,
    *,
    epoch: int,
    fraction: float,
) -> Snapshot | None:
    """The snapshot after `epoch` epochs; called by all workers, None on all but the first.

    Neighbours are found among its samples, which are the same for all runs on the same data; `near`
    are those among all.
    """
    rows_m, embeddings_md = clustering.spread_sample(MOST_SAMPLES)
    if len(rows_m) < data.num_rows:
        near = near.among(lambda: embeddings_md[share(len(rows_m))], len(rows_m))
    labels = None if data.labels is None else data.labels[rows_m.cpu().numpy()]
    queries_q = _queries(len(rows_m), labels)
    found_qk = {
        kind: near.of(kind, queries_q.to(rows_m.device), NUM_SHOWN).cpu().numpy() for kind in KINDS
    }
    if rank() > 0:
        return None
    clusters_m = clustering.clusters_n[rows_m]
    ratios_m = boundary_ratio(embeddings_md, clusters_m, clustering.boundary_centers_cd)
    kept_m = clustering.kept(ratios_m, clusters_m, fraction)
    numbers_m = clustering.numbered_n[rows_m].cpu().numpy()
    rows, ids = rows_m.cpu().numpy(), data.sample_ids[rows_m.cpu().numpy()]
    samples = pa.table(
        {
            "sample_id": ids,
            "label": _labels_column(labels, len(rows)),
            "cluster": numbers_m,
            "boundary_ratio": ratios_m.cpu().numpy(),
            "kept": kept_m.cpu().numpy(),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(embeddings_md.half().flatten().cpu().numpy()), embeddings_md.shape[1]
            ),
        }
    )
    if data.names is not None:
        samples = samples.append_column("path", pa.array([data.names[row] for row in rows]))
    neighbors = _neighbors(queries_q.tolist(), found_qk, labels)
    examples = _examples(numbers_m, ratios_m.cpu().numpy())
    shown = sorted({row[name] for row in neighbors for name in ("query_id", "sample_id")})
    shown = sorted({*shown, *(row["sample_id"] for row in examples)})
    for row in (*neighbors, *examples):
        row.update({name: int(ids[row[name]]) for name in ("query_id", "sample_id") if name in row})
    return Snapshot(
        epoch,
        data.num_rows,
        data.class_names,
        samples,
        pa.Table.from_pylist(neighbors, _NEIGHBORS_SCHEMA),
        pa.Table.from_pylist(examples),
        _pictures(data, rows, ids, shown),
        _confusion(data.labels, clustering.numbered_n.cpu().numpy()),
    )


def _pictures(
    data: DataSet,
    rows: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    shown: list[int],
) -> pa.Table:
    """A row for each sample that has a picture."""
    pictures = {int(ids[i]): data.picture(int(rows[i])) for i in shown}
    found = {sample: png for sample, png in pictures.items() if png is not None}
    ids_column = pa.array(list(found), pa.int64())
    return pa.table({"sample_id": ids_column, "png": pa.array(list(found.values()), pa.binary())})


_NEIGHBORS_SCHEMA = pa.schema(
    {
        "query_id": pa.int64(),
        "kind": pa.string(),
        "rank": pa.int64(),
        "sample_id": pa.int64(),
        "right": pa.bool_(),
        "hard": pa.bool_(),
    }
)


def _labels_column(labels: npt.NDArray[np.int64] | None, count: int) -> pa.Array:
    """Labels, with null for unknown ones."""
    if labels is None:
        return pa.nulls(count, pa.int64())
    return pa.array(labels, mask=labels < 0)


def _neighbors(
    queries: list[int],
    found_qk: dict[str, npt.NDArray[np.int64]],
    labels: npt.NDArray[np.int64] | None,
) -> list[dict[str, Any]]:
    """Rows of the table of neighbours, samples named by their place in the snapshot."""
    rows = []
    for index, query in enumerate(queries):
        euclidean = set(found_qk["euclidean"][index].tolist())
        for kind, lists_qk in found_qk.items():
            for place, other in enumerate(lists_qk[index, 1:].tolist(), start=1):
                row: dict[str, Any] = {"query_id": query, "kind": kind, "rank": place}
                row |= {"sample_id": other, "right": None, "hard": None}
                if labels is not None and min(labels[query], labels[other]) >= 0:
                    right = bool(labels[query] == labels[other])
                    row["right"] = right
                    row["hard"] = right and kind == "contextual" and other not in euclidean
                rows.append(row)
    return rows


def _queries(count: int, labels: npt.NDArray[np.int64] | None) -> Tensor:
    """Samples whose neighbours are shown, spread evenly over classes and their members."""
    labels = np.zeros(count, np.int64) if labels is None else labels
    num_queries, classes = min(_NUM_QUERIES, count), np.unique(labels)
    turns = classes[np.arange(num_queries) * len(classes) // num_queries]
    queries: list[int] = []
    for name, times in zip(*np.unique(turns, return_counts=True), strict=True):
        members = np.flatnonzero(labels == name)
        queries += members[(2 * np.arange(times) + 1) * len(members) // (2 * times)].tolist()
    return torch.tensor(queries)


def _examples(
    clusters: npt.NDArray[np.int64], ratios: npt.NDArray[np.float32]
) -> list[dict[str, Any]]:
    """Rows of the table of examples: by rising ratio if typical, by falling ratio if boundary."""
    names, counts = np.unique(clusters, return_counts=True)
    largest = np.sort(names[np.argsort(-counts, kind="stable")[:_MOST_CLUSTERS]])
    rows = []
    for cluster in largest.tolist():
        members = np.flatnonzero(clusters == cluster)
        members = members[np.argsort(ratios[members], kind="stable")]
        typical = members[:_NUM_EXAMPLES]
        outer = members[len(typical) :][::-1][:_NUM_EXAMPLES]
        for kind, chosen in (("typical", typical), ("boundary", outer)):
            rows += [
                {"cluster": cluster, "kind": kind, "rank": place, "sample_id": int(sample)}
                for place, sample in enumerate(chosen, start=1)
            ]
    return rows


def _confusion(
    labels: npt.NDArray[np.int64] | None, clusters: npt.NDArray[np.int64]
) -> pa.Table | None:
    """How many samples of each class are in each cluster; classes and clusters in matched order."""
    if labels is None:
        return None
    known = labels >= 0
    match = match_clusters(labels[known], clusters[known])
    shape = match.counts_rc.shape
    places = np.indices(shape).reshape(2, -1)
    return pa.table(
        {
            "label": match.classes_r[places[0]],
            "cluster": match.clusters_c[places[1]],
            "count": match.counts_rc.flatten(),
            "matched": places[0] == places[1],
        }
    )
