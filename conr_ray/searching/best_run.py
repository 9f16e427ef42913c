"""The run of a search's best trial, for the commands that apply it."""

from __future__ import annotations

from conr_ray.errors import UserError
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.trial_table import best_trial, read_trials
from conr_ray.storage.files import Folder


def best_run(uri: str, study_url: str | None) -> tuple[str, tuple[str, ...]]:
    """The folder of the best trial of the search at `uri`, and the metrics in which it is best.

    Raises:
        UserError: there is no search, or none of its trials has ended.
    """
    search = SearchDirectory(Folder(uri.rstrip("/")), study_url)
    space = search.read_space()
    study = None if space is None else search.read_study()
    if space is None or study is None:
        raise UserError(f"--best-of={uri}: it is not a search: give the folder of one")
    best = best_trial(read_trials(study, space, search.uri))
    if best is None:
        raise UserError(f"--best-of={uri}: no trial has ended yet: resume the search")
    return f"{search.uri}/trials/{best.trial_id}", tuple(space.metrics)
