"""What a folder of predictions holds, for its page: read once from end to end, part by part.

OUT/prediction.json                    the run, the images, and whether all is done
OUT/predictions/part-000000.parquet    a row for each image
OUT/errors.parquet                     a row for each image that could not be read

Memory holds counts and a few examples, whatever the number of images.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from conr_ray.edits.folder import EDITS, NAMES, read_edits
from conr_ray.edits.log import EditLog
from conr_ray.errors import UserError, printable
from conr_ray.prediction.output import hashes
from conr_ray.reporting.sample_names import shown_path
from conr_ray.storage.files import Folder

FORMAT = 1
NUM_EXAMPLES, MOST_MOVED, MOST_ERRORS = 5, 60, 60
_COLUMNS = ("path", "file", "row", "cluster", "boundary_ratio", "confident", "previous_cluster")


@dataclass(frozen=True)
class Predicted:
    """One image: where it is, its cluster now and before, and how near the boundary it is."""

    cluster: int
    ratio: float
    path: str | None = None
    file: str | None = None
    row: int | None = None
    before: int | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        if self.path is not None:
            return shown_path(self.path)
        return f"row {self.row}" + (f" of {shown_path(self.file)}" if self.file else "")


@dataclass
class Cluster:
    """A cluster's number of images, how many are confident, its surest and its least sure ones."""

    size: int = 0
    confident: int = 0
    surest: list[Predicted] = field(default_factory=list)
    unsure: list[Predicted] = field(default_factory=list)


@dataclass(frozen=True)
class Moves:
    """Images in another cluster than the last time.

    Attributes:
        known: images that were there before.
        matched: the cluster now of each cluster then, where most of its images are.
        counts: images by cluster then and now, of those that moved.
        examples: some of them, the surest first.
    """

    known: int
    matched: dict[int, int]
    counts: Counter[tuple[int, int]]
    examples: list[Predicted]

    @property
    def renumbered(self) -> bool:
        """Whether clusters have other numbers than before."""
        return any(then != now for then, now in self.matched.items())


@dataclass(frozen=True)
class PredictionsData:
    """All that the page shows.

    Attributes:
        told: prediction.json.
        clusters: by number.
        judged: images of which is known whether they are confident.
        moves: None if no image was predicted before.
        errors: names and reasons of some images that could not be read; `num_errors` of all.
        problems: parts that could not be read.
        names: of clusters that have one.
    """

    told: dict[str, Any]
    clusters: dict[int, Cluster]
    judged: int
    moves: Moves | None
    errors: list[tuple[str, str]]
    num_errors: int
    problems: list[str]
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Images that have a cluster."""
        return sum(cluster.size for cluster in self.clusters.values())

    @property
    def num_confident(self) -> int:
        """Images that are confident."""
        return sum(cluster.confident for cluster in self.clusters.values())

    @property
    def title(self) -> str:
        """What people call the images."""
        kind, _, preset = str(self.told["what"]).partition(" ")
        place = preset if kind == "dataset" else str(self.told["images"])
        return printable(place.rstrip("/").rpartition("/")[2]) or "images"


def is_prediction(directory: Folder) -> bool:
    """Whether a folder holds predictions."""
    return directory.has("prediction.json")


def prediction_fingerprint(told: Mapping[str, Any]) -> str:
    """What tells the clusters of a prediction from others, for a person's edits of them.

    It is of the run and the images as prediction.json tells them, so that edits hold when images
    are added.
    """
    known = [told.get(name) for name in ("run", "state", "edits", "what", "images")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


def read_predictions(directory: Folder, *, edits: bool = False) -> PredictionsData:
    """The predictions in a folder, in clusters as a person has changed them if `edits`.

    Damaged parts are listed in `problems`.

    Raises:
        UserError: it is of another format, or prediction.json cannot be read.
    """
    told = directory.read_json("prediction.json") or {}
    if told.get("format") != FORMAT:
        raise UserError(
            f"{directory.uri}/prediction.json: format={told.get('format')}: this version reads "
            f"{FORMAT}: use the version of conr_ray that wrote it"
        )
    problems: list[str] = []
    log = _read_edits(directory, told, problems) if edits else EditLog()
    told = {"run": "", "epochs": "?", "images": "", "what": "", "complete": False, **told}
    clusters: dict[int, Cluster] = {}
    moved: Counter[tuple[int, int]] = Counter()
    judged = 0
    for table in _parts(directory, problems):
        judged += _count(table, clusters, moved, log)
    for cluster in clusters.values():
        cluster.unsure = [one for one in cluster.unsure if one not in cluster.surest]
    moves = _moves(directory, moved) if moved else None
    errors, num_errors = _errors(directory, problems)
    ordered = dict(sorted(clusters.items()))
    names = {int(number): name for number, name in dict(told.get("names") or {}).items()}
    names |= log.names()
    return PredictionsData(told, ordered, judged, moves, errors, num_errors, problems, names)


def _read_edits(directory: Folder, told: Mapping[str, Any], problems: list[str]) -> EditLog:
    if directory.has(EDITS) or directory.has(NAMES):
        try:
            return read_edits(directory, prediction_fingerprint(told))
        except UserError as error:
            problems.append(str(error))
    return EditLog()


def _parts(directory: Folder, problems: list[str]) -> Iterator[pa.Table]:
    for name in directory.file_names("predictions"):
        if not name.endswith(".parquet"):
            continue
        try:
            table = directory.read_table(f"predictions/{name}")
        except UserError as error:
            problems.append(str(error))
            continue
        if table is None or not {"cluster", "boundary_ratio"} <= set(table.column_names):
            problems.append(f"{directory.uri}/predictions/{name} holds no predictions: delete it")
            continue
        yield table.select([column for column in _COLUMNS if column in table.column_names])


def _count(
    table: pa.Table,
    clusters: dict[int, Cluster],
    moved: Counter[tuple[int, int]],
    log: EditLog,
) -> int:
    """Add the rows of a part; return how many are judged to be confident or not.

    What has moved since the last time is told of the clusters before a person's changes.
    """
    clusters_n = table.column("cluster").to_numpy()
    ratios_n = table.column("boundary_ratio").to_numpy()
    judged = 0
    confident_n = np.zeros(len(clusters_n), bool)
    if "confident" in table.column_names:
        column = table.column("confident")
        judged = len(column) - column.null_count
        confident_n = column.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    if "previous_cluster" in table.column_names:
        before = table.column("previous_cluster")
        known_n = before.is_valid().to_numpy(zero_copy_only=False)
        then_k = before.drop_null().to_numpy()
        pairs, counts = np.unique(
            np.stack([then_k, clusters_n[known_n]]), axis=1, return_counts=True
        )
        for (then, now), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            moved[then, now] += count
    if log.active:
        keys = [name for name in ("path", "file", "row") if name in table.column_names]
        clusters_n = log.clusters(hashes(table, keys).view(np.int64), clusters_n)
    order = np.lexsort((ratios_n, clusters_n))
    names, starts = np.unique(clusters_n[order], return_index=True)
    for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
        cluster = clusters.setdefault(name, Cluster())
        cluster.size += len(rows)
        cluster.confident += int(confident_n[rows].sum())
        surest = [*cluster.surest, *_taken(table, rows[:NUM_EXAMPLES])]
        unsure = [*cluster.unsure, *_taken(table, rows[-NUM_EXAMPLES:])]
        cluster.surest = heapq.nsmallest(NUM_EXAMPLES, surest, key=lambda one: one.ratio)
        cluster.unsure = heapq.nlargest(NUM_EXAMPLES, unsure, key=lambda one: one.ratio)
    return judged


def _taken(table: pa.Table, rows: Any) -> list[Predicted]:
    """The images at some rows."""
    return [
        Predicted(
            row["cluster"],
            row["boundary_ratio"],
            row.get("path"),
            row.get("file"),
            row.get("row"),
            row.get("previous_cluster"),
        )
        for row in table.take(pa.array(rows)).to_pylist()
    ]


def _moves(directory: Folder, pairs: Counter[tuple[int, int]]) -> Moves:
    """What moved, apart from clusters that only have another number than before.

    Clusters then and now are matched one to one, so that as few images as possible have moved.
    """
    # Takes long to import, and is seldom needed.
    from scipy.optimize import linear_sum_assignment

    then, now = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    names = sorted({*then, *now})
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for (before, after), count in pairs.items():
        counts[place[before], place[after]] = count
    # Of equally good matches that which leaves the numbers as they are.
    counts += 0.5 * np.eye(len(names)) / len(names)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matched = {names[row]: names[column] for row, column in zip(rows, columns, strict=True)}
    matched = {before: matched[before] for before in then}
    moved = Counter({p: n for p, n in pairs.items() if matched[p[0]] != p[1]})
    examples: list[Predicted] = []
    for table in _parts(directory, []) if moved else ():
        if "previous_cluster" not in table.column_names:
            continue
        before = table.column("previous_cluster").to_pylist()
        after = table.column("cluster").to_pylist()
        rows_moved = [i for i, pair in enumerate(zip(before, after, strict=True)) if pair in moved]
        ratios = table.column("boundary_ratio").to_numpy()[rows_moved]
        best = np.argsort(ratios, kind="stable")[:MOST_MOVED]
        examples += _taken(table, np.array(rows_moved, np.int64)[best])
        examples = heapq.nsmallest(MOST_MOVED, examples, key=lambda one: one.ratio)
    return Moves(sum(pairs.values()), matched, moved, examples)


def _errors(directory: Folder, problems: list[str]) -> tuple[list[tuple[str, str]], int]:
    try:
        table = directory.read_table("errors.parquet")
    except UserError as error:
        problems.append(str(error))
        return [], 0
    if table is None:
        return [], 0
    found = []
    for row in table.slice(0, MOST_ERRORS).to_pylist():
        image = Predicted(0, 0.0, row.get("path"), row.get("file"), row.get("row"))
        found.append((image.name, printable(str(row.get("reason")))))
    return found, table.num_rows
