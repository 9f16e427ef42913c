"""A page as one HTML file that needs nothing else: styles, scripts and pictures are inside."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import conr_ray
from conr_ray.reporting.blocks import Chart, Page
from conr_ray.reporting.names import without_secrets

# How often a page of a running search loads itself again.
RELOAD_S = 60


def render(page: Page, *, written: str) -> str:
    """The page as HTML; `written` says when that was."""
    template = _environment().get_template("report.html.j2")
    html = template.render(
        page=page,
        written=written,
        version=conr_ray.__version__,
        reload_s=RELOAD_S if page.state else None,
        hints=_script_json({str(trial): text for trial, text in page.hints.items()}),
        plotly=_plotly(),
        numbers=_Numbers(),
    )
    # A browser wants the document's type before all else.
    return html.lstrip()


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("conr_ray.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.globals.update(chart_json=_chart_json, picture_uri=_picture_uri, file=_file)
    return environment


class _Numbers:
    """Gives numbers that make ids unique on a page."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """One that was not given before."""
        self._last += 1
        return self._last


def _clean(value: Any) -> Any:
    """What stands on the page for a value of the template: no passwords in URIs."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return without_secrets(value)
    return value


def _chart_json(chart: Chart) -> Markup:
    # Plotly writes a slash as an escape, which would hide URIs from who looks for passwords.
    return _script_json(
        [
            {"figure": json.loads(view.figure.to_json()), "close": view.group_stage}
            for view in chart.views
        ]
    )


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(without_secrets(text).replace("<", "\\u003c"))


def _picture_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(png).decode())


def _file(name: str) -> Markup:
    """A file of this package as it is."""
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


@functools.cache
def _plotly() -> Markup:
    return Markup(plotly.offline.get_plotlyjs())
