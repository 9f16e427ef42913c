"""What is logged to W&B besides curves: figures, tables with images, checkpoints."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import wandb
from matplotlib.figure import Figure
from PIL import Image

from conr_ray.edits.folder import read_assignments
from conr_ray.engine.clusters_csv import certainty
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.tracking import drawing
from conr_ray.tracking.embedding_map import TSNE_S_PER_SAMPLE, map_2d, plane_2d

_SHARE_OF_RUN = 0.02
# Expected time of the first drawing.
_FIRST_S = 1.0
_DOTS_PER_INCH = 110
# Rows of a table that W&B shows at once, and bytes that are uploaded within seconds.
_MOST_NAMED, _MOST_UPLOADED = 10_000, 16 * 2**20


class DrawingBudget:
    """Limits drawing figures to a fiftieth of the training time."""

    def __init__(self) -> None:
        self._trained_s = 0.0
        self._spent_s = 0.0
        self._last_s = _FIRST_S

    def add_epoch(self, time_s: float) -> None:
        """Add the training time of an epoch."""
        self._trained_s += time_s

    def left_s(self) -> float:
        """Seconds that may be spent now."""
        return _SHARE_OF_RUN * self._trained_s - self._spent_s

    def allows_another(self) -> bool:
        """Whether enough time is left to draw once more, judged by the last drawing."""
        return self.left_s() > self._last_s

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time spent inside the context."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._last_s = time.perf_counter() - started
            self._spent_s += self._last_s


def snapshot_media(snapshot: Snapshot, seconds: float) -> dict[str, Any]:
    """Figures and tables of a snapshot, by their names in W&B.

    The map uses t-SNE if `seconds` suffice, else principal components.
    """
    long_enough = seconds > TSNE_S_PER_SAMPLE * snapshot.samples.num_rows
    positions_m2 = (map_2d if long_enough else plane_2d)(snapshot.embeddings)
    figures = {
        "neighbors": drawing.neighbor_grid(snapshot),
        "map": drawing.embedding_map(snapshot, positions_m2),
        "confusion": drawing.confusion_matrix(snapshot),
        "clusters": drawing.cluster_examples(snapshot),
    }
    media: dict[str, Any] = {
        f"figures/{name}": _image(f) for name, f in figures.items() if f is not None
    }
    pictures: dict[int, Image.Image] = {
        row["sample_id"]: Image.open(io.BytesIO(row["png"]))
        for row in snapshot.pictures.to_pylist()
    }
    media["tables/neighbors"] = _picture_table(
        snapshot.neighbors, pictures, ("query_id", "kind"), "query_id"
    )
    media["tables/clusters"] = _picture_table(snapshot.examples, pictures, ("cluster", "kind"))
    if snapshot.confusion is not None:
        counts = [
            [snapshot.class_name(row["label"]), row["cluster"], row["count"]]
            for row in snapshot.confusion.to_pylist()
        ]
        media["tables/confusion"] = wandb.Table(columns=["class", "cluster", "count"], data=counts)
    return media


def log_checkpoint(run: Any, directory: RunDirectory, name: str) -> None:
    """Log the newest checkpoint of the run in `directory`, with its config, as an artifact."""
    epoch = directory.checkpoint_epochs()[-1]
    artifact = wandb.Artifact(name, type="model", metadata={"epochs": epoch})
    folder = directory.checkpoint_name(epoch)
    for file in ("config.yaml", f"{folder}/summary.json", f"{folder}/state.pt"):
        with artifact.new_file(file.rpartition("/")[2], "wb") as target:
            data = directory.read_bytes(file)
            assert data is not None, file
            target.write(data)
    run.log_artifact(artifact)


def log_assignments(run: Any, directory: RunDirectory, name: str) -> None:
    """Log the clusters of the ended run in `directory` as an artifact, nothing if there are none.

    It holds a table of at most `_MOST_NAMED` samples, evenly spaced over all, that W&B shows:
    path or sample_id, cluster, certainty. And assignments.parquet, unless that is larger than an
    upload at the end of a run should be; the artifact's metadata tell where it is.
    """
    data = directory.read_bytes("assignments.parquet")
    table = read_assignments(directory)
    if data is None or table is None:
        return
    metadata = {"samples": table.num_rows, "assignments": f"{directory.uri}/assignments.parquet"}
    artifact = wandb.Artifact(name, type="assignments", metadata=metadata)
    count = min(table.num_rows, _MOST_NAMED)
    spread = table.take(pa.array(np.arange(count) * table.num_rows // max(count, 1)))
    names = "path" if "path" in table.column_names else "sample_id"
    sure = certainty(spread.column("boundary_ratio").to_numpy()).tolist()
    columns = [spread.column(names).to_pylist(), spread.column("cluster").to_pylist(), sure]
    rows = [list(row) for row in zip(*columns, strict=True)]
    artifact.add(wandb.Table(columns=[names, "cluster", "certainty"], data=rows), "clusters")
    if len(data) <= _MOST_UPLOADED:
        with artifact.new_file("assignments.parquet", "wb") as target:
            target.write(data)
    run.log_artifact(artifact)


def _image(figure: Figure) -> wandb.Image:
    png = drawing.written(figure, "png", _DOTS_PER_INCH, facecolor="white")
    return wandb.Image(Image.open(io.BytesIO(png)))


def _picture_table(
    table: pa.Table,
    pictures: dict[int, Image.Image],
    keys: tuple[str, ...],
    first: str | None = None,
) -> wandb.Table:
    """A row for each value of `keys`, with the images of its samples by rank.

    The image of the sample in column `first`, if given, comes first.
    """
    lines: dict[tuple[Any, ...], list[Any]] = {}
    for row in table.to_pylist():
        start = [] if first is None else [wandb.Image(pictures[row[first]])]
        line = lines.setdefault(tuple(row[key] for key in keys), start)
        line.append(wandb.Image(pictures[row["sample_id"]]))
    width = max((len(line) for line in lines.values()), default=0)
    ranks = [str(rank) for rank in range(0 if first else 1, width + (0 if first else 1))]
    rows = [[*key, *line, *[None] * (width - len(line))] for key, line in lines.items()]
    return wandb.Table(columns=[*keys, *ranks], data=rows)
