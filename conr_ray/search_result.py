"""What a search has found."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from conr_ray.command_line import absolute
from conr_ray.errors import UserError
from conr_ray.estimator import Clusterer
from conr_ray.metric_names import headline
from conr_ray.reporting.report_file import FILE_NAME, write_search_report
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.trial_table import best_trial, read_trials, to_arrow
from conr_ray.storage.files import Folder

_MOST_SHOWN = 10


class SearchResult:
    """What the search in a folder has found, whether Python or `tune` ran it.

    Args:
        folder: of the search, local or s3://....
        study: URL of the database of its study, if it is in one.

    Attributes:
        folder: its absolute path or URI.
        study: the `optuna.Study`; unlike all else here it shows what a resumed search adds.
        trials: a pandas.DataFrame, a row for each trial, the best first: number, state, searched
            fields, metrics, epochs, `time_s`, and the reason if it failed.

    Raises:
        UserError: the folder holds no search, or none of its trials has begun.
    """

    def __init__(self, folder: str | Path, study: str | None = None) -> None:
        """Read the search's files as they are now."""
        self._directory = SearchDirectory(Folder(absolute(str(folder))), study)
        self.folder = self._directory.uri
        space = self._directory.read_space()
        found = None if space is None else self._directory.read_study()
        if space is None or found is None:
            raise UserError(f"folder={self.folder}: holds no search: give the folder of one")
        self.study = found
        self._space = space
        self._trials = read_trials(found, space, self.folder)
        self.trials: Any = to_arrow(self._trials, space).to_pandas()

    @cached_property
    def best(self) -> Clusterer:
        """The best trial that trained all its epochs; of several metrics, by the first.

        Raises:
            UserError: there is none yet.
        """
        trial = best_trial(self._trials)
        if trial is None:
            raise UserError(f"{self.folder}: no trial has ended yet: resume the search")
        return Clusterer.load(f"{self.folder}/trials/{trial.trial_id}")

    def report(self, out: str | Path | None = None) -> str:
        """Write the report as one HTML file, report.html in the folder or `out`; return its path.

        Raises:
            UserError: the file cannot be written.
        """
        return write_search_report(self._directory, str(out or f"{self.folder}/{FILE_NAME}"))

    def __repr__(self) -> str:
        """The best trial and the folder."""
        return f"<SearchResult: {self._summary}; folder {self.folder}>"

    def _repr_html_(self) -> str:
        """For notebooks: the best trial, and a table of the first ten."""
        names = ["number", "state", *self._space.search, *self._space.metrics, "epochs", "time_s"]
        table = self.trials[list(dict.fromkeys(names))].head(_MOST_SHOWN)
        rows = Markup(table.to_html(index=False, border=0, float_format="{:.3f}".format))
        told = Markup("<p>{}<br>{}</p>").format(escape(self._summary), escape(self.folder))
        return str(Markup("<div>{}{}</div>").format(told, rows))

    @property
    def _summary(self) -> str:
        count, trial = len(self._trials), best_trial(self._trials)
        if trial is None:
            return f"{count} trials, none has trained all its epochs"
        figures = headline(trial.figures, first=self._space.metrics)
        return f"trial {trial.number} is the best of {count}, {figures}"
