"""The figures of docs/method.md, from a real run.

    python benchmarks/method_figures.py

Trains the preset digits in this process, a minute and a half, and writes
docs/figures/contextual.png, of the network when the group stage begins and of batches as large as
those of training, and docs/figures/boundary.png, of the network at the end.

Shapes: n samples in batches of s, k neighbours.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from conr_ray.config import load_preset
from conr_ray.config.sections import NeighborhoodConfig
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import Placement, TrainedRun
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors
from conr_ray.tracking.drawing import HARD, WRONG

_DOTS_PER_INCH = 130
# Space on the left for names, in widths of a picture.
_NAMES = 4.2
SHARED = "#0072b2"


@dataclass(frozen=True)
class Lists:
    """Neighbours of each sample in its batch, itself first.

    Attributes:
        samples: (n,) those in batches.
        nearest: (n, k).
        contextual: (n, k).
        context: (n, k1), the k1 nearest.
        classes: of all samples.
    """

    samples: Tensor
    nearest: Tensor
    contextual: Tensor
    context: Tensor
    classes: Tensor

    def right(self, found_nk: Tensor) -> Tensor:
        """Whether the others of each list are of the sample's own class, (n, k - 1) bool."""
        return self.classes[found_nk[:, 1:]] == self.classes[self.samples][:, None]

    @property
    def query(self) -> int:
        """Row of the sample whose contextual list has most more right ones than its nearest."""
        gain_n = self.right(self.contextual).sum(1) - self.right(self.nearest).sum(1)
        return int(gain_n.argmax())

    def context_of(self, sample: int) -> list[int]:
        """The context of a sample."""
        return self.context[int((self.samples == sample).nonzero())].tolist()


def batch_lists(embeddings_nd: Tensor, classes: Tensor, near: NeighborhoodConfig, s: int) -> Lists:
    """The neighbours of all samples in batches of s, drawn at random; a rest is left out."""
    order = torch.randperm(len(embeddings_nd), generator=torch.Generator().manual_seed(0))
    batches = [part for part in torch.split(order, s) if len(part) == s]
    found: list[list[Tensor]] = [[], [], []]
    for rows_s in batches:
        part_sd = embeddings_nd[rows_s]
        lists = (
            euclidean_neighbors(part_sd, k=near.k),
            contextual_neighbors(part_sd, k1=near.k1, k2=near.k2, k=near.k),
            euclidean_neighbors(part_sd, k=near.k1),
        )
        for one, (_, rows_sk) in zip(found, lists, strict=True):
            one.append(rows_s[rows_sk])
    nearest, contextual, context = (torch.cat(parts) for parts in found)
    return Lists(torch.cat(batches), nearest, contextual, context, classes)


def put(axes: Axes, image: NDArray[np.uint8], column: float, row: float, frame: str | None) -> None:
    """Draw a picture of one by one with a frame, if it has one."""
    box = (column + 0.06, column + 0.94, row + 0.94, row + 0.06)
    axes.imshow(image, cmap="gray_r", extent=box, interpolation="nearest", vmin=0, vmax=255)
    x, y = (box[0], box[1], box[1], box[0], box[0]), (box[2], box[2], box[3], box[3], box[2])
    axes.plot(x, y, color=frame or "#c8d0d8", linewidth=2.2 if frame else 0.6)


def canvas(columns: float, rows: float) -> tuple[Figure, Axes]:
    """A figure whose unit is a picture."""
    figure = Figure(figsize=(0.5 * columns, 0.5 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    return figure, axes


def frame_axes(axes: Axes, columns: float, rows: float) -> None:
    """Show all of the canvas, pictures as squares."""
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal")


def contextual_figure(images_n: NDArray[np.uint8], lists: Lists) -> Figure:
    """The two lists of a query, and the contexts that explain them."""
    row = lists.query
    query, rows = int(lists.samples[row]), 9.6
    figure, axes = canvas(_NAMES + 0.2 + lists.contextual.shape[1], rows)

    def line(top: float, name: str, samples: Sequence[int], frames: Sequence[str | None]) -> None:
        axes.text(_NAMES - 0.2, top + 0.5, name, ha="right", va="center", fontsize=10)
        for place, (sample, frame) in enumerate(zip(samples, frames, strict=True)):
            put(axes, images_n[sample], _NAMES + place, top, frame)

    nearest, contextual = lists.nearest[row].tolist(), lists.contextual[row].tolist()
    right = {one: bool(lists.classes[one] == lists.classes[query]) for one in nearest + contextual}
    shares = [float(lists.right(one).double().mean()) for one in (lists.nearest, lists.contextual)]
    axes.set_title(
        f"Of the same digit, {len(lists.samples):,} in batches: {shares[0]:.1%} of the nearest, "
        f"{shares[1]:.1%} of the contextual neighbours",
        fontsize=10,
    )
    put(axes, images_n[query], 0.2, 0.5, None)
    for top, (name, near) in enumerate((("nearest", nearest), ("contextual", contextual))):
        new = [one not in nearest for one in near]
        marks = [
            (HARD if fresh else None) if right[one] else WRONG
            for one, fresh in zip(near, new, strict=True)
        ]
        line(top, name, near, marks)
    note = "red: of another digit. green: of the same one, and not among the nearest."
    axes.text(_NAMES, 2.4, note, fontsize=9, va="center")

    own, next_one = lists.context_of(query), nearest[1]
    averaged = {*own, *lists.context_of(next_one)}

    def shared(sample: int) -> int:
        return len(averaged & set(lists.context_of(sample)))

    text = "Contexts: ten nearest of each. Blue: also in one of the first two, which are averaged."
    axes.text(0.2, 3.4, text, fontsize=10, va="center")
    chosen = [("the query's", query), ("its nearest one's", next_one)]
    wrong = [one for one in nearest if not right[one]]
    fresh = [one for one in contextual if one not in nearest and right[one]]
    for name, among in (("a wrong near one's", wrong), ("a right one's, farther away", fresh)):
        chosen += [(f"{name}: {shared(one)} shared", one) for one in among[:1]]
    for place, (name, sample) in enumerate(chosen):
        above, context = 4 + 1.4 * place, lists.context_of(sample)
        axes.text(0.2, above - 0.02, name, ha="left", va="center", fontsize=9)
        put(axes, images_n[sample], 0.2, above + 0.2, None)
        for column, one in enumerate(context):
            frame = SHARED if place > 1 and one in averaged else None
            put(axes, images_n[one], _NAMES + column, above + 0.2, frame)
    frame_axes(axes, _NAMES + 0.2 + lists.contextual.shape[1], rows)
    return figure


def boundary_figure(images_n: NDArray[np.uint8], ratios_n: Tensor) -> Figure:
    """Digits evenly spaced by rank of their boundary ratio, with the ratio below each."""
    order, count = ratios_n.argsort(), 14
    figure, axes = canvas(count, 1.8)
    for column in range(count):
        sample = int(order[round(column * (len(order) - 1) / (count - 1))])
        put(axes, images_n[sample], column, 0, None)
        text = f"{float(ratios_n[sample]):.2f}"
        axes.text(column + 0.5, 1.3, text, ha="center", va="center", fontsize=10)
    frame_axes(axes, count, 1.8)
    return figure


def placed(data: DataSet, fields: dict[str, Any]) -> Placement:
    """All samples by a run of the preset digits with these fields, trained here."""
    config = load_preset("digits", fields)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(folder)
        directory.claim(config, resume=False)
        train(config, data, directory, Observers(), torch.device("cpu"))
        return TrainedRun.load(directory).place(np.array(data.rows))


def save(figure: Figure, file: Path) -> None:
    """Write a figure with little around it, and say where."""
    figure.savefig(
        file, dpi=_DOTS_PER_INCH, facecolor="white", bbox_inches="tight", pad_inches=0.08
    )
    print(file, flush=True)


def main() -> None:
    """Train, and draw both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_preset("digits")
    data = open_data(config.data)
    assert data.labels is not None
    classes, images_n = torch.as_tensor(np.array(data.labels)), np.array(data.rows)[:, 0]
    # The learning rate then ends sooner than that of a run that goes on.
    until = {"schedule.epochs": config.schedule.group_start, "schedule.group_start": "never"}
    begun = placed(data, until).embeddings_nd
    lists = batch_lists(begun, classes, config.neighborhood, config.optim.batch_size)
    args.out.mkdir(parents=True, exist_ok=True)
    save(contextual_figure(images_n, lists), args.out / "contextual.png")
    ratios_n = placed(data, {}).boundary_ratios_n
    save(boundary_figure(images_n, ratios_n), args.out / "boundary.png")


if __name__ == "__main__":
    main()
