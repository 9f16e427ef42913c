"""The data of a run for its report, read from its directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from conr_ray.config import RunConfig
from conr_ray.edits.folder import (
    EDITS,
    NAMES,
    assigned_fingerprint,
    read_assignments,
    read_edits,
)
from conr_ray.edits.log import EditLog
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.errors import UserError
from conr_ray.metric_names import LABEL_FREE_SCORES, LABELLED_METRICS
from conr_ray.reporting.chart_style import ALONE
from conr_ray.reporting.map_cache import Positions, map_positions
from conr_ray.reporting.sample_names import SampleNames


@dataclass(frozen=True)
class RunData:
    """What is known of a run.

    Attributes:
        name: name of its folder.
        config: config of the run.
        rows: rows of metrics.parquet, one per epoch.
        origin: the trunk that it was forked from.
        weights: what it started from, as `RunDirectory.initial_weights` reads it.
        snapshot: data for its figures; `positions` are its samples' places on a map.
        problems: one line for each part of the report that could not be read.
        edits: a person's changes of its clusters, which the snapshot shows.
    """

    name: str
    config: RunConfig
    rows: list[MetricRow]
    origin: Origin | None = None
    snapshot: Snapshot | None = None
    positions: Positions | None = None
    problems: dict[str, str] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    edits: EditLog = field(default_factory=EditLog)

    @property
    def figures(self) -> dict[str, float]:
        """The latest value of each metric."""
        latest: dict[str, float] = {}
        for row in self.rows:
            latest |= {n: float(v) for n, v in row.items() if isinstance(v, int | float)}
        latest.pop("epoch", None)
        return latest

    @property
    def main_metrics(self) -> list[str]:
        """Metrics of its quality: agreement with labels or, without labels, scores."""
        figures = self.figures
        labelled = [name for name in LABELLED_METRICS if name in figures]
        return labelled or [name for name in LABEL_FREE_SCORES if name in figures]

    @property
    def names(self) -> SampleNames:
        """What the samples of its snapshot are called."""
        assert self.snapshot is not None, "without one no sample is shown"
        return SampleNames.of(self.snapshot, self.config.data)

    @property
    def time_s(self) -> float:
        """Training time of its epochs, including those of its trunk."""
        return sum(float(row.get("epoch_time_s") or 0) for row in self.rows)

    @property
    def variant(self) -> str:
        """Its method: CoNR, Euclidean neighbours or the framework alone."""
        return variant_of(self.config)


def variant_of(config: RunConfig) -> str:
    """The method of a run: CoNR, Euclidean neighbours or the framework alone."""
    if config.group_start_epoch is None:
        return ALONE
    return "CoNR" if config.neighborhood.kind == "contextual" else "Euclidean neighbours"


def read_run(directory: RunDirectory, *, draw_map: bool = True, edits: bool = False) -> RunData:
    """The run in a directory, its clusters as a person has changed them if `edits`.

    Damaged files are listed in `problems`.

    Raises:
        UserError: its config is missing or cannot be read.
    """
    config = directory.read_config()
    if config is None:
        raise UserError(f"{directory.uri} holds no run (no config.yaml): give a run's folder")
    problems: dict[str, str] = {}
    rows, origin = read_files_that_are_whole(directory, problems)
    weights = _weights(directory, problems)
    name = directory.uri.rpartition("/")[2]
    data = RunData(name, config, rows, origin, problems=problems, weights=weights)
    found = with_figures(data, directory, draw_map=draw_map)
    return _edited(found, directory) if edits else found


def _edited(data: RunData, directory: RunDirectory) -> RunData:
    """The run with its snapshot in the clusters that a person has made of them.

    A snapshot that was taken before the run's end shows clusters of that time, and is left alone.
    """
    if not (directory.has(EDITS) or directory.has(NAMES)):
        return data
    try:
        assignments = read_assignments(directory)
        if assignments is None:
            return data
        log = read_edits(directory, assigned_fingerprint(assignments))
    except UserError as error:
        return dataclasses.replace(data, problems={**data.problems, "edits": str(error)})
    if data.snapshot is None:
        return dataclasses.replace(data, edits=log)
    ids_n, clusters_n = (assignments[name].to_numpy() for name in ("sample_id", "cluster"))
    found = dict(zip(ids_n.tolist(), log.clusters(ids_n, clusters_n).tolist(), strict=True))
    snapshot = data.snapshot
    tables = {}
    for name in ("samples", "examples"):
        table = getattr(snapshot, name)
        ids = table["sample_id"].to_pylist()
        clusters = [
            found.get(sample, cluster)
            for sample, cluster in zip(ids, table["cluster"].to_pylist(), strict=True)
        ]
        at = table.column_names.index("cluster")
        tables[name] = table.set_column(at, "cluster", pa.array(clusters, pa.int64()))
    snapshot = dataclasses.replace(snapshot, **tables)
    return dataclasses.replace(data, edits=log, snapshot=snapshot)


def read_files_that_are_whole(
    directory: RunDirectory, problems: dict[str, str]
) -> tuple[list[MetricRow], Origin | None]:
    """A run's epochs and origin; damaged ones are left out and listed in `problems`."""
    rows: list[MetricRow] = []
    origin = None
    try:
        rows = directory.metric_rows()
    except UserError as error:
        problems["curves"] = str(error)
    try:
        origin = Origin.read(directory)
    except (UserError, ValueError, TypeError):
        problems["origin"] = f"{directory.uri}/origin.json is damaged: delete it"
    return rows, origin


def _weights(directory: RunDirectory, problems: dict[str, str]) -> Mapping[str, Any] | None:
    """What a run started from; damage is listed in `problems`."""
    try:
        return directory.initial_weights()
    except UserError as error:
        problems["weights"] = str(error)
        return None


def with_figures(data: RunData, directory: RunDirectory, *, draw_map: bool) -> RunData:
    """`data` with the snapshot in its directory, if there is a complete one."""
    problems = dict(data.problems)
    try:
        snapshot = Snapshot.read(directory)
    except UserError as error:
        problems["figures"] = f"cannot read the snapshot: {error}"
        return dataclasses.replace(data, problems=problems)
    if snapshot is None:
        problems["figures"] = (
            "no snapshot yet: one is taken after the last epoch, and during the run with "
            "evaluation.snapshot_every"
        )
        return dataclasses.replace(data, problems=problems)
    tables = ("samples", "neighbors", "examples", "pictures")
    # Their types exclude None, but a file may have been deleted.
    missing = [name for name in tables if getattr(snapshot, name) is None]
    if missing:
        names = ", ".join(f"{name}.parquet" for name in missing)
        problems["figures"] = f"the snapshot lacks {names}: train the run's last epoch again"
        return dataclasses.replace(data, problems=problems)
    positions = map_positions(directory, snapshot, draw=draw_map)
    return dataclasses.replace(data, snapshot=snapshot, positions=positions, problems=problems)


def curve(rows: Sequence[MetricRow], name: str) -> tuple[list[int], list[float]]:
    """The known values of a metric: epochs trained, and values."""
    known = [(int(row["epoch"] or 0) + 1, row[name]) for row in rows if row.get(name) is not None]
    return [epoch for epoch, _ in known], [float(value or 0) for _, value in known]


def metric_names(rows: Sequence[MetricRow]) -> set[str]:
    """Metrics that occur in any row."""
    numbers = {n for row in rows for n, v in row.items() if isinstance(v, int | float)}
    return numbers - {"epoch"}


def group_stage_ranges(
    curves: Sequence[tuple[Sequence[int], Sequence[float]]], start: int | None
) -> tuple[list[float], list[float]] | None:
    """Ranges of epochs and values that show the curves after `start`; None if they are empty.

    `curves` have the form returned by `curve`.
    """
    if not start:
        return None
    pairs = [pair for epochs, values in curves for pair in zip(epochs, values, strict=True)]
    shown = [value for epoch, value in pairs if epoch >= start]
    end = max((epoch for epoch, _ in pairs), default=0)
    if not shown or end <= start:
        return None
    margin = 0.05 * (max(shown) - min(shown)) or 0.01
    left = start - 0.05 * (end - start)
    right = end + 0.02 * (end - start)
    return [left, right], [min(shown) - margin, max(shown) + margin]


def group_start(rows: Sequence[MetricRow]) -> int | None:
    """Epochs trained before the group stage; None if it has not begun."""
    return next((int(row["epoch"] or 0) for row in rows if row.get("stage") == "group"), None)
