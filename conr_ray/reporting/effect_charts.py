"""Charts of a search's effects: of k1 and k2, the fraction, the method, and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from conr_ray.reporting import chart_style as style
from conr_ray.reporting.blocks import MOST_ROWS, Chart, Table, View
from conr_ray.reporting.names import counted, number, ordered, score, title
from conr_ray.reporting.run_data import group_stage_ranges, metric_names
from conr_ray.reporting.search_data import (
    Band,
    SearchData,
    agreements,
    bands_of,
    grid_of,
    groups_of,
    stage_change,
)

_K1, _K2, _FRACTION = "neighborhood.k1", "neighborhood.k2", "boundary.initial_fraction"


def neighbor_grid_map(data: SearchData) -> Chart | None:
    """The outcome over (k1, k2)."""
    grid = grid_of(data, _K1, _K2, data.outcome)
    if grid is None:
        return None
    known = [mean for line in grid.means for mean in line if mean is not None]
    small = len(known) <= 150
    texts = [[score(m) if small and m is not None else "" for m in line] for line in grid.means]
    hover = [
        [
            f"k1 = {k1}, k2 = {k2}<br>{title(data.outcome)} {score(mean)}, {count} trials"
            for k2, mean, count in zip(grid.columns, means, counts, strict=True)
        ]
        for k1, means, counts in zip(grid.rows, grid.means, grid.counts, strict=True)
    ]
    found = style.figure(
        style.cells(grid.means, texts, hover, low=min(known), high=max(known)), x="k2", y="k1"
    )
    found.update_xaxes(
        tickvals=list(range(len(grid.columns))),
        ticktext=[str(one) for one in grid.columns],
        showgrid=False,
    )
    found.update_yaxes(
        tickvals=list(range(len(grid.rows))),
        ticktext=[str(one) for one in grid.rows],
        showgrid=False,
    )
    best = data.best_of(known)
    row, column = next(
        (r, c) for r, line in enumerate(grid.means) for c, m in enumerate(line) if m == best
    )
    caption = (
        f"Mean {title(data.outcome)} of trials by k1 and k2, bluer if larger; trials stopped early "
        f"count with their last value. The best cell is "
        f"k1 = {grid.rows[row]}, k2 = {grid.columns[column]} with {score(best)} over "
        f"{counted(grid.counts[row][column], 'trial')}. Empty cells were not tried."
    )
    rows = [
        (str(k1), str(k2), mean, count)
        for k1, means, counts in zip(grid.rows, grid.means, grid.counts, strict=True)
        for k2, mean, count in zip(grid.columns, means, counts, strict=True)
        if mean is not None
    ]
    table = Table.of("k1 and k2", ("k1", "k2", title(data.outcome), "trials"), rows)
    height = max(320, min(640, 90 + 34 * len(grid.rows)))
    view = View("", found, caption, table if len(rows) <= MOST_ROWS else None)
    return Chart("Over k1 and k2", [view], height=height)


def fraction_effect(data: SearchData) -> Chart | None:
    """The outcome against the initial fraction."""
    groups = groups_of(data, _FRACTION, data.outcome)
    if not groups:
        return None
    points = [
        (trial.point[_FRACTION], trial.figures[data.outcome], trial.number)
        for trial in data.complete
        if trial.figures.get(data.outcome) is not None
    ]
    repeated = [group for group in groups if group.deviation is not None]
    traces = [
        go.Scatter(
            x=style.floats([x for x, _, _ in points]),
            y=style.floats([y for _, y, _ in points]),
            customdata=np.array([n for _, _, n in points], np.int32),
            mode="markers",
            marker={"color": style.BLUE, "size": 8, "opacity": 0.55},
            name="trials",
            hovertemplate="trial %{customdata}<br>fraction %{x:.3g}: %{y:.4f}<extra></extra>",
        )
    ]
    if repeated:
        traces.append(
            go.Scatter(
                x=[group.value for group in repeated],
                y=[group.mean for group in repeated],
                error_y={"array": [group.deviation for group in repeated], "thickness": 1.5},
                mode="lines+markers",
                line={"color": style.ORANGE, "width": 2},
                marker={"size": 9, "symbol": "diamond"},
                name="mean and standard deviation",
                hovertemplate="%{x:.3g}: mean %{y:.4f}<extra></extra>",
            )
        )
    found = style.figure(traces, x="initial fraction", y=title(data.outcome), legend=True)
    best_mean = data.best_of(group.mean for group in groups)
    best = next(group for group in groups if group.mean == best_mean)
    spread = f" ± {best.deviation:.3f}" if best.deviation is not None else ""
    caption = (
        f"{title(data.outcome)} of {counted(len(points), 'complete trial')} against the share of "
        f"samples kept when the group stage begins. The best mean is {best.mean:.3f}{spread} at "
        f"{number(best.value)}, of {counted(len(best.outcomes), 'trial')}."
    )
    rows = [(g.value, g.mean, g.deviation, len(g.outcomes)) for g in groups]
    columns = ("initial fraction", f"mean {title(data.outcome)}", "deviation", "trials")
    table = Table.of("By initial fraction", columns, rows)
    return Chart("Over the initial fraction", [View("", found, caption, table)])


def label_free_agreement(data: SearchData) -> Chart | None:
    """Label-free scores against ACC."""
    views = []
    for one in agreements(data):
        points = go.Scatter(
            x=style.floats([t.figures[one.score] for t in one.trials]),
            y=style.floats([t.figures["acc"] for t in one.trials]),
            customdata=np.array([t.number for t in one.trials], np.int32),
            mode="markers",
            marker={"color": style.BLUE, "size": 9, "opacity": 0.7},
            hovertemplate=(
                f"trial %{{customdata}}<br>{title(one.score)} %{{x:.4f}}<br>ACC %{{y:.4f}}"
                "<extra></extra>"
            ),
        )
        found = style.figure([points], x=title(one.score), y="ACC")
        told = "is not computed for so few trials" if one.rho is None else f"is {one.rho:.2f}"
        caption = (
            f"{title(one.score).capitalize()}, which sees no labels, against ACC in "
            f"{counted(len(one.trials), 'trial')}. Spearman's rank correlation {told}; "
            "at 1 the score ranks the trials exactly as ACC does."
        )
        views.append(View(title(one.score), found, caption))
    return Chart("", views, choice="score") if views else None


def variant_bands(data: SearchData) -> Chart | None:
    """Mean and deviation over the trials of each method."""
    if not {"schedule.group_start", "neighborhood.kind"} & set(data.space.search):
        return None
    names = ordered(set().union(*(metric_names(trial.rows) for trial in data.complete), set()))
    names = list(dict.fromkeys([data.outcome, *names]))
    views = [view for name in names if (view := _bands_view(data, name))]
    return Chart("", views, choice="metric", height=440, close=True) if views else None


def _bands_view(data: SearchData, metric: str) -> View | None:
    bands = bands_of(data, metric)
    if not bands:
        return None
    fills, lines = zip(*map(_band_traces, bands), strict=True)
    found = style.figure([*fills, *lines], x="epochs trained", y=title(metric), legend=True)
    style.mark_epoch(found, stage_change(data))
    last = ", ".join(
        f"{band.variant} {band.means[-1]:.3f} ± {band.deviations[-1]:.3f}" for band in bands
    )
    caption = (
        f"Mean {title(metric)} over epochs, with a band of one standard deviation over trials "
        f"(their number in brackets). At the end: {last}."
    )
    columns = ("method", "trials", f"mean {title(metric)}", "deviation")
    rows = [(b.variant, b.num_trials, b.means[-1], b.deviations[-1]) for b in bands]
    curves = [
        (b.epochs, [m + sign * d for m, d in zip(b.means, b.deviations, strict=True)])
        for b in bands
        for sign in (1, -1)
    ]
    ranges = group_stage_ranges(curves, stage_change(data))
    table = Table.of("After the last epoch", columns, rows)
    return View(title(metric), found, caption, table, ranges)


def _band_traces(band: Band) -> tuple[Any, Any]:
    """The band of a method and the line of its mean."""
    color = style.VARIANTS[band.variant]
    upper, lower = (
        [m + sign * d for m, d in zip(band.means, band.deviations, strict=True)] for sign in (1, -1)
    )
    fill = go.Scatter(
        x=style.floats([*band.epochs, *band.epochs[::-1]]),
        y=style.floats([*upper, *lower[::-1]]),
        fill="toself",
        fillcolor=color,
        opacity=0.16,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    dash = style.DASHES[list(style.VARIANTS).index(band.variant)]
    line = go.Scatter(
        x=style.floats(band.epochs),
        y=style.floats(band.means),
        mode="lines",
        line={"color": color, "width": 2.5, "dash": dash},
        name=f"{band.variant} ({band.num_trials})",
        hovertemplate=f"{band.variant}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
    )
    return fill, line
