"""A page as one self-contained HTML file with its styles, scripts and pictures."""

from __future__ import annotations

import base64
import functools
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import conr_ray
from conr_ray.reporting.blocks import Chart, Page
from conr_ray.reporting.names import without_secrets

# How often the page of a running search reloads itself.
RELOAD_S = 60


def render(page: Page, *, written: str, folder: str | None = None) -> str:
    """The page as HTML.

    Args:
        page: what it shows.
        written: the time of writing.
        folder: the local folder that it will be in, from which links to files begin.
    """
    template = _environment().get_template("report.html.j2")
    html = template.render(
        page=page,
        written=written,
        version=conr_ray.__version__,
        reload_s=RELOAD_S if page.state else None,
        hints=_script_json({str(trial): text for trial, text in page.hints.items()}),
        plotly=_plotly(),
        numbers=_Numbers(),
        link=functools.partial(_link, folder=folder),
    )
    # The document type must come first.
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
    """Counts numbers that make ids unique on a page."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """The next unused number."""
        self._last += 1
        return self._last


def _clean(value: Any) -> Any:
    """A template value as shown on the page, without passwords in URIs."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return without_secrets(value)
    return value


def _chart_json(chart: Chart) -> Markup:
    # Plotly escapes slashes, which would hide URIs from the search for passwords.
    return _script_json(
        [
            {"figure": json.loads(view.figure.to_json()), "close": view.group_stage}
            for view in chart.views
        ]
    )


def _script_json(value: Any) -> Markup:
    """JSON that cannot close the script element around it."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(without_secrets(text).replace("<", "\\u003c"))


def _picture_uri(data: bytes) -> Markup:
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _link(file: str | None, folder: str | None) -> str | None:
    """A link to a local file, relative if page and file are in one folder below the root.

    Both can then be moved together.
    """
    if file is None or folder is None:
        return None
    if len(Path(os.path.commonpath([file, folder])).parts) < 2:
        return Path(file).as_uri()
    # Begun with ./, so that no part of a name is taken for a scheme.
    return "./" + quote(os.path.relpath(file, folder))


def _file(name: str) -> Markup:
    """The text of a file of this package."""
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


@functools.cache
def _plotly() -> Markup:
    return Markup(plotly.offline.get_plotlyjs())
