"""Clusters of a run's samples in another number than its own.

RUN/recluster/12/assignments.parquet   as a run's
RUN/recluster/12/clusters.csv          as a run's
RUN/recluster/12/centers.parquet       written last: center, a list of floats, length, that of the
                                       cluster's mean, and number, that of the cluster; the schema
                                       tells the epochs trained

Shapes: c clusters, d width.
"""

from __future__ import annotations

import shlex

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from conr_ray.engine.clusters_csv import write_clusters_csv
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.storage.files import Folder

# Folder of a run in which clusters in other numbers are, each in a folder of that name.
PLACE = "recluster"
_FILE, _EPOCHS = "centers.parquet", b"epochs_trained"


class ClustersFolder(Folder):
    """The folder of one clustering."""

    @classmethod
    def of(cls, run: RunDirectory, num_clusters: int) -> ClustersFolder:
        """That of `num_clusters` clusters in the folder of a run."""
        return cls(f"{run.uri}/{PLACE}/{num_clusters}")

    def write(
        self,
        assignments: pa.Table,
        fraction: float,
        centers_cd: Tensor,
        lengths_c: Tensor,
        numbers_c: Tensor,
        epoch: int,
    ) -> None:
        """Write the files; `fraction` is the share of confident samples."""
        if self.has(_FILE):
            self.delete_file(_FILE)
        self.write_table("assignments.parquet", assignments)
        write_clusters_csv(self, assignments, fraction)
        lengths = lengths_c.float().cpu().numpy()
        numbers = numbers_c.cpu().numpy()
        table = pa.table({"center": as_lists(centers_cd), "length": lengths, "number": numbers})
        self.write_table(_FILE, table.replace_schema_metadata({_EPOCHS: str(epoch)}))

    def centers(self, epoch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Centres of unit length (c, d), lengths of the clusters' means, numbers, (c,) each.

        Raises:
            UserError: there are none, or not of the networks after `epoch` epochs.
        """
        run, _, number = self.uri.rpartition(f"/{PLACE}/")
        again = "make them with python -m conr_ray.recluster"
        if run:
            again += f" --run {shlex.quote(run)} --clusters {number}"
        table = self.read_table(_FILE, ("length", "center"))
        if table is None:
            raise UserError(f"{self.uri} holds no clusters: {again}")
        made = (table.schema.metadata or {}).get(_EPOCHS, b"?").decode()
        if made != str(epoch):
            raise UserError(
                f"{self.uri} holds clusters of the run after {made} epochs, not {epoch}: {again}"
            )
        lengths = np.array(table.column("length").to_numpy(), np.float32)
        centers_cd = from_lists(table.column("center"))
        numbers_c = torch.arange(len(lengths))
        if "number" in table.column_names:
            numbers_c = torch.from_numpy(np.array(table.column("number").to_numpy(), np.int64))
        return centers_cd.to(device), torch.from_numpy(lengths).to(device), numbers_c


def as_lists(rows_bd: Tensor) -> pa.Array:
    """Rows as a column of a table, each a list of floats."""
    flat = pa.array(rows_bd.float().cpu().numpy().ravel())
    return pa.FixedSizeListArray.from_arrays(flat, rows_bd.shape[1])


def from_lists(column: pa.ChunkedArray) -> Tensor:
    """The rows of `as_lists`, float32 (b, d)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat, np.float32).reshape(len(column), -1))
