"""What is browsed, by what a folder holds."""

from __future__ import annotations

from typing import Any

from conr_ray.browsing.collection import Collection, RunCollection
from conr_ray.browsing.keyed import PredictionCollection, VectorCollection
from conr_ray.curation.about import read_about
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.reporting.predictions_data import is_prediction
from conr_ray.storage.files import Folder


def open_collection(uri: str, num_clusters: int | None = None) -> Collection:
    """What is in a folder: a run, predictions, or what `conr_ray.curate` has found.

    Raises:
        UserError: neither, or it cannot be read.
    """
    directory = RunDirectory(uri)
    if is_prediction(directory):
        if num_clusters is not None:
            raise UserError("--clusters chooses clusters of a run: leave it out for predictions")
        return PredictionCollection(Folder(uri))
    if directory.has("config.yaml"):
        return RunCollection(directory, num_clusters)
    if (about := read_about(directory)) is not None:
        return _curated(directory, about, num_clusters)
    inside = [f for f in directory.folder_names("") if directory.has(f"{f}/config.yaml")]
    hint = f", such as {directory.uri}/{inside[-1]}" if inside else ""
    if directory.has("space.yaml"):
        hint = f": {directory.uri}/trials holds the runs of this search"
    raise UserError(
        f"{directory.uri} holds neither a run (config.yaml), predictions (prediction.json) nor "
        f"findings (curation.json): give the folder of one{hint}"
    )


def _curated(directory: Folder, about: dict[str, Any], num_clusters: int | None) -> Collection:
    """The samples of a curation in a folder of its own."""
    if "run" in about:
        run = RunDirectory(about["run"])
        if not run.has("config.yaml"):
            raise UserError(
                f"{directory.uri} is about the run {run.uri}, which is not there: put it back, or "
                "look anew with python -m conr_ray.curate"
            )
        return RunCollection(run, num_clusters, curation=directory)
    if num_clusters is not None:
        raise UserError("--clusters chooses clusters of a run: leave it out for vectors")
    return VectorCollection(directory, about)
