"""Pictures of a run: neighbours of some images, and examples of each cluster."""

from __future__ import annotations

from collections import Counter
from typing import Any

from conr_ray.engine.snapshot import Snapshot
from conr_ray.reporting.blocks import Picture, PictureGroup, PictureRow, Pictures

_KINDS = {"euclidean": "Euclidean", "contextual": "contextual"}
_TOLD = {
    "right": "of the same class",
    "wrong": "of another class",
    "hard": "of the same class, not among the Euclidean ones",
    "": "of unknown class",
}


def neighbor_pictures(snapshot: Snapshot) -> Pictures | None:
    """Query images, each with its Euclidean and its contextual neighbours."""
    rows = snapshot.neighbors.to_pylist()
    if not rows:
        return None
    pngs, labels = _pngs(snapshot), _labels(snapshot)
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
                known = labels.get(row["sample_id"]) is not None
                alt = f"{text} neighbour {row['rank']}"
                if known:
                    name = snapshot.class_name(labels[row["sample_id"]])
                    alt += f": class {name}, {_TOLD[mark]}"
                pictures.append(Picture(pngs.get(row["sample_id"], b""), alt, mark))
            lists.append(PictureRow(text, pictures))
        known = labels.get(query) is not None
        name = f"class {snapshot.class_name(labels[query])}" if known else f"sample {query}"
        head = Picture(pngs.get(query, b""), f"query image, {name}")
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


def example_pictures(snapshot: Snapshot) -> Pictures | None:
    """Typical and boundary images of each cluster."""
    rows = snapshot.examples.to_pylist()
    if not rows:
        return None
    pngs, labels = _pngs(snapshot), _labels(snapshot)
    sizes = Counter(snapshot.samples["cluster"].to_pylist())
    groups = []
    for cluster in dict.fromkeys(row["cluster"] for row in rows):
        lists = []
        for kind in ("typical", "boundary"):
            pictures = []
            for row in rows:
                if (row["cluster"], row["kind"]) == (cluster, kind):
                    alt = f"{kind} image {row['rank']} of cluster {cluster}"
                    label = labels.get(row["sample_id"])
                    alt += "" if label is None else f", class {snapshot.class_name(label)}"
                    pictures.append(Picture(pngs.get(row["sample_id"], b""), alt))
            if pictures:
                lists.append(PictureRow(kind, pictures))
        groups.append(PictureGroup(f"cluster {cluster} ({sizes[cluster]:,})", lists))
    caption = (
        f"Images of {len(groups)} clusters (number of samples in brackets): typical ones, nearest "
        "to the centre, and ones at the boundary to another cluster."
    )
    return Pictures("Examples of clusters", caption, groups)


def _mark(row: dict[str, Any]) -> str:
    if row["right"] is None:
        return ""
    if row["hard"]:
        return "hard"
    return "right" if row["right"] else "wrong"


def _pngs(snapshot: Snapshot) -> dict[int, bytes]:
    pictures = snapshot.pictures.to_pydict()
    return dict(zip(pictures["sample_id"], pictures["png"], strict=True))


def _labels(snapshot: Snapshot) -> dict[int, int | None]:
    samples = snapshot.samples.select(["sample_id", "label"]).to_pydict()
    return dict(zip(samples["sample_id"], samples["label"], strict=True))
