"""`Clusterer`: its results are the commands', and it keeps scikit-learn's conventions."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import conr_ray.recluster
from conr_ray import Clusterer, TrainedRun, UserError, clustering_accuracy
from conr_ray.config import load_preset
from conr_ray.data.store import open_data
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.scaling.resources import ClusterOptions, local_resources
from conr_ray.scaling.worker import run_here
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.tiny_runs import SHORT, VECTORS, without_times

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Small networks are slower on several."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    yield
    os.sched_setaffinity(0, usable)


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_digits()


@pytest.fixture(scope="module")
def fitted(digits: Any) -> Clusterer:
    return Clusterer(verbose=False, **SHORT).fit(digits.images, digits.target)


def test_fit_gives_the_bits_of_the_command(digits: Any, fitted: Clusterer, tmp_path: Path) -> None:
    fields = {name.replace("__", "."): value for name, value in SHORT.items()}
    config, directory = load_preset("digits", fields), RunDirectory(tmp_path)
    off = WandbSettings("off")
    run_here(config, directory, local_resources(ClusterOptions(), 1), off, Observer())
    rows = directory.metric_rows()
    table = RunDirectory(tmp_path).read_table("assignments.parquet")
    np.testing.assert_array_equal(fitted.labels_, table["cluster"].to_numpy())
    np.testing.assert_array_equal(fitted.boundary_ratios_, table["boundary_ratio"].to_numpy())
    run = TrainedRun.load(tmp_path)
    np.testing.assert_array_equal(fitted.cluster_centers_, run.state.centers)
    history = [
        {k: v for k, v in row.items() if v == v} for row in fitted.history_.to_dict("records")
    ]
    assert without_times(history) == without_times(rows)
    # Without classes there are fewer metrics, and the same clusters.
    again = Clusterer(verbose=False, **SHORT).fit_predict(digits.images)
    np.testing.assert_array_equal(again, fitted.labels_)


def test_a_fitted_one_places_saves_and_pickles(
    digits: Any, fitted: Clusterer, tmp_path: Path
) -> None:
    np.testing.assert_array_equal(fitted.predict(digits.images), fitted.labels_)
    embeddings = fitted.transform(digits.images[:20])
    assert embeddings.shape == (20, 8) and fitted.n_features_in_ == 64
    # A dark image alone is scaled as the images of fit were.
    dark = np.minimum(digits.images[:1], 1)
    as_bytes = np.round(dark * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(fitted.transform(dark), fitted.transform(as_bytes))
    assert fitted.score(digits.images) == pytest.approx(
        fitted.history_["neighbor_consistency"].iloc[-1], abs=1e-6
    )
    fitted.save(tmp_path / "saved")
    for other in (pickle.loads(pickle.dumps(fitted)), Clusterer.load(tmp_path / "saved")):
        np.testing.assert_array_equal(other.labels_, fitted.labels_)
        np.testing.assert_array_equal(other.transform(digits.images[:20]), embeddings)
        assert other.get_params() == {**fitted.get_params(), "verbose": other.verbose}
    with pytest.raises(UserError, match="choose another folder"):
        fitted.save(tmp_path / "saved")


def test_a_kept_folder_is_a_run_that_goes_on(digits: Any, tmp_path: Path) -> None:
    images, folder = digits.images[:100], str(tmp_path / "kept")
    first = Clusterer(folder=folder, verbose=False, **SHORT).fit(images)
    again = Clusterer(folder=folder, verbose=False, **SHORT).fit(images)
    np.testing.assert_array_equal(again.labels_, first.labels_)
    longer = Clusterer(folder=folder, verbose=False, **{**SHORT, "schedule__epochs": 3}).fit(images)
    assert len(longer.history_) == 3
    # The samples lie beside it, so that commands go on as well.
    config = RunDirectory(folder).read_config()
    assert config is not None
    fingerprint = RunDirectory(folder).load_checkpoint(3, torch.device("cpu"))["data_fingerprint"]
    assert open_data(config.data).fingerprint == fingerprint
    with pytest.raises(UserError, match="choose another folder"):
        Clusterer(5, folder=folder, verbose=False, **SHORT).fit(images)


def test_other_clusters_of_a_run_are_loaded(digits: Any, tmp_path: Path) -> None:
    folder, images = str(tmp_path / "kept"), digits.images[:100]
    own = Clusterer(folder=folder, verbose=False, **SHORT).fit(images)
    with pytest.raises(UserError, match=r"recluster/4 holds no clusters"):
        Clusterer.load(folder, num_clusters=4)
    conr_ray.recluster.main(["--run", folder, "--clusters", "4"])
    few = Clusterer.load(folder, num_clusters=4)
    assert few.num_clusters == len(few.cluster_centers_) == 4 and set(few.labels_) == set(range(4))
    for one in (few, pickle.loads(pickle.dumps(few))):
        np.testing.assert_array_equal(one.predict(images), few.labels_)
    np.testing.assert_array_equal(Clusterer.load(folder).labels_, own.labels_)


def test_images_in_any_form_are_the_same_clusters(digits: Any, tmp_path: Path) -> None:
    pixels = np.round(digits.images[:60] * 255 / 16).astype(np.uint8)
    pictures = [Image.fromarray(image) for image in pixels]
    for number, picture in enumerate(pictures):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture.save(tmp_path / "images" / f"{number:02}.png")

    def clusterer(**fields: Any) -> Clusterer:
        return Clusterer(3, verbose=False, **{**SHORT, **fields})

    first = clusterer().fit(pixels)
    forms = [pixels[:, None], pixels[..., None], torch.from_numpy(pixels), pictures]
    for form in [*forms, digits.images[:60]]:
        np.testing.assert_array_equal(clusterer().fit_predict(form), first.labels_)
    folder = str(tmp_path / "images")
    as_stored = clusterer(data__stored_size=8, views__size=8).fit(folder)
    np.testing.assert_array_equal(as_stored.labels_, first.labels_)
    np.testing.assert_array_equal(first.predict(folder), first.labels_)
    assert len(clusterer().fit_predict(tmp_path / "images")) == 60


def test_vectors_are_clustered_and_nan_is_refused() -> None:
    clusterer = Clusterer(3, verbose=False, **SHORT).fit(VECTORS)
    np.testing.assert_array_equal(clusterer.predict(VECTORS), clusterer.labels_)
    broken = VECTORS.copy()
    broken[7, 2] = np.nan
    for call in (clusterer.fit, clusterer.predict):
        with pytest.raises(UserError, match="row 7 holds NaN"):
            call(broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_clusters": None}, "give the number of clusters"),
        ({"data__limit": 20}, "a clusterer is of all samples"),
        ({"num_clusters": 61}, "exceeds the 60 vectors"),
        ({"preset": "nothing"}, "no such preset"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Clusterer(**{"num_clusters": 3, "verbose": False, **SHORT, **fields}).fit(VECTORS)


def test_unknown_fields_and_few_samples_are_refused(fitted: Clusterer) -> None:
    with pytest.raises(UserError, match="did you mean"):
        Clusterer(optim__lrr=1)
    with pytest.raises(UserError, match="did you mean"):
        Clusterer().set_params(optim__lrr=1)
    with pytest.raises(UserError, match="give 10 or more"):
        Clusterer(2, verbose=False).fit(np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(UserError, match="scale them alike"):
        fitted.predict(np.full((2, 8, 8), 200.0))


def test_it_clones_and_goes_into_a_pipeline_and_a_grid() -> None:
    clusterer = Clusterer(3, verbose=False, **SHORT).set_params(optim__lr=0.05, num_clusters=2)
    copy = clone(clusterer)
    assert copy.get_params() == clusterer.get_params() and copy.get_params()["optim__lr"] == 0.05
    pipeline = Pipeline([("scale", StandardScaler()), ("cluster", clusterer)])
    grid = GridSearchCV(pipeline, {"cluster__optim__lr": [0.01, 0.1]}, cv=2, error_score="raise")
    grid.fit(VECTORS)
    assert set(grid.cv_results_["param_cluster__optim__lr"]) == {0.01, 0.1}
    assert 0 <= grid.best_score_ <= 1
    assert grid.predict(VECTORS).shape == (60,)


def test_a_notebook_shows_the_clusters(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(20):
        name = "<b>&.png" if number == 0 else f"{number}.png"
        picture = Image.fromarray(draw.integers(0, 256, (8, 8), np.uint8))
        picture.save(tmp_path / name)
    clusterer = Clusterer(2, verbose=False, **SHORT)
    assert "nearest to it" not in clusterer._repr_html_()
    clusterer.fit(tmp_path)
    page = clusterer._repr_mimebundle_()["text/html"]
    shown = sum(min(6, int((clusterer.labels_ == c).sum())) for c in range(2))
    assert page.count("data:image/png;base64,") == shown
    assert "<b>" not in page and "2 clusters of 20 samples" in page
    # The folder's images are stored larger than the views of digits.
    assert TrainedRun.load(_saved(clusterer, tmp_path)).sample_shape == (1, 32, 32)


def _saved(clusterer: Clusterer, folder: Path) -> Path:
    clusterer.save(folder / "saved")
    return folder / "saved"


def test_the_bar_is_shown_unless_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    Clusterer(3, **SHORT).fit(VECTORS)
    assert "epoch 2/2" in capsys.readouterr().out
    Clusterer(3, verbose=False, **SHORT).fit(VECTORS)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_checks_of_scikit_learn_hold() -> None:
    smallest = {
        **{"model__widths": [4], "model__head_hidden_dim": 4, "model__embedding_dim": 4},
        **{"clustering__restarts": 1, "evaluation__neighbors": False},
        # Networks of 4 units on noise collapse, which is no matter of conventions.
        "evaluation__on_collapse": "warn",
    }
    clusterer = Clusterer(3, verbose=False, **{**SHORT, **smallest})
    reasons = {
        "check_do_not_raise_errors_in_init_or_set_params": "it passes the name of **fields itself "
        "as a setting; a name that is no field of the config is refused at once"
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            clusterer, expected_failed_checks=reasons, on_skip=None, on_fail="raise"
        )
    passed = [one["check_name"] for one in found if one["status"] == "passed"]
    others = {one["check_name"] for one in found} - set(passed)
    assert len(passed) > 40
    # The array API is checked where SCIPY_ARRAY_API is set.
    assert others == {*reasons, "check_array_api_input"}


def examples(page: str) -> list[str]:
    """The blocks of Python on a page of the repository."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run_short(blocks: list[str]) -> dict[str, Any]:
    """Run blocks one after another with a few epochs, which show that each line works."""
    scope: dict[str, Any] = {}
    frozen = {"schedule__epochs": 2, "views__size": 32}

    def shortened(call: re.Match[str]) -> str:
        fields = frozen if 'preset="photos"' in call[1] else SHORT
        short = ", ".join(f"{name}={value}" for name, value in fields.items())
        return f"Clusterer({short}, num_clusters={call[1]}"

    for block in blocks:
        block = block.replace("num_clusters=", "")
        exec(re.sub(r"Clusterer\((?=\w)([^)]*)", shortened, block), scope)
    return scope


def test_the_examples_of_the_page_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(digits.images[:40]):
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(
            tmp_path / "photos" / f"{number}.png"
        )
    # A search needs Ray: see search/test_from_python.py.
    blocks = [block for block in examples("docs/python.md") if "search(" not in block]
    assert len(blocks) >= 5
    scope = run_short(blocks)
    assert len(scope["labels"]) == 1797
    assert (scope["clusters"].numpy() == scope["labels"]).all()
    assert scope["rows"].shape == (1797, 10)


def test_the_first_lines_for_a_newcomer_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = examples("README.md")
    assert len([line for line in block.splitlines() if line]) <= 6
    scope = run_short([block])
    saved = Clusterer.load(tmp_path / "my_digits")
    np.testing.assert_array_equal(saved.labels_, scope["clusterer"].labels_)


@pytest.mark.long
def test_the_first_lines_for_a_newcomer_find_the_digits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = examples("README.md")
    exec(block, scope := {})
    assert len(scope["clusterer"].history_) == load_preset("digits").schedule.epochs
    # Of three seeds, docs/benchmarks.md has 0.946 with a deviation of 0.006.
    assert clustering_accuracy(digits.target, scope["clusterer"].labels_) > 0.91
