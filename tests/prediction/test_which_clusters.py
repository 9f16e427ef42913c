"""Which clusters `predict` applies: of a run, its best trial in a search, or reclustered ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import conr_ray.predict
import conr_ray.recluster
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.searching.best_run import best_run
from tests.prediction.conftest import about, predict, rows_of
from tests.reporting.made_searches import make_search


def _make_search(folder: Path | str, run: str) -> list[RunDirectory]:
    """The trials of a search, the best first; the first two hold the networks of `run`."""
    search = make_search(folder, metric="nmi")
    trials = [RunDirectory(f"{search.uri}/trials/{number:04d}-made") for number in range(6)]
    trials.sort(key=lambda trial: -float(trial.metric_rows()[-1]["nmi"] or 0))
    own = RunDirectory(run)
    for trial in trials[:2]:
        for name in ("config.yaml", "assignments.parquet"):
            trial.write_bytes(name, own.read_bytes(name) or b"")
        for name in own.paths_below("checkpoints"):
            trial.write_bytes(f"checkpoints/{name}", own.read_bytes(f"checkpoints/{name}") or b"")
    return trials


def _predict(search: str, images: Path, out: Path) -> None:
    words = ["--best-of", search, "--images", str(images), "--out", str(out), "--local"]
    conr_ray.predict.main(words)


def test_the_best_trial_predicts_and_if_its_folder_is_gone_the_next(
    folder_run: tuple[str, Path], copied: Path, tmp_path: Path
) -> None:
    search = str(tmp_path / "search")
    best, second, *_ = _make_search(search, folder_run[0])
    _predict(search, copied, tmp_path / "out")
    predict(folder_run[0], str(copied), tmp_path / "own")
    assert about(tmp_path / "out")["run"] == best.uri
    rows = [[{**row, "mtime_ns": 0} for row in rows_of(tmp_path / n)] for n in ("out", "own")]
    assert rows[0] == rows[1]
    best.parent.delete_folder(best.uri.rpartition("/")[2])
    with pytest.raises(UserError, match="holds predictions of another run"):
        _predict(search, copied, tmp_path / "out")
    _predict(search, copied, tmp_path / "second")
    assert about(tmp_path / "second")["run"] == second.uri


def test_a_search_in_a_bucket_is_read(
    folder_run: tuple[str, Path], copied: Path, tmp_path: Path, s3_bucket: str
) -> None:
    best, *_ = _make_search(f"{s3_bucket}/search", folder_run[0])
    _predict(f"{s3_bucket}/search/", copied, tmp_path / "out")
    assert about(tmp_path / "out")["run"] == best.uri == best_run(f"{s3_bucket}/search", None)[0]
    assert len(rows_of(tmp_path / "out")) == 40


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (("running", "failed", "stopped"), "no trial has ended yet: resume the search"),
        (None, "it is not a search: give the folder of one"),
    ],
)
def test_without_a_trial_that_has_ended_there_is_a_line(
    states: tuple[str, ...] | None, message: str, copied: Path, tmp_path: Path
) -> None:
    search = tmp_path / "search"
    if states is None:
        search.mkdir()
    else:
        make_search(search, states)
    with pytest.raises(UserError, match=f"^--best-of={search}: {message}$"):
        _predict(str(search), copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reclustered_clusters_are_applied_and_kept_apart(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, images, out = f"{tmp_path}/run", str(folder_run[1]), tmp_path / "out"
    shutil.copytree(folder_run[0], run)
    remedy = f"make them with python -m conr_ray.recluster --run {run} --clusters 4"
    with pytest.raises(UserError, match=re.escape(f"recluster/4 holds no clusters: {remedy}")):
        predict(run, images, out, "--clusters", "4")
    assert not out.exists()
    conr_ray.recluster.main(["--run", run, "--clusters", "4"])
    predict(run, images, out, "--clusters", "4")
    told = pq.read_table(f"{run}/recluster/4/assignments.parquet").to_pylist()
    found = {row["path"]: row["cluster"] for row in rows_of(out)}
    assert found == {row["path"]: row["cluster"] for row in told}
    assert set(found.values()) == set(range(4)) and about(out)["num_clusters"] == 4
    for options, message in (
        ((), "among 4 reclustered clusters (--clusters), not the run's own clusters: choose"),
        (("--all",), "among 4 reclustered clusters (--clusters), not the run's own clusters"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            predict(run, images, out, *options)
    predict(run, images, tmp_path / "own")
    with pytest.raises(UserError, match=r"among the run's own clusters, not 4 reclustered"):
        predict(run, images, tmp_path / "own", "--clusters", "4")
