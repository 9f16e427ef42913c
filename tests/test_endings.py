"""What `train` and `tune` say at their end: how good, where the clusters are, what is next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import conr_ray.train
import conr_ray.tune
from conr_ray.command_line import make_console
from conr_ray.searching.trial_table import read_files, read_trials
from tests.reporting.made_searches import make_search
from tests.tiny_runs import TINY, as_settings


def test_the_end_of_train_names_the_score_without_labels_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {**TINY, "data.label_column": "null", "clustering.num_clusters": 4}
    command = ["--preset", "digits", "--local", "--storage", str(tmp_path), "--name", "my run"]
    conr_ray.train.main([*command, *as_settings(fields)])
    *_, score, assignments, following, short = capsys.readouterr().out.splitlines()
    assert score.startswith("NEIGHBOR_CONSISTENCY 0.") and "SILHOUETTE" not in score
    assert assignments.startswith(f"assignments: {tmp_path}/my run/assignments.parquet")
    assert "clusters.csv" in assignments and (tmp_path / "my run/clusters.csv").exists()
    assert f"conr_ray.predict --run '{tmp_path}/my run' --images" in following
    assert short.startswith("a short run")


def test_the_end_of_tune_names_the_assignments_of_the_best_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_search(tmp_path / "mine", ("complete",) * 4)
    space = directory.read_space()
    assert space is not None

    def ending() -> tuple[str, str]:
        """The best trial, and what is said."""
        trials = read_trials(directory.open_study(space), space, directory.uri, read_files)
        conr_ray.tune._print_result(space, directory, trials, make_console())
        return trials[0].trial_id, capsys.readouterr().out

    best, told = ending()
    assert f"assignments: {directory.uri}/trials/{best}/assignments.parquet" in told
    assert f"--run {directory.uri}/trials/{best} --images" in told and "train it" not in told
    # The best one that is still there takes its place.
    shutil.rmtree(tmp_path / "mine/trials" / best)
    second, told = ending()
    assert second != best and f"--run {directory.uri}/trials/{second} --images" in told
    assert "lost" in told
