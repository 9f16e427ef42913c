"""Style of all charts: colours legible on white, on black and to colour-blind readers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from conr_ray.errors import printable

# After Okabe and Ito, legible on white and on black.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#2585C7", "#D55E00", "#009E73", "#CC79A7", "#7A828A"
LINES = (BLUE, ORANGE, GREEN, PURPLE, GREY, "#B8860B")
DASHES = ("solid", "7px,3px", "2px,2px", "7px,2px,2px,2px", "10px,2px", "4px,2px")
# Of a run without a group stage.
ALONE = "Framework alone"
VARIANTS = {"CoNR": BLUE, "Euclidean neighbours": ORANGE, ALONE: GREY}
# Petroff's ten for many groups.
GROUPS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
# From the page's background to a deep blue, on white and on black.
SCALE = [[0.0, "rgba(0, 96, 150, 0.06)"], [1.0, "rgba(0, 96, 150, 1)"]]
_LIGHT_TEXT_FROM = 0.7


def figure(
    traces: Sequence[Any], *, x: str = "", y: str = "", legend: bool = False, **layout: Any
) -> go.Figure:
    """A figure with axis titles. The page adds the colours of text and grid."""
    found = go.Figure(list(traces))
    found.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        # The legend is above the names of marked epochs.
        margin={"l": 8, "r": 12, "t": 64 if legend else 28, "b": 8},
        hovermode="closest",
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.08, "yanchor": "bottom"},
        xaxis={"title": {"text": x}, "automargin": True, "zeroline": False},
        yaxis={"title": {"text": y}, "automargin": True, "zeroline": False},
    )
    found.update_layout(**layout)
    return found


def plain(text: object) -> str:
    """A user's text, in one line and escaped, since Plotly interprets HTML tags."""
    return html.escape(printable(str(text)), quote=False)


def mark_epoch(found: go.Figure, epoch: int | None, text: str = "group stage") -> None:
    """Draw a dashed line where something begins, with its name at the top."""
    if epoch is None:
        return
    found.add_shape(
        type="line",
        x0=epoch,
        x1=epoch,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": GREY, "width": 1, "dash": "dash"},
    )
    found.add_annotation(
        x=epoch,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left",
        text=text,
        showarrow=False,
        font={"size": 12},
    )


def floats(values: Sequence[float | None]) -> npt.NDArray[np.float32]:
    """Numbers in Plotly's compact form; None is a gap."""
    return np.array([np.nan if v is None else v for v in values], np.float32)


def cells(
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    hover: Sequence[Sequence[str]],
    *,
    low: float,
    high: float,
) -> list[Any]:
    """Traces of a matrix: its cells, and a legible text in each."""
    span = high - low or 1.0
    traces: list[Any] = [
        go.Heatmap(
            z=np.array([[np.nan if v is None else v for v in row] for row in values], np.float32),
            zmin=low,
            zmax=high,
            colorscale=SCALE,
            showscale=False,
            xgap=1,
            ygap=1,
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    ]
    for deep in (False, True):
        places = [
            (x, y)
            for y, row in enumerate(values)
            for x, value in enumerate(row)
            if value is not None and texts[y][x]
            if ((value - low) / span >= _LIGHT_TEXT_FROM) == deep
        ]
        if places:
            traces.append(
                go.Scatter(
                    x=[x for x, _ in places],
                    y=[y for _, y in places],
                    text=[texts[y][x] for x, y in places],
                    mode="text",
                    # Without a colour, the page's is used.
                    textfont={"color": "#ffffff"} if deep else None,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
    return traces
