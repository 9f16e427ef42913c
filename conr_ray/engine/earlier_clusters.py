"""Clusters of a run are numbered as those of an earlier one, by the samples that both hold.

ids_of/                of a run with clustering.ids_of: the assignments, edits and names of the
                       clusters that it names, as they were when the run began
cluster_changes.csv    what became of each number: kept, split, merged, new or gone

Shapes: n samples, m of the earlier clusters, c clusters.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.edits.folder import (
    EDITS,
    NAMES,
    assigned_fingerprint,
    fingerprint_of,
    read_edits,
    write_edits,
    write_names,
)
from conr_ray.edits.log import Edit, EditLog
from conr_ray.engine.cluster_changes import ClusterChanges
from conr_ray.engine.evaluation import FIRST_FREE, DataClustering
from conr_ray.errors import UserError
from conr_ray.fields import short
from conr_ray.method.clustering.numbering import counts_of, numbers_of
from conr_ray.method.collectives import broadcast_first, rank
from conr_ray.storage.files import Folder

PLACE = "ids_of"
_ASSIGNMENTS, _FIELD = "assignments.parquet", "clustering.ids_of"
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EarlierClusters:
    """Which samples were in which cluster, and what a person has changed since.

    Attributes:
        uri: the folder that they are of.
        key: the column that tells samples apart: `path` where there are paths, else `sample_id`.
        keys: (m,).
        ids_m: sample ids, int64.
        clusters_m: numbers before a person's edits, int64.
        log: the edits, names among them.
        first_free: above all numbers that were ever used.
    """

    uri: str
    key: str
    keys: pa.Array
    ids_m: Ints
    clusters_m: Ints
    log: EditLog
    first_free: int

    @classmethod
    def read(cls, folder: Folder, what: str = _FIELD) -> EarlierClusters:
        """Those of a run, or of a folder that `conr_ray.recluster` has written.

        Raises:
            UserError: there are none, or they cannot be read. It begins with `what`.
        """
        try:
            table = folder.read_table(_ASSIGNMENTS)
            if table is None:
                raise UserError(_none_in(folder))
            if missing := {"sample_id", "cluster"} - set(table.column_names):
                raise UserError(
                    f"{_ASSIGNMENTS} has no column {min(missing)}: give the folder of a run, or "
                    "one of recluster"
                )
            log = read_edits(folder, assigned_fingerprint(table))
        except UserError as error:
            raise UserError(f"{what}={short(folder.uri)}: {error}") from None
        ids_m, clusters_m = (table.column(name).to_numpy() for name in ("sample_id", "cluster"))
        key = "path" if "path" in table.column_names else "sample_id"
        keys = table.column(key).combine_chunks()
        told = int((table.schema.metadata or {}).get(FIRST_FREE, 0))
        first_free = max(told, log.unused(np.unique(clusters_m).tolist()))
        return cls(folder.uri, key, keys, ids_m, clusters_m, log, first_free)

    def rows_in(self, data: DataSet, what: str = _FIELD) -> tuple[Ints, Ints]:
        """The samples that both hold: their rows in `data`, and their rows here.

        Raises:
            UserError: none, or those of one have paths and those of the other have not. It begins
                with `what`.
        """
        place = f"{what}={short(self.uri)}"
        if (self.key == "path") != (data.names is not None):
            with_paths, without = ("its", "these") if self.key == "path" else ("these", "its")
            raise UserError(
                f"{place}: {with_paths} samples are known by their paths, {without} by their rows: "
                "give clusters of samples from the same kind of data.source"
            )
        wanted = pa.array(data.sample_ids if data.names is None else data.names)
        found = pc.index_in(wanted, value_set=self.keys.cast(wanted.type))
        rows_n = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        if not len(rows_n):
            first = short(str(self.keys[0])) if len(self.keys) else "none"
            raise UserError(
                f"{place}: no sample is in both: its first {self.key} is {first}, here it is "
                f"{short(str(wanted[0]))}: give clusters of samples that are among these"
            )
        return rows_n, found.drop_null().to_numpy().astype(np.int64)

    @cached_property
    def _counted(self) -> tuple[list[int], Ints]:
        """The numbers that are used, in their order, and the samples of each."""
        numbers, sizes = np.unique(self.clusters_m, return_counts=True)
        return numbers.tolist(), sizes

    def numbered(self, places_n: Ints, num_clusters: int, data: DataSet) -> ClusterChanges:
        """How clusters of `data`, told by their places from 0, are numbered after these.

        Raises:
            UserError: as `rows_in`.
        """
        rows_n, rows_m = self.rows_in(data)
        numbers, sizes_a = self._counted
        spots = np.searchsorted(numbers, self.clusters_m[rows_m])
        counts_ac = counts_of(spots, places_n[rows_n], len(numbers), num_clusters)
        return ClusterChanges(
            earlier=tuple(numbers),
            numbers_c=numbers_of(counts_ac, numbers, self.first_free),
            counts_ac=counts_ac,
            sizes_before_a=sizes_a,
            sizes_c=np.bincount(places_n, minlength=num_clusters),
            names_before=self.log.names(),
            first_free_before=self.first_free,
        )

    def edits_for(self, data: DataSet, clusters_n: Ints, *, same_networks: bool) -> EditLog:
        """The edits, about the samples of `data`, which are in the clusters `clusters_n` now.

        What is about samples that are not among these is left out, and so are the names of clusters
        that are gone. Where the networks differ, the centres of a split are, too.
        """
        rows_n, rows_m = self.rows_in(data)
        order = np.argsort(self.ids_m[rows_m])
        then, now = self.ids_m[rows_m][order], data.sample_ids[rows_n][order]
        steps = []
        for step in self.log.active:
            ids = now[np.isin(then, step.sample_ids_m)]
            if len(ids) or step.kind not in ("split", "move"):
                centers = step.centers_2d if same_networks else None
                steps.append(
                    dataclasses.replace(step, sample_ids_m=np.sort(ids), centers_2d=centers)
                )
        found = EditLog(tuple(steps))
        there = set(np.unique(found.clusters(data.sample_ids, clusters_n)).tolist())
        gone = [Edit("rename", (number,)) for number in found.names() if number not in there]
        return EditLog((*steps, *gone))


def check_earlier(config: RunConfig, data: DataSet, run: Folder) -> EarlierClusters | None:
    """The clusters of `clustering.ids_of`, unless the folder of the run has them already.

    Raises:
        UserError: there are none, or they have no sample of `data`.
    """
    if (place := config.clustering.ids_of) is None or _copy_in(run).has(_ASSIGNMENTS):
        return None
    earlier = EarlierClusters.read(Folder(place))
    earlier.rows_in(data)
    return earlier


def keep_earlier(config: RunConfig, data: DataSet, run: Folder) -> None:
    """Copy what `check_earlier` finds to the folder of the run; called by all workers.

    Raises:
        UserError: as there.
    """
    earlier = check_earlier(config, data, run)
    if earlier is None or rank() > 0:
        return
    source, copy = Folder(earlier.uri), _copy_in(run)
    # What is written last tells that all is there.
    for name in (EDITS, NAMES, _ASSIGNMENTS):
        if (content := source.read_bytes(name)) is not None:
            copy.write_bytes(name, content)


def numbered_as_before(
    found: DataClustering, data: DataSet, run: Folder, *, same_networks: bool
) -> DataClustering:
    """A run's final clusters with the numbers, names and edits of those before.

    Those before are the run's own where it had ended and was trained on, else those that it was
    told to follow. The first worker writes what has changed. Called by all workers.

    Raises:
        UserError: the earlier clusters or edits are damaged.
    """
    number = len(found.centers_cd)
    earlier = changes = None
    if rank() == 0:
        copy = _copy_in(run)
        place = run if run.has(_ASSIGNMENTS) else copy if copy.has(_ASSIGNMENTS) else None
        if place is not None:
            earlier = EarlierClusters.read(place, "folder")
            changes = earlier.numbered(found.clusters_n.cpu().numpy(), number, data)
    told = torch.arange(number + 1)
    if changes is not None:
        told = torch.tensor([*changes.numbers, changes.first_free])
    told = broadcast_first(told.to(found.clusters_n.device)).cpu()
    found = found.with_numbers(told[:-1], int(told[-1]))
    if earlier is not None and changes is not None and not changes.is_the_same:
        write_changes(earlier, changes, found, data, run, same_networks=same_networks)
    return found


def write_changes(
    earlier: EarlierClusters,
    changes: ClusterChanges,
    found: DataClustering,
    data: DataSet,
    folder: Folder,
    *,
    same_networks: bool,
) -> None:
    """Write what has changed, and the names and edits, to the folder of the clusters.

    Raises:
        StorageError: they cannot be written.
    """
    clusters_n = found.numbered_n.cpu().numpy()
    log = earlier.edits_for(data, clusters_n, same_networks=same_networks)
    if any(step.kind != "rename" for step in log.active):
        write_edits(folder, log, fingerprint_of(data.sample_ids, clusters_n))
    else:
        if folder.has(EDITS):
            folder.delete_file(EDITS)
        if log.names() or folder.has(NAMES):
            write_names(folder, log.names())
    changes.write(folder)


def _copy_in(run: Folder) -> Folder:
    return Folder(f"{run.uri}/{PLACE}")


def _none_in(folder: Folder) -> str:
    if folder.has("config.yaml"):
        return "the run has not ended: resume it to its end"
    return (
        "there are no clusters (no assignments.parquet): give the folder of a run that has ended, "
        "or its recluster/NUMBER"
    )
