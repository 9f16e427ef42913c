"""`Clusterer`: CoNR as an estimator of scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted, validate_data

from conr_ray.command_line import absolute_paths
from conr_ray.config import RunConfig, override
from conr_ray.data.arrays import data_set
from conr_ray.data.sources.label_column import labels_of
from conr_ray.data.store import DataSet, open_data
from conr_ray.edits.folder import read_assignments
from conr_ray.engine.clusters_folder import PLACE, ClustersFolder
from conr_ray.engine.earlier_clusters import PLACE as IDS_OF
from conr_ray.engine.evaluation import found_again
from conr_ray.engine.label_free import NUM_SCORED, label_free_scores
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import Placement, TrainedRun
from conr_ray.errors import UserError
from conr_ray.estimating.pictures import Example, as_html, typical
from conr_ray.estimating.samples import (
    finite,
    image_rows,
    is_images,
    is_path,
    rows_in_files,
    source_of,
)
from conr_ray.estimating.settings import (
    LEAST_ROWS,
    backbone_for,
    config_for,
    field_of,
    for_few,
    side_for,
)
from conr_ray.estimating.training import SAMPLES, Workers
from conr_ray.frozen.sharing import SHARED
from conr_ray.method.keyed_random import fold
from conr_ray.storage.files import Folder
from conr_ray.storage.scratch import scratch_folder

_CLUSTERER = "clusterer.json"
# Beside the identity of the folder, whose name begins with a dot.
_NOT_OF_THE_RESULT = ("run.lock", SAMPLES, f"{SHARED}/", f"{IDS_OF}/", f"{PLACE}/embeddings-")


def write_settings(
    directory: Folder, preset: str, fields: Mapping[str, Any], brightest: int | None
) -> None:
    """Write what a run's own files do not tell a clusterer that is loaded from its folder.

    Args:
        directory: of the run.
        preset: the preset that it began with.
        fields: its other fields, by keyword.
        brightest: value of the brightest pixel that its samples may have, 255 for bytes; None if
            that is unknown.
    """
    known = {"preset": preset, "fields": dict(fields), "brightest": brightest}
    directory.write_text(_CLUSTERER, json.dumps(known) + "\n")


class Clusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Clusters images or vectors with CoNR.

    `X` is an array of NumPy or torch with images (n, h, w), (n, h, w, c) or (n, c, h, w), uint8 or
    numbers from 0 to 1, 16 or 255; or with vectors (n, d); or a list of PIL images; or the path of
    a folder of images or of a Parquet file. `y` are classes (n,), numbers or strings; None,
    NaN or -1 where they are unknown. A `folder` is local or s3://....

    All methods raise UserError, a ValueError of one line, where a setting, `X`, `y` or a folder
    cannot work, and scikit-learn's NotFittedError where they need `fit` before.

    Args:
        num_clusters: number of clusters; or `auto`, or a range, `5..30`: chosen without labels.
        preset: name of the config to begin with; views, network and batch are fitted to X.
        folder: where the run is kept, local or s3://...; commands can go on with it. By default
            the result is in memory alone. If it holds this run, fitting goes on with it.
        verbose: tell what the data are, and show a progress bar.
        workers: train on so many workers of Ray, as `python -m conr_ray.train --workers` does; by
            default this process trains, without Ray.
        address: of the Ray cluster with the workers, `auto` on one of its nodes; `folder` is then
            one that all nodes see. By default the Ray of this process, or one that `fit` starts on
            this machine and ends.
        **fields: fields of the config, their dots written as two underscores:
            `schedule__epochs=100`.

    Attributes:
        labels_: int64 (n,), the cluster of each sample of `fit`.
        boundary_ratios_: float32 (n,); above 1 a sample is nearer to another cluster's centre.
        cluster_centers_: float32 (num_clusters, d) of unit length, in the space of `transform`,
            by rising numbers.
        cluster_names_: names by cluster that a person has given.
        history_: a pandas.DataFrame, a row of metrics for each epoch.
        n_features_in_: numbers in a sample.

    Raises:
        UserError: there is no field of such a keyword.
    """

    labels_: npt.NDArray[np.int64]
    boundary_ratios_: npt.NDArray[np.float32]
    cluster_names_: dict[int, str]
    cluster_centers_: npt.NDArray[np.float32]
    _examples: dict[int, list[Example]]
    _edited = False

    def __init__(
        self,
        num_clusters: int | str = 10,
        preset: str = "digits",
        folder: str | None = None,
        verbose: bool = True,
        workers: int | None = None,
        address: str | None = None,
        **fields: Any,
    ) -> None:
        """Keep the settings."""
        self.num_clusters = num_clusters
        self.preset = preset
        self.folder = folder
        self.verbose = verbose
        self.workers = workers
        self.address = address
        self._fields: dict[str, Any] = {}
        for keyword in fields:
            field_of(keyword)
        self._fields.update(fields)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All settings by keyword; `deep` changes nothing, since none of them is an estimator."""
        return {**super().get_params(deep), **self._fields}

    def set_params(self, **params: Any) -> Self:
        """Change settings.

        Args:
            **params: by keyword, as the constructor takes them, fields of the config among them.

        Raises:
            UserError: there is no such setting or field; then none is changed.
        """
        own = set(self._get_param_names())
        for keyword in params:
            if keyword not in own:
                field_of(keyword)
        for keyword, value in params.items():
            if keyword in own:
                setattr(self, keyword, value)
            else:
                self._fields[keyword] = value
        return self

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on `X`; `y`, if given, only adds metrics to `history_`.

        Raises:
            UserError: `X`, `y`, a setting or the folder cannot work.
            RunFailed: training cannot go on: the loss is not finite, or all embeddings coincide.
            KeyboardInterrupt: it was stopped; with a `folder`, fitting again goes on.
        """
        fields = {field_of(keyword): value for keyword, value in self._fields.items()}
        workers = Workers(self.workers, self.address)
        place = scratch_folder("clusterer") if self.folder is None else nullcontext(self.folder)
        with place as folder:
            directory = RunDirectory(folder)
            # Where other processes, workers or commands, find samples in memory.
            shared = workers.on_ray or self.folder is not None
            table = f"{directory.uri}/{SAMPLES}" if shared else SAMPLES
            config, data, brightest = self._prepared(X, y, fields, table)
            few = for_few(config, data.num_rows, fields)
            config = override(config, {**few, **absolute_paths(config, ("data.path",))})
            console = Console(quiet=not self.verbose, markup=False, highlight=False)
            console.print(data.line, soft_wrap=True)
            with directory.held():
                workers.train(config, data, directory, console)
                data.write_inventory(directory)
                write_settings(directory, self.preset, self._fields, brightest)
                self._finish(directory, brightest)
        self._examples = typical(data, self.labels_, self.boundary_ratios_)
        return self

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> npt.NDArray[np.int64]:
        """Train as `fit` does; `labels_` is returned, int64 (n,). Nothing reads `kwargs`."""
        return self.fit(X, y).labels_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """The cluster of each sample, int64 (n,)."""
        return self.place(X).clusters_n.numpy()

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """The embedding of each sample, float32 (n, d) of unit length."""
        return self.place(X).embeddings_nd.numpy()

    def place(self, X: Any) -> Placement:
        """Clusters, embeddings, distances and boundary ratios of the samples of `X`."""
        check_is_fitted(self)
        return self._trained().place(self._new_rows(X))

    def score(self, X: Any, y: Any = None) -> float:
        """`neighbor_consistency` of `X`, from 0 to 1, without labels; `y` is ignored.

        Do samples and their 10 nearest neighbours fall into the same cluster? At most 4,096 of `X`,
        evenly spaced, are looked at.
        """
        check_is_fitted(self)
        rows, run = self._new_rows(X), self._trained()
        rows = rows[np.arange(count := min(len(rows), NUM_SCORED)) * len(rows) // count]
        placed, centers_cd = run.place(rows), run.state.centers
        assert centers_cd is not None
        scores = label_free_scores(
            placed.embeddings_nd,
            placed.clusters_n,
            centers_cd,
            torch.arange(len(rows)),
            placed.embeddings_nd,
            run.embedder(run.inputs(rows)),
            fold(run.config.seed, "scores", run.state.epoch),
            partial(found_again, run.config, len(centers_cd)),
        )
        return scores["neighbor_consistency"]

    def save(self, folder: str | Path) -> None:
        """Write the run into a `folder` that holds none, which `load` and commands read then.

        Raises:
            UserError: it holds a run, or cannot be written.
        """
        check_is_fitted(self)
        directory = RunDirectory(folder)
        if directory.read_text("config.yaml") is not None:
            raise UserError(f"{directory.uri} holds a run: choose another folder")
        directory.keep()
        for name, content in self._files.items():
            directory.write_bytes(name, content)

    @classmethod
    def load(
        cls, folder: str | Path, num_clusters: int | None = None, *, edits: bool = True
    ) -> Self:
        """The clusterer in the `folder` of a run or of `save`.

        Args:
            folder: of a run that has ended.
            num_clusters: use so many clusters, which `conr_ray.recluster` has made.
            edits: take clusters as a person has changed them with `conr_ray.browse`;
                `cluster_names_` names them.

        Raises:
            UserError: the folder holds no run that has ended, or not those clusters; or the run or
                its edits are damaged.
        """
        directory = RunDirectory(folder)
        known = directory.read_json(_CLUSTERER) or {}
        loaded = cls(preset=known.get("preset", "digits"))
        if known:
            loaded.set_params(**known["fields"])
        loaded._finish(directory, known.get("brightest"), num_clusters, edits=edits)
        loaded.num_clusters = len(loaded.cluster_centers_)
        return loaded

    def _prepared(
        self,
        X: Any,
        y: Any,
        fields: Mapping[str, Any],
        table: str,
    ) -> tuple[RunConfig, DataSet, int]:
        """The config that fits X, X itself, and its brightest possible pixel.

        `table` is the Parquet file of samples in memory.
        """
        if is_path(X):
            if y is not None:
                raise UserError("y: folders and files have their own labels: leave it out")
            source = source_of(str(X))
            config = config_for(self.preset, self.num_clusters, fields, source, None)
            return config, open_data(config.data), 255
        brightest = 255
        rows: npt.NDArray[Any]
        if is_images(X):
            side = side_for(backbone_for(self.preset, fields), fields.get("views.size"))
            rows, brightest = image_rows(X, None, side)
        else:
            rows = self._vectors(X, reset=True)
        labels, class_names = (None, None) if y is None else labels_of(y, "y")
        if labels is not None and len(labels) != len(rows):
            raise UserError(f"y has {len(labels)} classes, X {len(rows)} samples: give one each")
        source = {
            "data.source": "vectors" if rows.ndim == 2 else "parquet",
            "data.path": table,
        }
        config = config_for(self.preset, self.num_clusters, fields, source, rows.shape[1:])
        return config, data_set(rows, labels, class_names), brightest

    def _vectors(self, X: Any, *, reset: bool) -> npt.NDArray[np.float32]:
        least = LEAST_ROWS if reset else 1
        if hasattr(X, "detach"):
            X = X.detach().cpu().numpy()
        checked = validate_data(
            self, X, reset=reset, ensure_all_finite=False, dtype="numeric", ensure_min_samples=least
        )
        return finite(checked)

    def _new_rows(self, X: Any) -> npt.NDArray[Any]:
        shape = self._trained().sample_shape
        if is_path(X):
            return np.asarray(rows_in_files(str(X), self._trained().config, shape).rows)
        if len(shape) == 1:
            return self._vectors(X, reset=False)
        config = self._trained().config
        side = side_for(config.model.backbone, config.views.size)
        rows, brightest = image_rows(X, self._brightest, side)
        if self._brightest is None and brightest != 255:
            raise UserError("X: the run does not tell how to scale its pixels: give uint8")
        return rows

    def _finish(
        self,
        directory: RunDirectory,
        brightest: int | None,
        num_clusters: int | None = None,
        *,
        edits: bool = False,
    ) -> None:
        """Take over the result of a run, or `num_clusters` clusters that were made of it."""
        below = directory.parent.paths_below(directory.uri.rpartition("/")[2])
        names = [n for n in below if not n.startswith((".", *_NOT_OF_THE_RESULT))]
        found = {name: directory.read_bytes(name) for name in names}
        self._files = {name: content for name, content in found.items() if content is not None}
        self._brightest = brightest
        self._examples = {}
        self._reclustered = num_clusters
        self._edited = edits
        self._run = run = TrainedRun.load(directory, num_clusters=num_clusters, edits=edits)
        centers_cd, numbers_c = run.state.centers, run.state.cluster_numbers
        assert centers_cd is not None and numbers_c is not None
        self._files |= run.backbone_files()
        self.cluster_centers_ = centers_cd[numbers_c.argsort()].numpy()
        place: Folder = directory
        if num_clusters is not None:
            place = ClustersFolder.of(directory, num_clusters)
        assigned = read_assignments(place)
        if assigned is None:
            raise UserError(f"{directory.uri}: the run has not ended: resume it")
        self.labels_ = assigned.column("cluster").to_numpy()
        self.cluster_names_ = {}
        if run.edits is not None:
            log = run.edits.log
            self.labels_ = log.clusters(assigned.column("sample_id").to_numpy(), self.labels_)
            self.cluster_names_ = log.names()
        self.boundary_ratios_ = assigned.column("boundary_ratio").to_numpy()
        metrics = directory.read_table("metrics.parquet")
        assert metrics is not None
        self.history_ = metrics.to_pandas()
        self.n_features_in_ = int(np.prod(run.sample_shape))

    def _trained(self) -> TrainedRun:
        """The networks; after unpickling they are made anew."""
        run: TrainedRun | None = self._run
        if run is None:
            with scratch_folder("clusterer") as path:
                folder = Folder(path)
                for name, content in self._files.items():
                    folder.write_bytes(name, content)
                self._run = run = TrainedRun.load(
                    path, num_clusters=self._reclustered, edits=self._edited
                )
                # Its weights are read while they are there.
                _ = run.backbone
        return run

    @property
    def _n_features_out(self) -> int:
        return int(self.cluster_centers_.shape[1])

    def _repr_html_(self) -> str:
        """Once fitted, the clusters with their sizes and typical images."""
        if not hasattr(self, "labels_"):
            return str(estimator_html_repr(self))
        count = len(self.cluster_centers_)
        title = f"{count} clusters of {len(self.labels_):,} samples"
        return as_html(title, self.labels_, self._examples)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """What notebooks ask for first."""
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def __getstate__(self) -> dict[str, Any]:
        """All but the networks, which `_files` holds."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_run": None} if "_run" in state else state

    def __sklearn_tags__(self) -> Any:
        """It takes images too, and hands out float32."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags
