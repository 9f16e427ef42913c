"""Data for the figures of a run: some of its samples, with embeddings, clusters and neighbours.

snapshot/samples.parquet    a row for each of at most 10,000 samples: sample_id, label, cluster,
                            boundary_ratio, kept, embedding, and path if samples have one
snapshot/neighbors.parquet  a row for each neighbour of 10 query images: query_id, kind (contextual
                            or euclidean), rank (from 1), sample_id, and right, hard if labelled
snapshot/examples.parquet   a row for each example image of a cluster: cluster, kind (typical or
                            boundary), rank, sample_id
snapshot/pictures.parquet   sample_id and png (a small file, PNG or JPEG) of each image in neighbors
                            and examples
snapshot/confusion.parquet  label, cluster, count and matched of all labelled samples, if any
snapshot/summary.json       epoch, class_names, num_images; written last

Shapes: m samples of the snapshot, d width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError, one_line, printable

_LONGEST_LABEL = 24
_TABLES = ("samples", "neighbors", "examples", "pictures")
# What all figures need; other columns are each missed by one.
_NEEDED = {"samples": ("sample_id", "embedding")}


@dataclass(frozen=True)
class Snapshot:
    """The tables above after `epoch` epochs. `class_names` and `confusion` are None without labels.

    A neighbour is `right` if it has the query's label, and `hard` (a hard positive) if it is right
    and only the contextual list has it; both are null if a label is unknown. The columns of the
    confusion matrix are clusters in the order of their matched classes.
    """

    epoch: int
    num_images: int
    class_names: tuple[str, ...] | None
    samples: pa.Table
    neighbors: pa.Table
    examples: pa.Table
    pictures: pa.Table
    confusion: pa.Table | None

    def write(self, directory: RunDirectory) -> None:
        """Write it to a run's directory, replacing an earlier one."""
        for name in _TABLES:
            directory.write_table(f"snapshot/{name}.parquet", getattr(self, name))
        if self.confusion is not None:
            directory.write_table("snapshot/confusion.parquet", self.confusion)
        summary = {
            "epoch": self.epoch,
            "num_images": self.num_images,
            "class_names": self.class_names,
        }
        directory.write_text("snapshot/summary.json", json.dumps(summary) + "\n")

    @classmethod
    def read(cls, directory: RunDirectory) -> Snapshot | None:
        """The snapshot of the run in `directory`, None if it has none.

        Raises:
            UserError: its files are damaged.
        """
        name = "snapshot/summary.json"
        if (summary := directory.read_json(name)) is None:
            return None
        try:
            epoch, num_images = int(summary["epoch"]), int(summary["num_images"])
            names = summary["class_names"]
            class_names = None if names is None else tuple(map(str, names))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = one_line(error)
            raise UserError(f"{directory.uri}/{name} is damaged ({reason}): delete it") from None
        tables = {
            name: directory.read_table(f"snapshot/{name}.parquet", _NEEDED.get(name, ()))
            for name in _TABLES
        }
        return cls(
            epoch=epoch,
            num_images=num_images,
            class_names=class_names,
            confusion=directory.read_table("snapshot/confusion.parquet"),
            **tables,
        )

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """Embeddings of the samples, (m, d), unit length up to half precision."""
        column = self.samples["embedding"].combine_chunks()
        width = column.type.list_size
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, np.float32).reshape(-1, width)

    @property
    def paths(self) -> dict[int, str]:
        """Paths of the samples that have one, by their ids."""
        if "path" not in self.samples.column_names:
            return {}
        columns = [self.samples[name].to_pylist() for name in ("sample_id", "path")]
        return {sample: path for sample, path in zip(*columns, strict=True) if path is not None}

    def class_name(self, label: int | None) -> str:
        """The name of a class, in one line; "unlabelled" if it is unknown."""
        if label is None:
            return "unlabelled"
        return printable(self.class_names[label]) if self.class_names else str(label)

    def class_label(self, label: int | None) -> str:
        """The name of a class for an axis or a legend, where a long one would leave no room."""
        name = self.class_name(label)
        return name if len(name) <= _LONGEST_LABEL else f"{name[:16]}…{name[-7:]}"
