from __future__ import annotations

import optuna
import pytest
from optuna.storages import JournalStorage

from conr_ray.errors import UserError
from conr_ray.searching import bucket_journal
from conr_ray.searching.bucket_journal import BucketJournal
from conr_ray.storage.files import Folder


def open_study(directory: Folder) -> optuna.Study:
    storage = JournalStorage(BucketJournal(directory, "study.journal"))
    sampler = optuna.samplers.RandomSampler(0)
    return optuna.create_study(
        storage=storage, study_name="search", sampler=sampler, load_if_exists=True
    )


def load(directory: Folder) -> optuna.Study:
    """The study, without writing to it."""
    storage = JournalStorage(BucketJournal(directory, "study.journal"))
    return optuna.load_study(study_name="search", storage=storage)


def objective(trial: optuna.Trial) -> float:
    value = trial.suggest_float("x", -1, 1)
    trial.report(value, 1)
    return value**2


def test_a_study_in_a_bucket_is_read_back_whole(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_journal, "_MOST_PIECES", 7)
    directory = Folder(f"{s3_bucket}/runs/search")
    expected = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for number in range(6):
        # Opened anew for each trial, as after a kill.
        study = open_study(directory)
        study.sampler = expected.sampler
        study.optimize(objective, n_trials=1)
        assert [t.state.name for t in study.trials] == ["COMPLETE"] * (number + 1)
        assert len(directory.file_names("study.journal")) <= 8
    again = open_study(directory)
    assert [t.params for t in again.trials] == [t.params for t in study.trials]
    assert again.best_trial.number == study.best_trial.number


def test_pieces_that_were_not_yet_deleted_count_once(s3_bucket: str) -> None:
    directory = Folder(f"{s3_bucket}/runs/search")
    open_study(directory).optimize(objective, n_trials=2)
    pieces = directory.file_names("study.journal")
    entries = BucketJournal(directory, "study.journal").read_logs(0)
    journal = BucketJournal(directory, "study.journal")
    # As if the driver had been killed between joining the pieces and deleting them.
    journal._write(pieces[0], list(entries))
    assert len(directory.file_names("study.journal")) == len(pieces) > 4
    assert BucketJournal(directory, "study.journal").read_logs(0) == entries


def test_pieces_that_are_lost_or_changed_are_told(s3_bucket: str) -> None:
    directory = Folder(f"{s3_bucket}/runs/search")
    open_study(directory).optimize(objective, n_trials=1)
    names = [f"study.journal/{piece}" for piece in directory.file_names("study.journal")]
    whole = {name: directory.read_bytes(name) or b"" for name in names}
    for name in names:
        directory.write_bytes(name, whole[name].replace(b"op_code", b"op_CODE"))
        with pytest.raises(UserError, match="some are not what was written: restore the folder"):
            load(directory)
        directory.write_bytes(name, whole[name])
    assert len(load(directory).trials) == 1
    for name in reversed(names):
        directory.delete_file(name)
        with pytest.raises(UserError, match=r"to \d+ are missing: restore the folder"):
            load(directory)
    for name in names[:-1]:
        directory.write_bytes(name, whole[name])
    # The way on that the error names.
    directory.delete_file("study.journal.sums")
    open_study(directory).set_user_attr("note", "went on")
    assert load(directory).user_attrs == {"note": "went on"}


def test_a_reader_whose_pieces_are_merged_meanwhile_reads_again(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, reading = (Folder(f"{s3_bucket}/runs/search") for _ in range(2))
    study = open_study(directory)
    study.optimize(objective, n_trials=1)
    list_names, lists = reading.file_names, []

    def listed(folder: str) -> list[str]:
        lists.append(list_names(folder))
        if len(lists) == 1:
            monkeypatch.setattr(bucket_journal, "_MOST_PIECES", 1)
            study.set_user_attr("note", "merges")
        return lists[-1]

    monkeypatch.setattr(reading, "file_names", listed)
    assert load(reading).user_attrs == {"note": "merges"}
    assert [len(names) for names in lists] == [len(lists[0]), 1]


def test_a_driver_is_stopped_when_another_one_takes_the_search_over(s3_bucket: str) -> None:
    directory = Folder(f"{s3_bucket}/runs/search")
    first = open_study(directory)
    first.ask()
    second = open_study(directory)
    with pytest.raises(UserError, match="another process has taken over this search"):
        first.ask()
    second.ask()
    # Reading takes nothing over.
    assert len(load(directory).trials) == 2
    second.ask()
