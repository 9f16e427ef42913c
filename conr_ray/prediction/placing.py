"""The rows of a prediction: where the samples of a batch lie among the clusters of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError
from conr_ray.prediction.samples import SampleForm

_FLOATS = ("distance", "other_distance", "boundary_ratio")


def digest_of(directory: RunDirectory, run: TrainedRun) -> str:
    """The checksum of the checkpoint that `run` was loaded from, which tells its state."""
    name = directory.checkpoint_name(run.state.epoch)
    return str((directory.read_json(f"{name}/summary.json") or {}).get("sha256", ""))


@dataclass(frozen=True)
class Placing:
    """From batches of samples to rows of a prediction; the columns `keys` and the like stay.

    Attributes:
        run: with clusters.
        embeddings: whether rows have them.
    """

    run: TrainedRun
    embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse a run without clusters."""
        if self.run.num_clusters is None:
            raise UserError("the run has no clusters yet: train it to its next evaluation")

    @cached_property
    def form(self) -> SampleForm:
        """The form of the run's samples."""
        return SampleForm(self.run.sample_shape, self.run.config.data.stored_size)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of the batch; of a sample that could not be read, null but for the reason."""
        values, reason = self.form.values(batch), batch.column("reason")
        rows = batch.drop_columns("samples")
        sound = reason.is_null().to_numpy(zero_copy_only=False)
        if not sound.all():
            values = values[sound]
        # NumPy does not write to what Arrow holds, nor does torch: of no use to be told.
        placement = self.run.place(np.require(values, requirements="W"))
        ratios = placement.boundary_ratios_n.numpy(force=True)
        figures = {
            "cluster": placement.clusters_n.numpy(force=True),
            "distance": placement.distances_n.numpy(force=True),
            "other_distance": placement.other_distances_n.numpy(force=True),
            "boundary_ratio": ratios,
        }
        columns = {
            name: pa.array(
                column, pa.float32() if name in _FLOATS else pa.int64(), from_pandas=False
            )
            for name, column in figures.items()
        }
        threshold = self.run.confident_ratio
        unknown = pa.nulls(len(ratios), pa.bool_())
        columns["confident"] = unknown if threshold is None else pa.array(ratios <= threshold)
        if self.embeddings:
            flat_nd = placement.embeddings_nd.to(torch.float32).numpy(force=True)
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(
                pa.array(flat_nd.ravel()), flat_nd.shape[1]
            )
        where = np.full(len(sound), -1)
        where[sound] = np.arange(len(values))
        taken = pa.array(where, mask=~sound)
        for name, column in columns.items():
            rows = rows.append_column(name, column.take(taken))
        return rows
