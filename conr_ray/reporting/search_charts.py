"""The charts of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from conr_ray.reporting import chart_style as style
from conr_ray.reporting.blocks import MOST_ROWS, Chart, Table, View
from conr_ray.reporting.names import counted, number, ordered, precise, title
from conr_ray.reporting.run_data import curve, group_stage_ranges, group_start, metric_names
from conr_ray.reporting.search_data import SearchData, stage_change
from conr_ray.searching.trial_table import Trial
from conr_ray.tracking.progress import duration

# Number of highlighted curves, and most points per curve.
_MOST_STRONG, _MOST_POINTS, _MOST_FAINT_POINTS = 30, 250, 60


def learning_curves(data: SearchData) -> Chart | None:
    """Each metric over epochs, one line per trial."""
    names = ordered(set().union(*(metric_names(trial.rows) for trial in data.trials), set()))
    names = [*(m for m in data.space.metrics if m in names), *names]
    views = [_curves_view(data, name) for name in dict.fromkeys(names)]
    return Chart("", views, choice="metric", height=440, close=True) if views else None


def _curves_view(data: SearchData, name: str) -> View:
    known = [trial for trial in data.trials if any(row.get(name) is not None for row in trial.rows)]
    best, strong, faint = known[:1], known[1:_MOST_STRONG], known[_MOST_STRONG:]
    looks = (
        (f"other {len(faint)}", faint, style.GREY, 1.0, 0.35, _MOST_FAINT_POINTS),
        (f"next {len(strong)}", strong, style.BLUE, 1.5, 0.75, _MOST_POINTS),
        (
            "".join(f"trial {t.number}, the first" for t in best),
            best,
            style.ORANGE,
            3.0,
            1.0,
            10**6,
        ),
    )
    traces = [
        _lines(trials, name, text, {"color": color, "width": width}, opacity, most)
        for text, trials, color, width, opacity, most in looks
        if trials
    ]
    starts = {group_start(trial.rows) for trial in known} - {None}
    if len(starts) > 1:
        traces.append(_stage_changes([*strong, *best], name))
    found = style.figure(traces, x="epochs trained", y=title(name), legend=True)
    style.mark_epoch(found, stage_change(data))
    shown = [curve(trial.rows, name) for trial in (*best, *strong)]
    ranges = group_stage_ranges(shown, min((s for s in starts if s), default=None))
    caption = (
        f"{title(name)[0].upper()}{title(name)[1:]} of {counted(len(known), 'trial')} over epochs."
    )
    if best:
        epochs, values = curve(best[0].rows, name)
        caption += (
            f" Trial {best[0].number}, the first in the ranking, has {precise(values[-1])} after "
            f"{epochs[-1]} epochs."
        )
    return View(title(name), found, caption, group_stage=ranges)


def _stage_changes(trials: Sequence[Trial], name: str) -> Any:
    """A mark on each curve where its group stage begins."""
    points = []
    for trial in trials:
        start = group_start(trial.rows)
        epochs, values = curve(trial.rows, name)
        if start in epochs:
            points.append((start, values[epochs.index(start)], trial.number))
    return go.Scatter(
        x=style.floats([x for x, _, _ in points]),
        y=style.floats([y for _, y, _ in points]),
        customdata=np.array([n for _, _, n in points], np.int32),
        mode="markers",
        marker={"symbol": "diamond-open", "size": 8, "color": style.GREY},
        name="group stage begins",
        hovertemplate="trial %{customdata}<br>group stage from epoch %{x}<extra></extra>",
    )


def _lines(
    trials: Sequence[Trial], name: str, text: str, line: dict[str, Any], opacity: float, most: int
) -> Any:
    """Curves of several trials as one trace, since many traces are slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[int] = []
    for trial in trials:
        epochs, values = curve(trial.rows, name)
        chosen = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), most)).round())
        for place in chosen.astype(int).tolist():
            x.append(epochs[place])
            y.append(values[place])
        x.append(None)
        y.append(None)
        numbers += [trial.number] * (len(chosen) + 1)
    return go.Scatter(
        x=style.floats(x),
        y=style.floats(y),
        customdata=np.array(numbers, np.int32),
        mode="lines",
        line=line,
        opacity=opacity,
        name=text,
        hovertemplate="trial %{customdata}<br>epoch %{x}: %{y:.4f}<extra></extra>",
    )


def parallel_coordinates(data: SearchData) -> Chart | None:
    """One line per trial through its values of the searched fields and metrics."""
    trials = [trial for trial in data.trials if trial.values is not None]
    if len(trials) < 2:
        return None
    axes = [_field_axis(data, name, trials) for name in data.space.search]
    axes += [_metric_axis(m, place, trials) for place, m in enumerate(data.space.metrics)]
    quarter = max(1, len(trials) // 4)
    looks = (
        ("the rest", trials[quarter:], style.GREY, 1.0, 0.5),
        ("best quarter", trials[1:quarter], style.BLUE, 1.6, 0.85),
        (f"trial {trials[0].number}, the first", trials[:1], style.ORANGE, 3.0, 1.0),
    )
    traces = [
        _trial_lines(axes, chosen, text, {"color": color, "width": width}, opacity)
        for text, chosen, color, width, opacity in looks
        if chosen
    ]
    found = style.figure(traces, legend=True)
    found.update_layout(margin={"l": 30, "r": 40, "t": 60, "b": 8})
    names = [name.replace(" ", "<br>") for name, *_ in axes]
    found.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=names,
        showgrid=True,
        tickangle=0,
        range=[-0.15, len(axes) - 0.7],
    )
    found.update_yaxes(visible=False, range=[-0.05, 1.05])
    for place, (_, _, _, ticks) in enumerate(axes):
        for height, text in ticks:
            found.add_annotation(
                x=place,
                y=height,
                text=text,
                showarrow=False,
                xanchor="left",
                xshift=4,
                font={"size": 11},
            )
    first = trials[0]
    fields = ", ".join(f"{word} {number(first.point.get(n))}" for n, word in data.fields.items())
    caption = (
        f"Each line is one of {len(trials)} trials, through its values of the searched fields and "
        f"its {_named(data.space.metrics)}. Trial {first.number}, the first in the ranking: "
        f"{fields}. Point at a line to highlight it."
    )
    view = View("", found, caption)
    return Chart("Parallel coordinates", [view], height=460, min_width=80 * len(axes))


def _trial_lines(
    axes: Sequence[tuple[Any, ...]],
    trials: Sequence[Trial],
    text: str,
    line: dict[str, Any],
    opacity: float,
) -> Any:
    """Lines of several trials through all axes, as one trace."""
    heights, hover, numbers = [], [], []
    for trial in trials:
        for _, place_of, value_of, _ in axes:
            heights.append(place_of(trial))
            hover.append(value_of(trial))
        heights.append(None)
        hover.append("")
        numbers += [trial.number] * (len(axes) + 1)
    return go.Scatter(
        x=style.floats([*range(len(axes)), None] * len(trials)),
        y=style.floats(heights),
        customdata=np.array(numbers, np.int32),
        text=hover,
        mode="lines",
        line=line,
        opacity=opacity,
        name=text,
        hovertemplate="trial %{customdata}<br>%{text}<extra></extra>",
    )


def _field_axis(data: SearchData, name: str, trials: Sequence[Trial]) -> tuple[Any, ...]:
    """Name, place and text of a trial's value, and ticks of the axis of a field."""
    dimension, word = data.space.search[name], data.fields[name]
    values = [trial.point.get(name) for trial in trials]
    if dimension.choice or any(isinstance(v, str | bool) for v in values):
        words = [str(word) for word in dimension.choice or dict.fromkeys(values)]
        places = {word: i / max(1, len(words) - 1) for i, word in enumerate(words)}
        ticks = [(place, style.plain(word)) for word, place in places.items()]
        return (
            word,
            lambda trial: places.get(str(trial.point.get(name))),
            lambda trial: f"{word} = {style.plain(trial.point.get(name))}",
            ticks if len(ticks) <= 12 else ticks[:: len(ticks) - 1],
        )
    numbers = [float(v) for v in values if v is not None]
    scale = math.log if dimension.log else float
    return _numeric_axis(word, numbers, scale, lambda trial: trial.point.get(name))


def _metric_axis(name: str, place: int, trials: Sequence[Trial]) -> tuple[Any, ...]:
    numbers = [trial.values[place] for trial in trials if trial.values is not None]
    return _numeric_axis(
        title(name), numbers, float, lambda trial: trial.values[place] if trial.values else None
    )


def _numeric_axis(name: str, numbers: list[float], scale: Any, value_of: Any) -> tuple[Any, ...]:
    low, high = min(numbers), max(numbers)

    def place_of(trial: Trial) -> float | None:
        value = value_of(trial)
        if value is None:
            return None
        span = scale(high) - scale(low)
        return (scale(value) - scale(low)) / span if span else 0.5

    ticks = [(0.0, number(low)), (1.0, number(high))] if high > low else [(0.5, number(low))]
    return name, place_of, lambda trial: f"{name} = {number(value_of(trial))}", ticks


def importances(data: SearchData) -> Chart | None:
    """The importance of the fields for each metric."""
    views = []
    for metric, shares in data.importances.items():
        if not shares:
            continue
        names, values = list(shares), list(shares.values())
        bars = go.Bar(
            x=values[::-1],
            y=[data.fields[name] for name in names[::-1]],
            orientation="h",
            marker={"color": style.BLUE},
            text=[f"{value:.0%}" for value in values[::-1]],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
        found = style.figure([bars], x="share of the variance", bargap=0.35)
        found.update_xaxes(tickformat=".0%", range=[0, max(values) * 1.15])
        caption = (
            f"What {title(metric)} depends on: {data.fields[names[0]]} explains {values[0]:.0%} of "
            f"its variance over {counted(len(data.complete), 'complete trial')}, by Optuna's "
            "random forest. With few trials this is rough."
        )
        if missing := [word for name, word in data.fields.items() if name not in shares]:
            caption += (
                f" Not available for {', '.join(missing)}: the range depends on other fields."
            )
        rows = [(name, f"{share:.1%}") for name, share in shares.items()]
        table = Table.of("Importances", ("field", "share"), rows)
        views.append(View(title(metric), found, caption, table))
    height = 120 + 34 * len(data.space.search)
    return (
        Chart("What the metric depends on", views, choice="metric", height=height)
        if views
        else None
    )


def pareto_set(data: SearchData) -> Chart | None:
    """The Pareto set of a search with several metrics."""
    first, *others = data.space.metrics
    trials = [trial for trial in data.trials if trial.values is not None]
    chosen = [trial for trial in trials if trial.in_pareto_set]
    if not others or not chosen:
        return None
    views = []
    for place, name in enumerate(others, start=1):
        rest = [trial for trial in trials if not trial.in_pareto_set]
        line = sorted(chosen, key=lambda trial: trial.values[0] if trial.values else 0)
        traces = [
            go.Scatter(
                x=style.floats([t.values[0] if t.values else None for t in some]),
                y=style.floats([t.values[place] if t.values else None for t in some]),
                customdata=np.array([t.number for t in some], np.int32),
                mode=mode,
                line={"color": color, "dash": "dot", "width": 1.5},
                marker={"color": color, "size": size, "symbol": symbol},
                name=text,
                hovertemplate=(
                    f"trial %{{customdata}}<br>{title(first)} %{{x:.4f}}<br>"
                    f"{title(name)} %{{y:.4f}}<extra></extra>"
                ),
            )
            for some, mode, color, size, symbol, text in (
                (rest, "markers", style.GREY, 7, "circle", "other trials"),
                (line, "lines+markers", style.ORANGE, 11, "diamond", "Pareto set"),
            )
            if some
        ]
        found = style.figure(traces, x=title(first), y=title(name), legend=True)
        best = chosen[0]
        assert best.values is not None
        caption = (
            f"{len(chosen)} of {len(trials)} trials are in the Pareto set: no other one is better "
            f"in one metric and as good in all others. By {title(first)} trial {best.number} leads "
            f"with {number(best.values[0])}, at {title(name)} {number(best.values[place])}."
        )
        rows = [(t.number, *(t.values or ())) for t in chosen]
        columns = ("trial", *map(title, data.space.metrics))
        table = Table.of("Pareto set", columns, rows[:MOST_ROWS])
        views.append(View(f"{title(first)} and {title(name)}", found, caption, table))
    return Chart("", views, choice="metrics")


def cost_chart(data: SearchData) -> Chart | None:
    """Epochs and time, with and without shared trunks."""
    cost = data.cost
    if not cost.unshared_epochs:
        return None
    views = []
    for label, own, unshared, told in (
        ("epochs", cost.epochs, cost.unshared_epochs, lambda v: f"{v:,.0f} epochs"),
        ("time", cost.time_s, cost.unshared_time_s, duration),
    ):
        bars = go.Bar(
            x=[unshared, own],
            y=["without trunks", "as trained"],
            orientation="h",
            marker={"color": [style.GREY, style.BLUE]},
            text=[told(unshared), told(own)],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
        found = style.figure([bars], x="epochs" if label == "epochs" else "seconds", bargap=0.35)
        found.update_xaxes(range=[0, max(own, unshared) * 1.55], rangemode="tozero")
        times = unshared / own if own else 1.0
        saved = f"{times:.1f} times as many" if label == "epochs" else f"{times:.1f} times as long"
        caption = f"The trials trained {told(own)}."
        if unshared > own:
            caption = (
                f"The trials and their shared trunks trained {told(own)}. Without trunks "
                f"it would have been {told(unshared)}, {saved}."
            )
        views.append(View(label, found, caption))
    return Chart("", views, choice="in", height=220)


def _named(metrics: Sequence[str]) -> str:
    return " and ".join(title(metric) for metric in metrics)
