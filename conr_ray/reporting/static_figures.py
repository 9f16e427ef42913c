"""Figures for papers: SVG and PNG, drawn with matplotlib on white."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conr_ray.errors import StorageError, UserError
from conr_ray.metric_names import LABEL_FREE_SCORES, LABELLED_METRICS
from conr_ray.reporting import chart_style as style
from conr_ray.reporting.names import score, title
from conr_ray.reporting.run_data import RunData, curve, group_stage_ranges, group_start
from conr_ray.reporting.search_data import (
    SearchData,
    agreements,
    bands_of,
    grid_of,
    groups_of,
    stage_change,
)
from conr_ray.storage.files import Folder
from conr_ray.tracking import drawing

_WIDTH, _HEIGHT = 5.0, 3.2
_DOTS_PER_INCH = 200
_LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1)), (0, (2, 1)))
_MOST_CURVES = 30
_FRACTION = "boundary.initial_fraction"
# Text stays text in SVG, and ids are the same each time.
_STYLE: Any = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6e9",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "conr_ray",
    **drawing.LITERALLY,
}

Figures = dict[str, Figure]


def write_figures(figures: Figures, out: Folder) -> list[str]:
    """Write each figure as SVG and PNG into `out`; return the names of the files.

    Raises:
        UserError: there is nothing to draw, or the folder cannot be written.
    """
    if not figures:
        raise UserError("nothing to draw yet: wait until an epoch has been trained")
    names = []
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            # No date, so that equal figures are equal files.
            metadata = {"Date": None} if kind == "svg" else None
            with matplotlib.rc_context(_STYLE):
                data = drawing.written(
                    figure, kind, _DOTS_PER_INCH, bbox_inches="tight", metadata=metadata
                )
            try:
                out.write_bytes(f"{name}.{kind}", data)
            except StorageError as error:
                fault = str(error).rpartition(": ")[0]
                raise UserError(f"{fault}: give another folder") from None
            names.append(f"{name}.{kind}")
    return names


def search_figures(data: SearchData) -> Figures:
    """The available figures of a search by name, with those of its best trial."""
    drawn = _drawn(
        {
            "curves": lambda: _curves(data),
            "importances": lambda: _importances(data),
            "k1_k2": lambda: _k1_k2(data),
            "fraction": lambda: _fraction(data),
            "methods": lambda: _methods(data),
            "pareto": lambda: _pareto(data),
            "label_free": lambda: _label_free(data),
            "cost": lambda: _cost(data),
        }
    )
    best = data.best_run
    if best is not None:
        drawn |= {f"best_{name}": one for name, one in _snapshot_figures(best).items()}
    return drawn


def run_figures(data: RunData) -> Figures:
    """The available figures of a run, by name."""
    curves = _drawn(
        {
            "agreement": lambda: _run_curves(data, LABELLED_METRICS),
            "label_free": lambda: _run_curves(data, tuple(LABEL_FREE_SCORES)),
            "loss": lambda: _run_curves(data, ("loss",)),
        }
    )
    return curves | _snapshot_figures(data)


def _snapshot_figures(data: RunData) -> Figures:
    snapshot, positions = data.snapshot, data.positions
    if snapshot is None:
        return {}
    return _drawn(
        {
            "neighbors": lambda: drawing.neighbor_grid(snapshot),
            "map": lambda: (
                None if positions is None else drawing.embedding_map(snapshot, positions)
            ),
            "confusion": lambda: drawing.confusion_matrix(snapshot),
            "examples": lambda: drawing.cluster_examples(snapshot),
        }
    )


def _drawn(builds: dict[str, Callable[[], Figure | None]]) -> Figures:
    with matplotlib.rc_context(_STYLE):
        found = {name: build() for name, build in builds.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def _axes(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(axes: Axes, columns: int = 2) -> None:
    """Place the legend above the axes and their marks."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.05), ncols=columns, borderaxespad=0)


def _mark_stage(axes: Axes, start: int | None) -> None:
    if start:
        axes.axvline(start, color=style.GREY, linestyle="--", linewidth=0.9)
        axes.annotate(
            "group stage",
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 1),
            textcoords="offset points",
            fontsize=8,
        )


def _show_group_stage(axes: Axes, curves: Sequence[Any], start: int | None) -> None:
    if ranges := group_stage_ranges(curves, start):
        axes.set_xlim(*ranges[0])
        axes.set_ylim(*ranges[1])


def _curves(data: SearchData) -> Figure | None:
    metric = data.space.metric
    known = [(t, curve(t.rows, metric)) for t in data.trials]
    known = [(trial, points) for trial, points in known if points[0]]
    if not known:
        return None
    figure, axes = _axes()
    for place, (trial, points) in reversed(list(enumerate(known))):
        strong = place < _MOST_CURVES
        color = style.ORANGE if place == 0 else style.BLUE if strong else style.GREY
        label = f"trial {trial.number} (best)" if place == 0 else None
        width, alpha = (2.2, 1.0) if place == 0 else (0.9, 0.7) if strong else (0.6, 0.25)
        axes.plot(*points, color=color, linewidth=width, alpha=alpha, label=label)
    axes.set_xlabel("epochs trained")
    axes.set_ylabel(title(metric))
    start = stage_change(data)
    _mark_stage(axes, start)
    earliest = min((s for t, _ in known if (s := group_start(t.rows))), default=None)
    _show_group_stage(axes, [points for _, points in known[:_MOST_CURVES]], earliest)
    _legend(axes)
    return figure


def _importances(data: SearchData) -> Figure | None:
    shares = data.importances.get(data.space.metric)
    if not shares:
        return None
    figure, axes = _axes(0.8 + 0.32 * len(shares))
    names = list(shares)[::-1]
    bars = axes.barh([data.fields[n] for n in names], [shares[n] for n in names], color=style.BLUE)
    axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3)
    axes.set_xlabel(f"share of the variance of {title(data.space.metric)}")
    axes.set_xlim(0, max(shares.values()) * 1.15)
    axes.grid(axis="y", visible=False)
    return figure


def _k1_k2(data: SearchData) -> Figure | None:
    grid = grid_of(data, "neighborhood.k1", "neighborhood.k2", data.outcome)
    if grid is None:
        return None
    figure, axes = _axes(max(_HEIGHT, 0.9 + 0.32 * len(grid.rows)))
    means = np.array([[np.nan if m is None else m for m in row] for row in grid.means])
    image = axes.imshow(means, cmap="Blues", origin="lower", aspect="auto")
    axes.set_xticks(range(len(grid.columns)), [str(one) for one in grid.columns])
    axes.set_yticks(range(len(grid.rows)), [str(one) for one in grid.rows])
    axes.set_xlabel("k₂")
    axes.set_ylabel("k₁")
    axes.grid(visible=False)
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (row, column), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            color = "white" if mean > middle else "black"
            axes.text(column, row, score(float(mean)), ha="center", va="center", color=color)
    figure.colorbar(image, label=f"mean {title(data.outcome)}")
    return figure


def _fraction(data: SearchData) -> Figure | None:
    groups = groups_of(data, _FRACTION, data.outcome)
    if not groups:
        return None
    figure, axes = _axes()
    x = [group.value for group in groups for _ in group.outcomes]
    y = [value for group in groups for value in group.outcomes]
    axes.scatter(x, y, s=22, color=style.BLUE, alpha=0.6, linewidths=0, label="trials")
    repeated = [group for group in groups if group.deviation is not None]
    if repeated:
        axes.errorbar(
            [group.value for group in repeated],
            [group.mean for group in repeated],
            yerr=[group.deviation or 0.0 for group in repeated],
            color=style.ORANGE,
            marker="D",
            markersize=5,
            capsize=3,
            label="mean and standard deviation",
        )
        _legend(axes)
    axes.set_xlabel("initial fraction")
    axes.set_ylabel(title(data.outcome))
    return figure


def _methods(data: SearchData) -> Figure | None:
    bands = bands_of(data, data.outcome)
    if not bands:
        return None
    figure, axes = _axes()
    ends = []
    for place, band in enumerate(bands):
        color, means = style.VARIANTS[band.variant], np.array(band.means)
        spread = np.array(band.deviations)
        low, high = means - spread, means + spread
        axes.fill_between(band.epochs, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(
            band.epochs,
            means,
            color=color,
            linestyle=_LINE_STYLES[place],
            linewidth=1.8,
            label=f"{band.variant} {means[-1]:.3f} ± {spread[-1]:.3f}",
        )
        ends += [(band.epochs, low.tolist()), (band.epochs, high.tolist())]
    axes.set_xlabel("epochs trained")
    axes.set_ylabel(title(data.outcome))
    start = stage_change(data)
    _mark_stage(axes, start)
    _show_group_stage(axes, ends, start)
    _legend(axes, columns=1)
    return figure


def _pareto(data: SearchData) -> Figure | None:
    trials = [trial for trial in data.trials if trial.values is not None]
    chosen = sorted((t for t in trials if t.in_pareto_set), key=lambda t: t.values or ())
    if len(data.space.metrics) < 2 or not chosen:
        return None
    figure, axes = _axes()
    rest = [trial for trial in trials if not trial.in_pareto_set]
    other, front = (
        np.array([t.values[:2] for t in some if t.values]).reshape(-1, 2) for some in (rest, chosen)
    )
    axes.scatter(
        other[:, 0], other[:, 1], s=20, color=style.GREY, linewidths=0, label="other trials"
    )
    axes.plot(
        front[:, 0], front[:, 1], color=style.ORANGE, marker="D", linestyle=":", label="Pareto set"
    )
    axes.set_xlabel(title(data.space.metrics[0]))
    axes.set_ylabel(title(data.space.metrics[1]))
    _legend(axes)
    return figure


def _label_free(data: SearchData) -> Figure | None:
    found = agreements(data)
    if not found:
        return None
    one = found[0]
    figure, axes = _axes()
    x, y = ([t.figures[name] or 0.0 for t in one.trials] for name in (one.score, "acc"))
    axes.scatter(x, y, s=22, color=style.BLUE, alpha=0.7, linewidths=0)
    axes.set_xlabel(title(one.score))
    axes.set_ylabel("ACC")
    if one.rho is not None:
        axes.set_title(f"Spearman's ρ = {one.rho:.2f}", fontsize=10)  # noqa: RUF001
    return figure


def _cost(data: SearchData) -> Figure | None:
    cost = data.cost
    if not cost.unshared_epochs:
        return None
    figure, axes = _axes(1.4)
    values = [cost.unshared_epochs, cost.epochs]
    bars = axes.barh(["without trunks", "as trained"], values, color=[style.GREY, style.BLUE])
    axes.bar_label(bars, [f"{value:,}" for value in values], padding=3)
    axes.set_xlabel("epochs")
    axes.set_xlim(0, max(values) * 1.2)
    axes.grid(axis="y", visible=False)
    return figure


def _run_curves(data: RunData, names: Sequence[str]) -> Figure | None:
    known = [(name, curve(data.rows, name)) for name in names]
    known = [(name, points) for name, points in known if points[0]]
    if not known:
        return None
    figure, axes = _axes()
    for place, (name, points) in enumerate(known):
        color = style.LINES[place % len(style.LINES)]
        line = _LINE_STYLES[place % len(_LINE_STYLES)]
        axes.plot(*points, color=color, linestyle=line, label=title(name))
    axes.set_xlabel("epochs trained")
    if len(known) == 1:
        axes.set_ylabel(title(known[0][0]))
    else:
        _legend(axes)
    _mark_stage(axes, group_start(data.rows))
    return figure
