"""The table of clusters that spreadsheets open."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conr_ray.engine import clusters_csv
from conr_ray.engine.clusters_csv import safe_path, write_clusters_csv
from conr_ray.storage.files import Folder


def assignments(ratios: list[float], clusters: list[int], paths: list[str] | None) -> pa.Table:
    columns = {
        "sample_id": pa.array(range(len(ratios)), pa.int64()),
        "cluster": pa.array(clusters, pa.int64()),
        "boundary_ratio": pa.array(ratios, pa.float32()),
    }
    return pa.table(columns | ({} if paths is None else {"path": paths}))


def lines(folder: Path) -> list[list[str]]:
    """What a spreadsheet shows."""
    return list(csv.reader(io.StringIO((folder / "clusters.csv").read_text("utf-8-sig"))))


def test_rows_are_sorted_by_cluster_the_surest_first(tmp_path: Path) -> None:
    table = assignments([0.5, 0.25, 1.5, 0.125, np.inf], [1, 1, 0, 1, 0], None)
    assert write_clusters_csv(Folder(tmp_path), table, 0.6)
    assert lines(tmp_path) == [
        ["sample_id", "cluster", "certainty", "confident"],
        ["2", "0", "0", "no"],
        ["4", "0", "0", "no"],
        ["3", "1", "0.875", "yes"],
        ["1", "1", "0.75", "yes"],
        ["0", "1", "0.5", "yes"],
    ]


def test_no_name_is_a_formula_and_each_is_still_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    names = ["=1+1.png", "-2.png", "+3.png", "@SUM(A1).png", "\t=4.png", " 5.png", '"=6".png']
    names += ["größe.png", "a,b;=7.png", "a\n=8.png", "sub/=9.png", "_0.png", ".10.png"]
    (folder / "sub").mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"")
    write_clusters_csv(Folder(tmp_path), assignments([0.5] * 13, [0] * 13, names), 1.0)
    shown = [row[0] for row in lines(tmp_path)[1:]]
    assert not [name for name in shown if name[0] in "=+-@\t\r\n '\""]
    assert [(folder / name).resolve() for name in shown] == [(folder / n).resolve() for n in names]
    assert safe_path("a/b") == "a/b" and safe_path("/a") == "/a"


def test_more_rows_than_a_spreadsheet_opens_are_left_to_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters_csv, "MOST_ROWS", 3)
    assert write_clusters_csv(Folder(tmp_path), assignments([0.5] * 3, [0] * 3, None), 1.0)
    assert not write_clusters_csv(Folder(tmp_path), assignments([0.5] * 4, [0] * 4, None), 1.0)
    assert not (tmp_path / "clusters.csv").exists()
