"""The charts of a run: curves, and figures of its snapshot."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from conr_ray.engine.snapshot import Snapshot
from conr_ray.metric_names import LABEL_FREE_SCORES, LABELLED_METRICS
from conr_ray.reporting import chart_style as style
from conr_ray.reporting.blocks import MOST_ROWS, Chart, Table, View
from conr_ray.reporting.map_cache import Positions
from conr_ray.reporting.names import ordered, precise, title
from conr_ray.reporting.run_data import (
    RunData,
    curve,
    group_stage_ranges,
    group_start,
    metric_names,
)
from conr_ray.reporting.sample_names import SampleNames

_TIMES = ("train_time_s", "epoch_time_s", "images_per_s", "discovery_time_s")
# Most groups that a legend names.
_MOST_NAMED = 20


def run_curves(runs: Sequence[RunData]) -> list[Chart]:
    """Metrics over epochs; each chart shows one metric for all runs."""
    names = ordered(set().union(*(metric_names(run.rows) for run in runs), set()))
    if not names:
        return []
    if len(runs) > 1:
        views = [_metric_view(runs, [name], title(name)) for name in names]
        return [Chart("", views, choice="metric", height=440, close=True)]
    together = (
        ("Agreement with the labels", [n for n in LABELLED_METRICS if n in names]),
        ("Scores without labels", [n for n in LABEL_FREE_SCORES if n in names]),
    )
    charts = [
        Chart(text, [_metric_view(runs, some, "")], height=420) for text, some in together if some
    ]
    rest = [n for n in names if n not in (*LABELLED_METRICS, *LABEL_FREE_SCORES)]
    rest.sort(key=lambda name: name in _TIMES)
    if rest:
        views = [_metric_view(runs, [name], title(name)) for name in rest]
        charts.append(Chart("Loss, schedules and times", views, choice="metric"))
    return charts


def _metric_view(runs: Sequence[RunData], names: Sequence[str], axis: str) -> View:
    traces: list[Any] = []
    curves = []
    last = []
    several = len(runs) > 1
    for run in runs:
        for name in names:
            epochs, values = curve(run.rows, name)
            if not values:
                continue
            curves.append((epochs, values))
            place = len(traces)
            text = style.plain(run.name) if several else title(name)
            single = {"mode": "lines+markers"} if len(values) == 1 else {"mode": "lines"}
            line = {
                "color": style.LINES[place % len(style.LINES)],
                "width": 2,
                "dash": style.DASHES[place % len(style.DASHES)],
            }
            hover = f"{text}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>"
            x, y = style.floats(epochs), style.floats(values)
            traces.append(go.Scatter(x=x, y=y, name=text, line=line, hovertemplate=hover, **single))
            last.append(f"{run.name if several else title(name)} {precise(values[-1])}")
    legend = len(traces) > 1
    found = style.figure(traces, x="epochs trained", y=axis, legend=legend)
    starts = {group_start(run.rows) for run in runs} - {None}
    if len(starts) == 1:
        style.mark_epoch(found, starts.pop())
    what = title(names[0]) if len(names) == 1 else "Metrics"
    caption = f"{what[0].upper()}{what[1:]} over epochs. At the end: {', '.join(last)}."
    if len(starts) > 1:
        caption += " The runs begin their group stages at different epochs."
    ranges = group_stage_ranges(curves, min((s for s in starts if s), default=None))
    return View(axis, found, caption, group_stage=ranges)


def map_chart(snapshot: Snapshot, positions: Positions, samples: SampleNames) -> Chart:
    """A map of the embeddings, coloured by cluster or class."""
    clusters = snapshot.samples["cluster"].to_pylist()
    view = functools.partial(_map_view, snapshot, positions, samples)
    views = [view(clusters, "cluster", _cluster_names(snapshot))]
    labels = snapshot.samples["label"].to_pylist()
    if any(label is not None for label in labels):
        names = {label: style.plain(snapshot.class_label(label)) for label in set(labels)}
        views.append(view(labels, "class", names))
    return Chart("Map of the embeddings", views, choice="colour by", square=True, height=620)


def _cluster_names(snapshot: Snapshot) -> dict[Any, str]:
    """Clusters by number, with the most frequent class of their samples if known."""
    names = {}
    pairs = Counter(
        zip(
            snapshot.samples["cluster"].to_pylist(),
            snapshot.samples["label"].to_pylist(),
            strict=True,
        )
    )
    for cluster in sorted({cluster for cluster, _ in pairs}):
        known = {label: n for (c, label), n in pairs.items() if c == cluster and label is not None}
        names[cluster] = str(cluster)
        if known:
            most = max(known, key=lambda label: known[label])
            names[cluster] += f": {style.plain(snapshot.class_label(most))}"
    return names


def _map_view(
    snapshot: Snapshot,
    positions: Positions,
    samples: SampleNames,
    groups: Sequence[Any],
    kind: str,
    names: dict[Any, str],
) -> View:
    groups_m = np.array([-1 if group is None else group for group in groups])
    ratios_m = snapshot.samples["boundary_ratio"].to_numpy()
    # Samples at their centre are large, those between two clusters small.
    sizes_m = 3.0 + 7.0 * np.clip(1.0 - ratios_m, 0.0, 1.0)
    ids = snapshot.samples["sample_id"].to_pylist()
    clusters = snapshot.samples["cluster"].to_pylist()
    labels = snapshot.samples["label"].to_pylist()
    traces = []
    for place, group in enumerate(sorted(set(groups_m.tolist()))):
        rows = np.flatnonzero(groups_m == group)
        text = names.get(None if group == -1 else group, str(group))
        hover = [
            f"{style.plain(samples.name(ids[i]))}<br>cluster {clusters[i]}"
            + (
                ""
                if labels[i] is None
                else f"<br>class {style.plain(snapshot.class_name(labels[i]))}"
            )
            for i in rows.tolist()
        ]
        traces.append(
            go.Scatter(
                x=np.asarray(positions[rows, 0], np.float32),
                y=np.asarray(positions[rows, 1], np.float32),
                mode="markers",
                marker={
                    "color": style.GROUPS[place % len(style.GROUPS)],
                    "symbol": style.SYMBOLS[place // len(style.GROUPS) % len(style.SYMBOLS)],
                    "size": np.asarray(sizes_m[rows], np.float32),
                    "opacity": 0.75,
                    "line": {"width": 0},
                },
                name=text,
                hovertext=hover,
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    found = style.figure(traces, legend=len(traces) <= _MOST_NAMED)
    found.update_layout(legend={"itemsizing": "constant"})
    axis = {"showticklabels": False, "showgrid": False, "showline": False, "title": {"text": ""}}
    found.update_layout(xaxis=axis, yaxis={**axis, "scaleanchor": "x"})
    kept = int(np.sum(snapshot.samples["kept"].to_numpy(zero_copy_only=False)))
    told = "clusters" if kind == "cluster" else "classes"
    if kind == "cluster" and any(label is not None for label in labels):
        told = "clusters, each named with its most frequent class"
    caption = (
        f"{len(ids):,} of {snapshot.num_images:,} images after {snapshot.epoch} epochs, in "
        f"{len(traces)} {told}. Points far from any boundary are large, those between two clusters "
        "small. Distances between groups mean little."
    )
    if kept < len(ids):
        caption += f" The loss would keep {kept / len(ids):.0%} of them."
    return View(kind, found, caption)


def confusion_chart(snapshot: Snapshot) -> Chart | None:
    """Classes against clusters after matching."""
    if snapshot.confusion is None:
        return None
    found = snapshot.confusion.to_pydict()
    labels, clusters = list(dict.fromkeys(found["label"])), list(dict.fromkeys(found["cluster"]))
    counts = np.array(found["count"]).reshape(len(labels), len(clusters))
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = [snapshot.class_name(label) for label in labels]
    shown = [style.plain(name) for name in names]
    texts = [[str(n) if n and len(labels) <= 20 else "" for n in row] for row in counts.tolist()]
    hover = [
        [
            f"class {name}, cluster {cluster}<br>{count} images, {share:.1%} of the class"
            for cluster, count, share in zip(clusters, row, row_shares, strict=True)
        ]
        for name, row, row_shares in zip(shown, counts.tolist(), shares.tolist(), strict=True)
    ]
    figure = style.figure(
        style.cells(shares.tolist(), texts, hover, low=0.0, high=1.0),
        x="cluster, in matched order",
        y="class",
    )
    figure.update_xaxes(tickvals=list(range(len(clusters))), ticktext=clusters, showgrid=False)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[style.plain(snapshot.class_label(label)) for label in labels],
        showgrid=False,
        autorange="reversed",
    )
    right = sum(n for n, match in zip(found["count"], found["matched"], strict=True) if match)
    caption = (
        f"Images of each class (rows) in each cluster (columns); matched pairs are on the diagonal "
        f"and hold {right:,} of {int(counts.sum()):,} images, an accuracy of "
        f"{right / max(1, counts.sum()):.3f}. "
    ) + _worst_confusion(counts, names, clusters, found["matched"])
    columns = ("class", *(f"cluster {cluster}" for cluster in clusters))
    rows = [(name, *row) for name, row in zip(names, counts.tolist(), strict=True)]
    table = Table.of("Confusion matrix", columns, rows) if len(rows) <= MOST_ROWS else None
    size = max(360, min(760, 110 + 32 * len(names)))
    return Chart("Confusion matrix", [View("", figure, caption, table)], square=True, height=size)


def _worst_confusion(
    counts: Any, names: Sequence[str], clusters: Sequence[int], matched: Sequence[bool]
) -> str:
    wrong = np.where(np.array(matched).reshape(counts.shape), 0, counts)
    row, column = divmod(int(np.argmax(wrong)), wrong.shape[1])
    if not wrong[row, column]:
        return "No image is in another cluster."
    return (
        f"The largest confusion is {wrong[row, column]} images of class {names[row]} in cluster "
        f"{clusters[column]}."
    )


def cluster_sizes(snapshot: Snapshot) -> Chart:
    """Number of samples per cluster; shown if there are no labels."""
    counts = Counter(snapshot.samples["cluster"].to_pylist())
    ranked = counts.most_common()
    bars = go.Bar(
        x=[str(cluster) for cluster, _ in ranked],
        y=[count for _, count in ranked],
        marker={"color": style.BLUE},
        hovertemplate="cluster %{x}: %{y} samples<extra></extra>",
    )
    found = style.figure([bars], x="cluster", y="samples", bargap=0.25)
    found.update_xaxes(type="category")
    caption = (
        f"Sizes of the {len(ranked)} clusters among {sum(counts.values()):,} samples, from "
        f"{ranked[0][1]:,} to {ranked[-1][1]:,}."
    )
    table = Table.of("Sizes of clusters", ("cluster", "samples"), ranked[:MOST_ROWS])
    return Chart("Sizes of clusters", [View("", found, caption, table)], height=320)
