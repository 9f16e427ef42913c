"""`conr_ray.search`: the search of `python -m conr_ray.tune`, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conr_ray.command_line import (
    absolute,
    absolute_paths,
    default_storage,
    make_console,
    new_name,
)
from conr_ray.config import get_field
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.stopping import signals_handled
from conr_ray.errors import FolderTaken, NotShared, StorageError, UserError
from conr_ray.estimating.samples import is_pictures
from conr_ray.estimating.search_samples import Samples, given, kept_brightest, kept_path
from conr_ray.estimating.settings import field_of, for_few, for_samples, side_for
from conr_ray.estimator import write_settings
from conr_ray.fields import shown
from conr_ray.method.backbone_names import is_timm
from conr_ray.scaling.cluster import leave
from conr_ray.scaling.resources import ClusterOptions
from conr_ray.search_result import SearchResult
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from conr_ray.searching.trial_table import Trial
from conr_ray.storage.files import Folder
from conr_ray.whole_search import HANG_LIMIT_S, WholeSearch

# Fields of the best trial that a clusterer has from its samples, or as a setting of its own.
_NOT_OF_A_CLUSTERER = ("data.", "tracking.", "clustering.num_clusters")


def search(
    space: str | Path | Mapping[str, Any],
    images: Any = None,
    *,
    labels: Any = None,
    preset: str | None = None,
    trials: int | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    address: str | None = None,
    autoscaling: bool = False,
    cpus_per_worker: int | None = None,
    gpus_per_worker: float | None = None,
    max_concurrent: int | None = None,
    max_retries: int = 5,
    retry_failed: bool = False,
    study: str | None = None,
    trunks: str | Path | None = None,
    no_trunks: bool = False,
    hang_limit: float = HANG_LIMIT_S,
    verbose: bool = True,
    **fields: Any,
) -> SearchResult:
    """Search CoNR's hyper-parameters as `python -m conr_ray.tune` does, with the same results.

    A Ray that this process has is used and left as it is; else one is started, or that at
    `address` joined, and left at the end.

    Args:
        space: a space file, or a mapping of the same form, also with numbers and arrays of NumPy;
            see docs/searches.md.
        images: what `Clusterer.fit` takes as X; None means the data that the space or preset
            names, and of a resumed search its own. Views, network and, with few samples, batch are
            fitted to them as `Clusterer` does it, where the space sets nothing. Those in memory are
            kept in the folder, where trials and resumed searches read them.
        labels: classes (n,) of images in memory, for metrics that need them; no run trains on them.
        preset: the preset to vary, instead of the space's.
        trials: number of trials, with those of a search that is resumed; by default the space's.
        folder: where results are kept, local or s3://...; by default a new one in
            $CONR_RAY_STORAGE, else in `runs`.
        resume: go on with the search in `folder`.
        workers: workers of each trial.
        address: Ray cluster to join: auto, or host:port; by default Ray is started here.
        autoscaling: the cluster starts nodes on demand: no free resources are required now.
        cpus_per_worker: cores of each worker.
        gpus_per_worker: GPUs of each worker; by default one if there are any.
        max_concurrent: trials at once; by default as many as fit.
        max_retries: how often a trial whose processes or nodes die goes on from its checkpoint.
        retry_failed: of a resumed search, run failed trials once more.
        study: URL of a database for the Optuna study; by default it is in the folder.
        trunks: folder of the instance stages that trials share; by default in the folder.
        no_trunks: train every trial from epoch 0.
        hang_limit: seconds after which workers that hold up a trial are ended; 0 means never.
        verbose: show the trials as they end.
        **fields: fixed fields of the config, their dots written as two underscores:
            `schedule__epochs=100`.

    Raises:
        UserError: a setting, the space, the images or the folder cannot work; it is a ValueError of
            one line.
        RunFailed: no trial trained all its epochs.
        KeyboardInterrupt: the search was stopped; with `resume=True` it goes on.
    """
    space = _plain(space)
    fixed = {field_of(keyword): _plain(value) for keyword, value in fields.items()}
    if folder is None and (resume or retry_failed):
        raise UserError("resume=True needs folder, the search to resume")
    if retry_failed and not resume:
        raise UserError("retry_failed=True needs resume=True")
    if (address or "").startswith("ray://"):
        raise UserError(
            f"address={address}: a search runs on the cluster: call it there, or give the address "
            "to python -m conr_ray.tune"
        )
    if not isinstance(space, str | Path | Mapping):
        raise UserError(f"space={shown(space)}: give the path of a space file, or a mapping")
    subject = "search" if isinstance(space, Mapping) else Path(space).stem
    where = folder or f"{default_storage().rstrip('/')}/{new_name(subject)}"
    with _told_as_arguments():
        directory = SearchDirectory(Folder(absolute(str(where)).rstrip("/")), study)
        files = directory.files
        if images is None:
            if labels is not None:
                raise UserError("labels: they are of images: give these too")
            samples, read = None, _own_data(space, fixed, preset, directory, resume)
        else:
            samples = given(images, labels, files, _side(space, fixed, preset, images))
            read = _fitted(space, fixed, preset, samples)
        whole = WholeSearch(
            read,
            directory,
            ClusterOptions(address, autoscaling, cpus_per_worker, gpus_per_worker),
            trials=trials,
            workers=workers,
            max_concurrent=max_concurrent,
            max_retries=max_retries,
            retry_failed=retry_failed,
            resume=resume,
            trunks=None if trunks is None else absolute(str(trunks)),
            no_trunks=no_trunks,
            hang_limit=hang_limit,
        )
        if samples is not None and samples.data is not None:
            # Before they are written.
            whole.checked(samples.data)
            samples.keep(files)
        data = open_data(read.config().data)
        whole = whole.checked(data)
        try:
            console = make_console(quiet=not verbose)
            found = whole.run(data, console, signals_handled())
        except KeyboardInterrupt:
            again = f"folder={directory.uri!r}, resume=True"
            raise KeyboardInterrupt(f"to go on, search again with {again}") from None
        finally:
            leave()
        brightest = kept_brightest(files) if samples is None else samples.brightest
        _describe(found[0], whole.space, directory, brightest)
    return SearchResult(directory.uri, study)


def _plain(value: Any) -> Any:
    """`value` with numbers and arrays of NumPy as those of Python, which files hold."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _own_data(
    space: str | Path | Mapping[str, Any],
    fixed: Mapping[str, Any],
    preset: str | None,
    directory: SearchDirectory,
    resume: bool,
) -> SearchSpace:
    """The space on the data that it names; of a search to resume, on what it has been on."""
    before = directory.read_space() if resume else None
    if before is not None:
        known = {**before.fixed, **kept_path(directory.files)}
        return load_space(space, fixed, preset, lambda _: known)
    read = load_space(space, fixed, preset)
    return load_space(space, {**fixed, **absolute_paths(read.config(), read.search)}, preset)


def _on(
    space: str | Path | Mapping[str, Any],
    fixed: Mapping[str, Any],
    preset: str | None,
    source: Mapping[str, Any],
    shape: tuple[int, ...] | None,
) -> tuple[SearchSpace, Callable[[str], dict[str, Any]]]:
    """The space on samples, and what makes its defaults of a preset's name; see `for_samples`."""
    backbone: str | None = fixed.get("model.backbone")

    def defaults(preset: str) -> dict[str, Any]:
        return for_samples(preset, source, shape, backbone)

    read = load_space(space, fixed, preset, defaults)
    if (own := read.config().model.backbone) != backbone and is_timm(own):
        # The space itself, or its preset, has chosen it.
        backbone = own
        read = load_space(space, fixed, preset, defaults)
    return read, defaults


def _side(
    space: str | Path | Mapping[str, Any],
    fixed: Mapping[str, Any],
    preset: str | None,
    images: Any,
) -> int:
    """Side of the squares that pictures of several sizes become; 1 for other samples."""
    if not is_pictures(images):
        return 1
    source = {"data.source": "parquet", "data.path": "samples.parquet"}
    config = _on(space, {**source, **fixed}, preset, source, None)[0].config()
    return side_for(config.model.backbone, config.views.size)


def _fitted(
    space: str | Path | Mapping[str, Any],
    fixed: Mapping[str, Any],
    preset: str | None,
    samples: Samples,
) -> SearchSpace:
    """The space on these samples, fitted to them as a clusterer is."""
    fixed = {**samples.source, **fixed}
    read, defaults = _on(space, fixed, preset, samples.source, samples.shape)
    config = read.config()
    data = samples.data or open_data(config.data)
    fitting = {
        **for_few(config, data.num_rows, {**read.fixed, **read.search}),
        **absolute_paths(config, ("data.path", *read.search)),
    }
    changed = {name: value for name, value in fitting.items() if get_field(config, name) != value}
    if not changed:
        return read
    return load_space(space, {**fixed, **changed}, preset, defaults)


def _describe(
    trial: Trial, space: SearchSpace, directory: SearchDirectory, brightest: int | None
) -> None:
    """Write for a trial what `Clusterer.load` takes its settings from."""
    config = space.config(trial.point)
    fields = {
        name.replace(".", "__"): get_field(config, name)
        for name in (*space.fixed, *space.search)
        if not name.startswith(_NOT_OF_A_CLUSTERER)
    }
    run = RunDirectory(f"{directory.uri}/trials/{trial.trial_id}")
    write_settings(run, space.preset, fields, brightest)


@contextmanager
def _told_as_arguments() -> Iterator[None]:
    """Have errors about a folder name its argument, and the remedy."""
    try:
        yield
    except FolderTaken as error:
        resume = "give resume=True, or " if error.same_run else ""
        raise UserError(f"folder: {error}: {resume}choose another one") from None
    except StorageError as error:
        shared = isinstance(error, NotShared)
        remedy = ": give s3://bucket/folder, or a folder that all nodes mount" if shared else ""
        raise UserError(f"{error.setting or 'folder'}: {error}{remedy}") from None
