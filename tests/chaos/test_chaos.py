"""Whatever strikes a search, when it is resumed until it ends, it ends as if nothing had.

A seed decides where results lie, how many workers a trial has, and what strikes.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from optuna.trial import TrialState

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.trial_attributes import FAILURE
from conr_ray.storage.files import Folder
from tests.chaos.adversary import Adversary
from tests.chaos.attacked import EPOCHS, FIXED, K1, POINTS, Attacked
from tests.chaos.places import Bucket, Disk, Place, SmallDisk, Tracker
from tests.tiny_runs import run_here, tiny_config, without_times
from tests.waiting import until

pytestmark = pytest.mark.slow
# Seeds are numbered so that all places and numbers of workers take turns.
PLACES = (SmallDisk, Disk, Bucket) if os.geteuid() == 0 else (Disk, Bucket)
# Processes that were told to end, and a cluster whose driver is gone, have so long.
END_S = 90.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def undisturbed(workers: int) -> dict[int, list[dict[str, Any]]]:
    """Rows of each trial by its k1, of a search that nothing strikes."""
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    try:
        if workers == 1:
            fixed = {name.replace(".", "__"): value for name, value in FIXED.items()}
            return {
                k1: without_times(
                    run_here(tiny_config(**fixed, neighborhood__k1=k1), folder / str(k1))
                )
                for k1 in POINTS
            }
        attacked = Attacked(folder, str(folder / "search"), workers, {})
        attacked.finish()
        return {k1: rows for k1, rows in rows_of(attacked.uri).values()}
    finally:
        shutil.rmtree(folder)


def rows_of(uri: str) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    """k1 and rows of each trial, by its folder."""
    found = {}
    for name in Folder(uri).folder_names("trials"):
        directory = RunDirectory(f"{uri}/trials/{name}")
        config = directory.read_config()
        assert config is not None
        found[name] = config.neighborhood.k1, without_times(directory.metric_rows())
    return found


def check(attacked: Attacked, place: Place, workers: int) -> None:
    """The search has ended as if nothing had been, and has left nothing behind."""
    until(lambda: not attacked.processes(), END_S)
    directory = SearchDirectory(Folder(attacked.uri))
    study = directory.read_study()
    assert study is not None
    states = [(t.state, t.user_attrs.get(FAILURE)) for t in study.trials]
    assert states == [(TrialState.COMPLETE, None)] * len(POINTS)
    trials = rows_of(attacked.uri)
    assert sorted(t.user_attrs["trial_id"] for t in study.trials) == sorted(trials)
    assert dict(trials.values()) == undisturbed(workers)
    for trial in study.trials:
        k1, rows = trials[trial.user_attrs["trial_id"]]
        assert (trial.params[K1], trial.value) == (k1, rows[-1]["nmi"])
        values = {row["epoch"] + 1: row["nmi"] for row in rows}
        assert len(values) == EPOCHS
        assert all(values[step] == value for step, value in trial.intermediate_values.items())
    table = directory.files.read_table("trials.parquet")
    assert table is not None
    rows = table.to_pylist()
    assert {row["trial_id"]: row["state"] for row in rows} == dict.fromkeys(trials, "complete")
    assert rows[0]["trial_id"] == study.best_trial.user_attrs["trial_id"]
    assert str(rows[0]["trial_id"]) in (directory.files.read_text("best.yaml") or "")
    assert directory.files.has("report.html")
    assert strays(attacked, place) == []
    for output in attacked.outputs:
        assert "Traceback" not in output.read_text(errors="replace"), output.read_text()


def strays(attacked: Attacked, place: Place) -> list[str]:
    """Files that no search needs once it has ended."""
    files, root = pafs.FileSystem.from_uri(attacked.uri)
    names = [info.path for info in files.get_file_info(pafs.FileSelector(root, recursive=True))]
    unfinished = [n for n in names if n.endswith(".part") or "/.room" in n or "/.seen" in n]
    temporary = [str(path) for path in (attacked.scratch / "tmp").glob("conr_ray*/scratch/*")]
    temporary += [str(path) for path in (attacked.scratch / "tmp").glob("conr_ray_*")]
    temporary += [str(path) for path in attacked.scratch.glob("conr_ray*/ray/temporary_*")]
    sockets = [str(path) for path in attacked.scratch.rglob("*") if path.is_socket()]
    return [*unfinished, *temporary, *sockets]


def attack(seed: int, num_blows: int, scratch: Path) -> list[str]:
    """Attack a search, and check how it ends; what was done."""
    kind, workers = PLACES[seed % len(PLACES)], 1 + seed // len(PLACES) % 2
    place, tracker = kind(scratch), Tracker() if seed % 4 == 3 else None
    environment = place.environment | (tracker.environment if tracker else {})
    attacked = Attacked(scratch, f"{place.uri}/search", workers, environment)
    adversary = Adversary(seed, attacked, place, tracker)
    try:
        adversary.attack(num_blows)
        attacked.finish()
        check(attacked, place, workers)
    except BaseException as error:
        error.add_note(f"seed {seed}, {kind.__name__}, {workers} workers: {adversary.done}")
        error.add_note(f"commands ended: {attacked.ends}")
        told = [*attacked.outputs, *scratch.glob("results/search/library.log")]
        error.add_note("".join(path.read_text(errors="replace") for path in told))
        raise
    finally:
        attacked.lose_machine()
        place.close()
        if tracker is not None:
            tracker.close()
    return adversary.done


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # A place may set these.
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def test_a_search_that_is_struck_ends_as_any_other(scratch: Path) -> None:
    attack(0, 3, scratch)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_a_search_that_is_struck_often_ends_as_any_other(seed: int, scratch: Path) -> None:
    done = attack(seed, 5, scratch)
    print(f"seed {seed}: {', '.join(done)}")
