"""Pictures of a run: neighbours of some images, and examples of each cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from conr_ray.edits.log import called
from conr_ray.engine.snapshot import Snapshot
from conr_ray.reporting.blocks import (
    MOST_ROWS,
    Block,
    Picture,
    PictureGroup,
    PictureRow,
    Pictures,
    Table,
)
from conr_ray.reporting.sample_names import SampleNames

_KINDS = {"euclidean": "Euclidean", "contextual": "contextual"}
_TOLD = {
    "right": "of the same class",
    "wrong": "of another class",
    "hard": "of the same class, not among the Euclidean ones",
    "": "of unknown class",
}


def neighbor_pictures(snapshot: Snapshot, names: SampleNames) -> Pictures | None:
    """Query images, each with its Euclidean and its contextual neighbours."""
    rows = snapshot.neighbors.to_pylist()
    files, labels = _files(snapshot), _labels(snapshot)
    if not rows or not files:
        return None
    groups, marks = [], Counter[tuple[str, str]]()
    for query in dict.fromkeys(row["query_id"] for row in rows):
        lists = []
        for kind, text in _KINDS.items():
            pictures = []
            for row in rows:
                if (row["query_id"], row["kind"]) != (query, kind):
                    continue
                mark = _mark(row)
                marks[kind, "right" if mark == "hard" else mark] += 1
                marks[kind, "hard"] += mark == "hard"
                sample = row["sample_id"]
                alt = f"{text} neighbour {row['rank']}: {names.name(sample)}"
                if labels.get(sample) is not None:
                    alt += f", class {snapshot.class_name(labels[sample])}, {_TOLD[mark]}"
                data = files.get(sample, b"")
                pictures.append(Picture(data, alt, mark, names.file(sample)))
            lists.append(PictureRow(text, pictures))
        name = names.name(query)
        if labels.get(query) is not None:
            name += f", class {snapshot.class_name(labels[query])}"
        head = Picture(files.get(query, b""), f"query image, {name}", "", names.file(query))
        groups.append(PictureGroup(name, lists, head))
    labelled = any(row["right"] is not None for row in rows)
    caption = (
        f"{len(groups)} images, each with its nearest neighbours by plain Euclidean distance and "
        "by contextual similarity."
    )
    if labelled:
        shares = []
        for kind, text in _KINDS.items():
            right, wrong = marks[kind, "right"], marks[kind, "wrong"]
            shares.append(f"{right} of {right + wrong} {text} neighbours")
        caption += (
            f" {shares[0]} and {shares[1]} have the image's class; {marks['contextual', 'hard']} "
            "of these are hard positives, found only in the contextual list."
        )
    return Pictures("Neighbours", caption, groups, marked=labelled)


def example_pictures(
    snapshot: Snapshot, names: SampleNames, cluster_names: Mapping[int, str] | None = None
) -> Pictures | None:
    """Typical and boundary images of each cluster, which may have names."""
    rows = snapshot.examples.to_pylist()
    files, labels = _files(snapshot), _labels(snapshot)
    if not rows or not files:
        return None
    sizes = Counter(snapshot.samples["cluster"].to_pylist())
    groups = []
    for cluster in dict.fromkeys(row["cluster"] for row in rows):
        lists = []
        for kind in ("typical", "boundary"):
            pictures = []
            for row in rows:
                if (row["cluster"], row["kind"]) == (cluster, kind):
                    sample = row["sample_id"]
                    alt = f"{kind} image {row['rank']} of cluster {cluster}: {names.name(sample)}"
                    label = labels.get(sample)
                    alt += "" if label is None else f", class {snapshot.class_name(label)}"
                    data = files.get(sample, b"")
                    pictures.append(Picture(data, alt, "", names.file(sample)))
            if pictures:
                lists.append(PictureRow(kind, pictures))
        told = called(cluster, cluster_names or {})
        groups.append(PictureGroup(f"{told} ({sizes[cluster]:,})", lists))
    caption = (
        f"Images of {len(groups)} clusters (number of samples in brackets): typical ones, nearest "
        "to the centre, and ones at the boundary to another cluster."
    )
    return Pictures("Examples of clusters", caption, groups)


def cluster_blocks(
    snapshot: Snapshot, names: SampleNames, cluster_names: Mapping[int, str] | None = None
) -> list[Block]:
    """The examples of each cluster, and a table of the clusters that names the surest samples."""
    named = cluster_names or {}
    pictures = example_pictures(snapshot, names, named)
    found: list[Block] = [] if pictures is None else [pictures]
    sizes = Counter(snapshot.samples["cluster"].to_pylist())
    total = sum(sizes.values())
    kinds: dict[tuple[int, str], str] = {}
    for row in snapshot.examples.to_pylist():
        if row["rank"] == 1:
            kinds[row["cluster"], row["kind"]] = names.name(row["sample_id"])
    rows = [
        (
            f"{cluster}: {called(cluster, named)}" if cluster in named else str(cluster),
            size,
            f"{size / total:.1%}",
            *(kinds.get((cluster, kind), "") for kind in ("typical", "boundary")),
        )
        for cluster, size in sizes.most_common(MOST_ROWS)
    ]
    columns = ("cluster", "samples", "share", "the surest", "the least sure")
    caption = f"Clusters of {total:,} samples, the largest first"
    if len(sizes) > MOST_ROWS:
        caption += f"; {len(sizes) - MOST_ROWS} more are left out"
    return [*found, Table.of(caption, columns, rows)]


def _mark(row: dict[str, Any]) -> str:
    if row["right"] is None:
        return ""
    if row["hard"]:
        return "hard"
    return "right" if row["right"] else "wrong"


def _files(snapshot: Snapshot) -> dict[int, bytes]:
    pictures = snapshot.pictures.to_pydict()
    return dict(zip(pictures["sample_id"], pictures["png"], strict=True))


def _labels(snapshot: Snapshot) -> dict[int, int | None]:
    samples = snapshot.samples.select(["sample_id", "label"]).to_pydict()
    return dict(zip(samples["sample_id"], samples["label"], strict=True))
