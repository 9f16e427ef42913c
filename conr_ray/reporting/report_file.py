"""Write reports: on a run, a search, predictions, or several runs side by side."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import StorageError, UserError
from conr_ray.reporting import comparison
from conr_ray.reporting.blocks import Page
from conr_ray.reporting.html_page import render
from conr_ray.reporting.predictions_data import is_prediction, read_predictions
from conr_ray.reporting.predictions_page import predictions_page
from conr_ray.reporting.run_data import RunData, read_run
from conr_ray.reporting.run_page import run_page
from conr_ray.reporting.search_data import read_search
from conr_ray.reporting.search_page import search_page
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.storage.files import Folder

FILE_NAME = "report.html"


def is_search(directory: Folder) -> bool:
    """Whether a directory holds a search; otherwise it holds a run.

    Raises:
        UserError: it holds neither.
    """
    if directory.has("space.yaml"):
        return True
    if directory.has("config.yaml"):
        return False
    if directory.is_local and not Path(directory.uri).is_dir():
        raise UserError(f"{directory.uri}: no such folder; give the folder of a run or a search")
    folders, files = directory.folder_names(""), ("config.yaml", "space.yaml", "prediction.json")
    inside = [f for file in files for f in folders if directory.has(f"{f}/{file}")]
    hint = f", such as {directory.uri}/{inside[-1]}" if inside else ""
    raise UserError(
        f"{directory.uri} holds neither a run (config.yaml) nor a search (space.yaml) nor "
        f"predictions (prediction.json): give the folder of one{hint}"
    )


def write_report(
    directory: RunDirectory,
    *,
    out: str | None = None,
    study_url: str | None = None,
    baseline: RunDirectory | None = None,
    edits: bool = True,
) -> str:
    """Write the report of the run, search or predictions in a directory; return its path.

    Args:
        directory: of the run, search or predictions.
        out: the file; None means report.html in the directory.
        study_url: database of a search's study, if it is in one.
        baseline: a run to compare the run with.
        edits: show the clusters of a run or prediction as a person has changed them.
    """
    place = out or f"{directory.uri}/{FILE_NAME}"
    if is_prediction(directory):
        if baseline is not None or study_url is not None:
            raise UserError("--baseline and --study have no effect on predictions: leave them out")
        return write_page(predictions_page(read_predictions(directory, edits=edits)), place)
    if is_search(directory):
        if baseline is not None:
            raise UserError("the baseline is for a run, not for a search: leave it out")
        return write_search_report(SearchDirectory(directory, study_url), place)
    run = read_run(directory, edits=edits)
    extra = []
    if baseline is not None:
        extra = comparison.sections([run, _read(baseline, study_url)], "baseline")
    return write_page(run_page(run, extra), place)


def write_search_report(directory: SearchDirectory, place: str, *, running: bool = False) -> str:
    """Write the report of a search to `place`; return its path.

    The report of a `running` search is soon rewritten, so it only has maps that are cached.
    """
    data = read_search(directory, running=running, draw_map=not running)
    return write_page(search_page(data), place)


def write_static(directory: RunDirectory, out: str, study_url: str | None = None) -> list[str]:
    """Write a run's or search's figures for papers into the folder `out`; return their names."""
    # Imports matplotlib, which a page does not need.
    from conr_ray.reporting.static_figures import run_figures, search_figures, write_figures

    if is_search(directory):
        figures = search_figures(read_search(SearchDirectory(directory, study_url)))
    else:
        figures = run_figures(read_run(directory))
    return write_figures(figures, Folder(out.rstrip("/")))


def write_comparison(
    directories: Sequence[RunDirectory], out: str, study_url: str | None = None
) -> str:
    """Compare runs, and the best trials of searches, in a file; return its path."""
    if len(directories) < 2:
        raise UserError("a comparison needs two or more directories: give another one")
    return write_page(comparison.comparison_page(read_all(directories, study_url)), out)


def read_all(directories: Sequence[RunDirectory], study_url: str | None = None) -> list[RunData]:
    """The runs, or best trials of searches, in directories, with unique names."""
    return comparison.with_distinct_names(
        [_read(directory, study_url) for directory in directories],
        [directory.uri for directory in directories],
    )


def _read(directory: RunDirectory, study_url: str | None) -> RunData:
    if not is_search(directory):
        return read_run(directory)
    search = SearchDirectory(directory, study_url)
    data = read_search(search, draw_map=False)
    if data.best is None:
        raise UserError(f"{directory.uri}: no trial has trained all its epochs yet: leave it out")
    best = RunDirectory(f"{directory.uri}/trials/{data.best.trial_id}")
    return comparison.renamed(read_run(best), f"{data.name}, trial {data.best.number}")


def write_page(page: Page, place: str) -> str:
    """Write a page to a file, a local path or a URI; return its absolute path."""
    folder, _, name = place.rpartition("/")
    directory = Folder(folder or ("/" if place.startswith("/") else "."))
    written = f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    html = render(page, written=written, folder=directory.uri if directory.is_local else None)
    try:
        directory.write_text(name, html)
    except StorageError as error:
        fault = str(error).rpartition(": ")[0]
        raise UserError(f"{fault}: choose another output file") from None
    return f"{directory.uri}/{name}"
