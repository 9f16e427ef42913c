"""The rows of metrics.parquet: one per epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

# `epoch`, `stage` and the figures of that epoch.
MetricRow = Mapping[str, float | int | str | None]


def to_table(rows: Sequence[MetricRow]) -> pa.Table:
    """A table of the rows, with a column for each name in any of them, `epoch` first."""
    names = list(dict.fromkeys(["epoch", *(name for row in rows for name in row)]))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def from_table(table: pa.Table) -> list[MetricRow]:
    """The rows of a table, without nulls."""
    return [{n: v for n, v in row.items() if v is not None} for row in table.to_pylist()]
