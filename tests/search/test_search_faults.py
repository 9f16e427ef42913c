"""A search whose driver is killed, or whose disk fails, at any operation ends as any other.

Trials are played: their processes' files and rows are known, and their own disk does not fail.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import StorageError
from conr_ray.reporting.live_report import LiveReport
from conr_ray.scaling.resources import WorkerResources
from conr_ray.searching import run_search as running
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study_searcher import EPOCHS, LEG, POINT, StudySearcher, num_left
from conr_ray.searching.trial import TrialRunner
from conr_ray.searching.trial_attributes import FAILURE, TRIAL_ID
from conr_ray.storage import disk
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.reporting.made_searches import made_rows
from tests.search.test_space import K1, space_of
from tests.storage.faulty import FAULTS, FaultyDisk, Killed, PowerLoss, away

EPOCHS_EACH, FAILING_K1 = 4, 9
SEARCHES: dict[str, dict[str, Any]] = {
    "points": {"scheduler": None, "trials": 3, "first": [{K1: 5}, {K1: FAILING_K1}, {K1: 12}]},
    "population": {
        "trials": 2,
        "scheduler": {"kind": "pbt", "grace_epochs": 2, "interval_epochs": 2},
    },
}
# So many operations in a row fail of a disk that does not recover at once.
FOR_A_WHILE = 4


@dataclass(frozen=True)
class Outcome:
    """What a search leaves: trials of the study, rows of the table, and files by name."""

    trials: list[Any]
    table: list[dict[str, Any]]
    files: list[str]
    best: bytes

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        study = SearchDirectory(Folder(folder)).read_study()
        assert study is not None
        # A torn journal is kept beside the one that it was cut from.
        files = [
            path for path in folder.rglob("*") if path.is_file() and ".damaged-" not in str(path)
        ]
        return cls(
            [
                (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs)
                for t in study.trials
            ],
            pq.read_table(folder / "trials.parquet").to_pylist(),
            sorted(str(path.relative_to(folder)) for path in files),
            (folder / "best.yaml").read_bytes(),
        )


def play(runner: TrialRunner, study: optuna.Study, *_: object) -> None:
    """Stands for Tune: one trial after another."""
    searcher = StudySearcher(runner.space, study)
    while num_left(runner.space, study, runner.space.trials):
        # Its own ids differ from one attempt to the next.
        given = searcher.suggest("played")
        assert isinstance(given, dict)
        last: dict[str, Any] = {EPOCHS: 0, "nmi": math.nan, FAILURE: "no luck"}
        for row in _trained(runner, given):
            if "nmi" in row:
                last = {EPOCHS: row["epoch"] + 1, "nmi": row["nmi"]}
                assert not searcher.should_stop("played", last)
        searcher.on_trial_complete("played", last)


def _trained(runner: TrialRunner, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Write what a trial's process writes; its rows, none if it fails."""
    directory = RunDirectory(f"{runner.search.uri}/trials/{given[TRIAL_ID]}", runner.search)
    leg, k1 = given.get(LEG), given[POINT][K1]
    rows = made_rows(EPOCHS_EACH, 1, seed=k1)[: leg["end"] if leg else None]

    def write() -> None:
        directory.check_room()
        directory.claim(runner.space.config(given[POINT]), resume=True)
        directory.write_metrics(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "os", getattr(disk.os, "healthy", os))
        disk.patiently(write, directory.uri, (StorageError,))
    return [] if k1 == FAILING_K1 else rows[leg["begin"] if leg else 0 :]


def attempt(folder: Path, space: SearchSpace) -> None:
    """What the command does, from its claim to its results."""
    directory = SearchDirectory(Folder(folder))
    directory.claim(space, resume=directory.read_space() is not None)
    with directory.held():
        run_search(
            space,
            directory,
            WorkerResources(),
            WandbSettings("off"),
            Console(file=io.StringIO()),
            num_trials=space.trials,
            fingerprint="images",
        )


@dataclass
class Searches:
    """A search that nothing disturbed, with the number of its operations; others equal it."""

    space: SearchSpace
    folder: Path
    undisturbed: Outcome
    count: int

    def check(self, kind: str, fails_at: int, lasts: int = 1) -> None:
        """Search with a fault, then resume."""
        # The name of a search is in its files.
        folder = self.folder / f"{kind}-{fails_at}-{lasts}" / "search"

        def wait(_: float) -> None:
            # Who waits for a folder that is away gets it back.
            assert not folder.exists(), "something was written in its place"
            away(folder).rename(folder)

        fault = FAULTS[kind](folder)
        with pytest.MonkeyPatch.context() as patch:
            faulty = FaultyDisk(fails_at, fault, lasts)
            patch.setattr(disk, "os", faulty)
            sleep = wait if kind == "gone" else lambda _: None
            patch.setattr(disk, "time", SimpleNamespace(sleep=sleep))
            try:
                attempt(folder, self.space)
            except (StorageError, Killed) as error:
                assert "\n" not in str(error), (kind, fails_at)
            assert faulty.count >= fails_at, (kind, fails_at)
        if away(folder).exists():
            wait(0.0)
        if isinstance(fault, PowerLoss):
            # Lost is at most what one change was about to do.
            assert len(fault.restore()) <= 1, (kind, fails_at)
        attempt(folder, self.space)
        assert Outcome.of(folder) == self.undisturbed, (kind, fails_at)


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The undisturbed search of a name."""
    made: dict[str, Searches] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_run_trials", play)
        patch.setattr(running, "room_for", lambda _: 1)
        # Nor are there processes to watch.
        patch.setattr(running, "Watch", lambda *_: SimpleNamespace(pulse=None))

        def of(name: str) -> Searches:
            if name not in made:
                folder = tmp_path_factory.mktemp(name)
                fixed = {"schedule.epochs": EPOCHS_EACH, "schedule.group_start": 1}
                fixed |= {"schedule.warmup_epochs": 0, "schedule.relax_epochs": 1}
                space = space_of(
                    folder, {K1: {"int": [5, 20]}}, metric="nmi", fixed=fixed, **SEARCHES[name]
                )
                counting = FaultyDisk()
                with pytest.MonkeyPatch.context() as counted:
                    counted.setattr(disk, "os", counting)
                    attempt(folder / "undisturbed" / "search", space)
                outcome = Outcome.of(folder / "undisturbed" / "search")
                made[name] = Searches(space, folder, outcome, counting.count)
            return made[name]

        yield of


def test_played_searches_are_whole(searches: Callable[[str], Searches]) -> None:
    points = searches("points").undisturbed
    assert sorted(row["state"] for row in points.table) == ["complete", "complete", "failed"]
    legs = searches("population").undisturbed
    states = ["complete", "complete", "continued", "stopped"]
    assert sorted(row["state"] for row in legs.table) == states


# Every so many operations, where not all are tried.
STRIDE = 61


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", FAULTS)
def test_some_operations_fail(kind: str, name: str, searches: Callable[[str], Searches]) -> None:
    whole = searches(name)
    first = 1 + 5 * list(FAULTS).index(kind)
    for fails_at in range(first, whole.count + 1, STRIDE):
        whole.check(kind, fails_at)


@pytest.mark.long
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", FAULTS)
def test_every_operation_fails(kind: str, name: str, searches: Callable[[str], Searches]) -> None:
    whole = searches(name)
    for fails_at in range(1, whole.count + 1):
        whole.check(kind, fails_at)


@pytest.mark.long
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", ["no space", "error"])
def test_every_operation_fails_for_a_while(
    kind: str, name: str, searches: Callable[[str], Searches]
) -> None:
    whole = searches(name)
    for fails_at in range(1, whole.count + 1):
        whole.check(kind, fails_at, FOR_A_WHILE)


def test_an_entry_that_could_be_neither_synced_nor_cut_off_is_there_once(
    searches: Callable[[str], Searches],
) -> None:
    whole = searches("points")
    # Two operations in a row, among them the sync of an entry and the cut that follows.
    for fails_at in range(whole.count // 2, whole.count // 2 + 10):
        whole.check("error", fails_at, 2)


@pytest.mark.parametrize("kind", ["no space", "killed"])
def test_a_report_that_cannot_be_written_is_written_next_time(
    kind: str, tmp_path: Path, searches: Callable[[str], Searches], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = SearchDirectory(Folder(searches("points").folder / "undisturbed" / "search"))
    report = Path(directory.uri, "report.html")
    # The write and the rename.
    for fails_at in (2, 4):
        report.write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(disk, "os", FaultyDisk(fails_at, FAULTS[kind](tmp_path)))
            try:
                with LiveReport(directory):
                    pass
            except Killed:
                assert kind == "killed"
        assert report.read_text() == "old"
        with LiveReport(directory):
            pass
        assert "</html>" in report.read_text()
        report.unlink()


def test_damaged_metrics_of_a_trial_that_has_ended_are_written_anew(
    tmp_path: Path, searches: Callable[[str], Searches], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = searches("points")
    folder = tmp_path / "search"
    attempt(folder, whole.space)
    for trial in (folder / "trials").iterdir():
        run = RunDirectory(trial)
        rows: Any = run.metric_rows()
        run.save_checkpoint(EPOCHS_EACH, {"epoch": EPOCHS_EACH, "history": rows}, {}, keep=1)
        data = bytearray((trial / "metrics.parquet").read_bytes())
        data[len(data) // 3] ^= 1
        (trial / "metrics.parquet").write_bytes(data[:-3])
    attempt(folder, whole.space)
    assert capsys.readouterr().err.count(": written anew from a checkpoint\n") == 3
    assert Outcome.of(folder).table == whole.undisturbed.table
