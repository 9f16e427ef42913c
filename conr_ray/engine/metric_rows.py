"""Rows of metrics.parquet, one for each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

# `epoch`, `stage` and figures of that epoch.
MetricRow = Mapping[str, float | int | str | None]


def to_table(rows: Sequence[MetricRow]) -> pa.Table:
    """The rows as a table; its columns are those that any row has, `epoch` first."""
    names = list(dict.fromkeys(["epoch", *(name for row in rows for name in row)]))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def from_table(table: pa.Table) -> list[MetricRow]:
    """The rows of a table, each with what it has."""
    return [{n: v for n, v in row.items() if v is not None} for row in table.to_pylist()]
