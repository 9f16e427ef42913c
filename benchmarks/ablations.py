"""Tables of searches over seeds: mean and standard deviation of each point, last epoch.

    python benchmarks/ablations.py runs/ablation_fraction-digits ...

Trials of a seed share their instance stage, and seeds differ by more than points do. So there is a
second figure, ACC within seeds: the difference of a trial to the mean of its seed over all points,
as mean and deviation over the seeds. A grid of two fields of numbers is printed as such, ACC and
below it ACC within seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml


def main() -> None:
    """Parse, print a table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of searches")
    for folder in parser.parse_args().folders:
        space = yaml.safe_load((folder / "space.yaml").read_text())
        fields = [name for name in space["search"] if name != "seed"]
        rows = pq.read_table(folder / "trials.parquet").to_pylist()
        points = _points([row for row in rows if row["state"] == "complete"], fields)
        print(f"\n{folder.name}\n")
        numbers = all(isinstance(value, int | float) for point in points for value in point)
        print(_grid(points, fields) if len(fields) == 2 and numbers else _list(points, fields))


@dataclass
class Point:
    """Figures of the trials of a point, one for each seed."""

    acc: list[float]
    nmi: list[float]
    purity: list[float]
    within_seeds: list[float]


def _points(rows: list[dict[str, Any]], fields: list[str]) -> dict[tuple[Any, ...], Point]:
    of_seed = defaultdict(list)
    for row in rows:
        of_seed[row["seed"]].append(row["acc"])
    means = {seed: statistics.mean(values) for seed, values in of_seed.items()}
    found: dict[tuple[Any, ...], Point] = defaultdict(lambda: Point([], [], [], []))
    for row in sorted(rows, key=lambda row: row["seed"]):
        point = found[tuple(row[field] for field in fields)]
        point.acc.append(row["acc"])
        point.nmi.append(row["nmi"])
        # BYOL has no neighbours.
        point.purity += [] if row["neighbor_purity"] is None else [row["neighbor_purity"]]
        point.within_seeds.append(row["acc"] - means[row["seed"]])
    return dict(sorted(found.items(), key=lambda item: tuple(map(_sortable, item[0]))))


def _list(points: dict[tuple[Any, ...], Point], fields: list[str]) -> str:
    """A row for each point."""
    names = [field.rpartition(".")[2] for field in fields]
    lines = _head([*names, "ACC", "NMI", "neighbour purity", "ACC within seeds"])
    for values, point in points.items():
        cells = [*(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
        cells += [_cell(point.acc), _cell(point.nmi), _cell(point.purity)]
        lines.append(_row([*cells, _difference(point.within_seeds)]))
    return "\n".join(lines)


def _grid(points: dict[tuple[Any, ...], Point], fields: list[str]) -> str:
    """A row for each value of the first field, a column for each of the second."""
    rows, columns = (list(dict.fromkeys(values)) for values in zip(*points, strict=True))
    first, second = (field.rpartition(".")[2] for field in fields)
    head = [first, *(f"{second}={column:g}" for column in columns)]
    lines = []
    for title, text in (("ACC", _acc), ("ACC within seeds", _within)):
        lines += [f"\n{title}\n", *_head(head)]
        lines += [
            _row([f"{row:g}", *(text(points[row, column]) for column in columns)]) for row in rows
        ]
    return "\n".join(lines)


def _acc(point: Point) -> str:
    return _cell(point.acc)


def _within(point: Point) -> str:
    return _difference(point.within_seeds)


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(values: list[float]) -> str:
    if len(values) < 2:
        return "-"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _difference(values: list[float]) -> str:
    if len(values) < 2:
        return "-"
    return f"{statistics.mean(values):+.4f} ± {statistics.stdev(values):.4f}"


def _sortable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


if __name__ == "__main__":
    main()
