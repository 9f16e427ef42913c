"""The figures of a run, drawn from its snapshot with matplotlib: for W&B and for papers.

Each function returns a figure, or None if the snapshot lacks the data. Names of classes are drawn
as they are: nothing in them is taken for mathematics.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from conr_ray.engine.snapshot import Snapshot

# Orange-red and blue-green, distinguishable with red-green colour blindness.
WRONG, HARD = "#d55e00", "#009e73"
_CELL_PIXELS, _CELL_INCHES = 64, 0.44
_MOST_NUMBERED = 20
# Of a label that needs no more room than an axis has.
_SHORT_LABEL, _INCHES_PER_LETTER = 8, 0.1
# Where $ is no sign of mathematics.
LITERALLY: Any = {"text.parse_math": False}


@dataclass(frozen=True)
class _Cell:
    """A picture in a grid; rows and columns may be fractional."""

    sample_id: int
    row: float
    column: float
    frame: str | None = None


@matplotlib.rc_context(LITERALLY)
def neighbor_grid(snapshot: Snapshot) -> Figure | None:
    """Query images, each with its 10 Euclidean and its 10 contextual neighbours.

    Wrong ones are framed red, hard positives (right, contextual list only) green.
    """
    neighbors: list[dict[str, Any]] = snapshot.neighbors.to_pylist()
    if not neighbors:
        return None
    queries = list(dict.fromkeys(row["query_id"] for row in neighbors))
    first_row = {query: 2.3 * place for place, query in enumerate(queries)}
    cells = [_Cell(query, first_row[query] + 0.5, 0) for query in queries]
    for near in neighbors:
        line = 0 if near["kind"] == "euclidean" else 1
        frame = WRONG if near["right"] is False else HARD if near["hard"] else None
        cells.append(
            _Cell(near["sample_id"], first_row[near["query_id"]] + line, near["rank"] + 0.3, frame)
        )
    figure, axes = _grid(snapshot, cells)
    for row in first_row.values():
        for line, name in enumerate(("Euclidean", "contextual")):
            axes.text(-0.2, row + line + 0.5, name, ha="right", va="center", fontsize=8)
    if snapshot.neighbors["right"].null_count < len(neighbors):
        marks = [
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=color, linewidth=2, label=label)
            for color, label in ((WRONG, "wrong"), (HARD, "right, contextual list only"))
        ]
        figure.legend(handles=marks, loc="lower center", ncols=2, frameon=False, fontsize=8)
    return figure


@matplotlib.rc_context(LITERALLY)
def embedding_map(snapshot: Snapshot, positions_m2: npt.NDArray[np.float32]) -> Figure:
    """Samples on a 2-D map, coloured by cluster, small near a boundary."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    clusters = snapshot.samples["cluster"].to_numpy()
    ratios = snapshot.samples["boundary_ratio"].to_numpy()
    sizes = 2 + 22 * np.clip(1 - ratios, 0, 1) ** 2
    names = np.unique(clusters)
    colors = cluster_colors(len(names))
    handles = []
    for color, name in zip(colors, names, strict=True):
        mine = clusters == name
        x, y = positions_m2[mine].T
        axes.scatter(x, y, s=sizes[mine], color=color, linewidths=0, alpha=0.8, rasterized=True)
        handles.append(Line2D([], [], marker="o", ls="", color=color, label=_named(snapshot, name)))
    if len(names) <= _MOST_NUMBERED:
        axes.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            title="cluster" if snapshot.confusion is None else "cluster: class",
        )
    axes.set_title(f"{len(clusters):,} samples; small ones are near a boundary", fontsize=10)
    axes.set_axis_off()
    axes.set_aspect("equal", "datalim")
    return figure


@matplotlib.rc_context(LITERALLY)
def confusion_matrix(snapshot: Snapshot) -> Figure | None:
    """Share of each class in each cluster; clusters are ordered by the class they match."""
    if snapshot.confusion is None:
        return None
    classes, clusters, counts_rc = confusion_counts(snapshot.confusion)
    shares_rc = counts_rc / np.maximum(counts_rc.sum(1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.4 * len(classes))
    names = [snapshot.class_label(label) for label in classes]
    more = _INCHES_PER_LETTER * max(0, max(map(len, names)) - _SHORT_LABEL)
    figure = Figure(figsize=(side + 1 + more, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares_rc, cmap="Blues", vmin=0, vmax=1)
    right = sum(row["count"] for row in snapshot.confusion.to_pylist() if row["matched"])
    axes.set_title(f"matched: {right / counts_rc.sum():.1%}", fontsize=10)
    axes.set_xlabel("cluster")
    axes.set_ylabel("class")
    few = len(classes) <= _MOST_NUMBERED
    if few:
        axes.set_yticks(range(len(classes)), names)
        axes.set_xticks(range(len(clusters)), [str(cluster) for cluster in clusters])
        for (row, column), share in np.ndenumerate(shares_rc):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                text = f"{share:.0%}"[:-1]
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    return figure


@matplotlib.rc_context(LITERALLY)
def cluster_examples(snapshot: Snapshot) -> Figure | None:
    """Images of each cluster: nearest to the centre, and nearest to another cluster."""
    examples: list[dict[str, Any]] = snapshot.examples.to_pylist()
    if not examples:
        return None
    clusters = list(dict.fromkeys(row["cluster"] for row in examples))
    rows = {cluster: 1.15 * place for place, cluster in enumerate(clusters)}
    starts = {"typical": 0.0, "boundary": 5.5}
    cells = [
        _Cell(e["sample_id"], rows[e["cluster"]], starts[e["kind"]] + e["rank"] - 1)
        for e in examples
    ]
    figure, axes = _grid(snapshot, cells)
    for cluster, row in rows.items():
        name = _named(snapshot, cluster)
        axes.text(-0.2, row + 0.5, name, ha="right", va="center", fontsize=8)
    title = "cluster" if snapshot.confusion is None else "cluster: class"
    axes.text(-0.2, -0.2, title, ha="right", va="bottom", fontsize=8)
    for kind, name in (("typical", "nearest to the centre"), ("boundary", "at the boundary")):
        axes.text(starts[kind] + 2.5, -0.2, name, ha="center", va="bottom", fontsize=8)
    return figure


def written(figure: Figure, kind: str, dpi: float, **options: Any) -> bytes:
    """A figure as the bytes of a file; what its font lacks is a box in PNG, and text in SVG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(buffer, format=kind, dpi=dpi, **options)
    return buffer.getvalue()


def confusion_counts(
    table: pa.Table,
) -> tuple[list[int], list[int], npt.NDArray[np.int64]]:
    """Classes (r), clusters (c) and counts (r, c) of a snapshot's confusion table."""
    classes = list(dict.fromkeys(table["label"].to_pylist()))
    clusters = list(dict.fromkeys(table["cluster"].to_pylist()))
    return classes, clusters, table["count"].to_numpy().reshape(len(classes), len(clusters))


def cluster_colors(count: int) -> list[str]:
    """One colour per cluster."""
    few = count <= 10
    found = colormaps["tab10" if few else "turbo"](
        range(count) if few else np.linspace(0, 1, count)
    )
    return [to_hex(color) for color in found]


def _named(snapshot: Snapshot, cluster: int) -> str:
    """A cluster's number, and the class that it matches, if any."""
    if snapshot.confusion is not None:
        for row in snapshot.confusion.to_pylist():
            if row["matched"] and row["cluster"] == cluster:
                return f"{cluster}: {snapshot.class_label(row['label'])}"
    return str(cluster)


def _grid(snapshot: Snapshot, cells: list[_Cell]) -> tuple[Figure, Axes]:
    """Pictures on one canvas; one axis unit is one picture."""
    width = max(cell.column for cell in cells) + 1
    height = max(cell.row for cell in cells) + 1
    scale = _CELL_PIXELS
    canvas = Image.new("RGBA", (round(width * scale), round(height * scale)), (0, 0, 0, 0))
    pictures = dict(
        zip(*(snapshot.pictures[name].to_pylist() for name in ("sample_id", "png")), strict=True)
    )
    figure = Figure(figsize=(_CELL_INCHES * (width + 4), _CELL_INCHES * (height + 2)))
    # Room for names on the left, and for a line of text above and below.
    axes = figure.add_axes(
        (3.5 / (width + 4), 1 / (height + 2), width / (width + 4), height / (height + 2))
    )
    for cell in cells:
        picture = Image.open(io.BytesIO(pictures[cell.sample_id])).convert("RGBA")
        side = round(0.9 * scale)
        ratio = side / max(picture.size)
        small = max(picture.size) < side
        width_px, height_px = (max(1, round(ratio * length)) for length in picture.size)
        picture = picture.resize((width_px, height_px), Image.Resampling.NEAREST if small else None)
        place = round((cell.column + 0.05) * scale), round((cell.row + 0.05) * scale)
        canvas.paste(picture, place)
        if cell.frame is not None:
            corner = cell.column + 0.03, cell.row + 0.03
            frame = Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=cell.frame, linewidth=2)
            axes.add_patch(frame)
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes
