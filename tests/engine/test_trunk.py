from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from conr_ray.config import RunConfig, field_names
from conr_ray.data.store import open_data
from conr_ray.engine import trunk_store
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import Span
from conr_ray.engine.trunk import train_from_trunk
from conr_ray.engine.trunk_fields import shapes_trunk, trunk_config
from conr_ray.engine.trunk_store import TrunkStore, open_trunks, trunk_name
from conr_ray.errors import OutOfMemory, RunFailed
from conr_ray.method.frameworks import byol
from conr_ray.storage.locks import FileLocks
from tests.engine.test_loop import StopAfter, assert_same_tensors, final_state
from tests.gloo_workers import run_workers
from tests.tiny_runs import run_here, tiny_config, without_times


def store_in(folder: Path, *starts: int) -> TrunkStore:
    return TrunkStore(str(folder / "trunks"), frozenset(starts), FileLocks(str(folder / "trunks")))


def fork(
    config: RunConfig, store: TrunkStore, folder: Path | str, observer: Observer | None = None
) -> list[MetricRow]:
    images = open_data(config.data)
    device = torch.device("cpu")
    return train_from_trunk(
        config, images, RunDirectory(folder), observer or Observers(), device, store
    )


def the_trunk(store: TrunkStore) -> RunDirectory:
    (folder,) = (f for f in Path(store.uri).iterdir() if f.is_dir())
    return RunDirectory(folder)


def origin_of(folder: Path) -> Origin:
    origin = Origin.read(RunDirectory(folder))
    assert origin is not None
    return origin


# The trunk's epochs are not evaluated when others would have been: every=3 is due at no start.
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("size", [0, 130])
def test_a_fork_is_bit_for_bit_the_run_from_epoch_0(tmp_path: Path, every: int, size: int) -> None:
    config = tiny_config(evaluation__every=every, bank__size=size)
    whole = run_here(config, tmp_path / "whole")
    store = store_in(tmp_path, 1, 2, 3)
    # Another run has built the trunk, with other fields of the group stage.
    other = tiny_config(
        evaluation__every=every, schedule__group_start=3, neighborhood__k1=5, bank__size=64
    )
    fork(other, store, tmp_path / "other")
    rows = fork(config, store, tmp_path / "fork")
    assert origin_of(tmp_path / "other").built_epochs == 3
    assert origin_of(tmp_path / "fork") == Origin(the_trunk(store).uri.rpartition("/")[2], 2)
    assert without_times(rows) == without_times(whole)
    assert without_times(RunDirectory(tmp_path / "fork").metric_rows()) == without_times(whole)
    assert_same_tensors(final_state(tmp_path / "fork"), final_state(tmp_path / "whole"))


def test_a_trunk_is_trained_as_far_as_asked_and_keeps_every_start(tmp_path: Path) -> None:
    store = store_in(tmp_path, 1, 2, 3)
    starts = {}
    for start in (2, 3, 1):
        folder = tmp_path / f"start {start}"
        fork(tiny_config(schedule__group_start=start), store, folder)
        starts[start] = origin_of(folder).built_epochs
    assert starts == {2: 2, 3: 1, 1: 0}
    assert the_trunk(store).checkpoint_epochs() == [1, 2, 3]
    # A start that no one had asked for begins at the nearest checkpoint before it.
    wide = store_in(tmp_path, 5)
    fork(tiny_config(schedule__epochs=8, schedule__group_start=5), wide, tmp_path / "first")
    late = tiny_config(schedule__epochs=8, schedule__group_start=7)
    fork(late, wide, tmp_path / "late")
    assert origin_of(tmp_path / "late").built_epochs == 2
    whole = run_here(late, tmp_path / "whole")
    assert without_times(RunDirectory(tmp_path / "late").metric_rows()) == without_times(whole)


def test_a_trunk_in_a_bucket_serves_runs_in_folders_and_in_the_bucket(
    tmp_path: Path, s3_bucket: str
) -> None:
    expected = without_times(run_here(tiny_config(), tmp_path / "whole"))
    store = open_trunks(f"{s3_bucket}/trunks", frozenset({2}), FileLocks(f"{tmp_path}/trunks"))
    assert store is not None
    for place, built in ((str(tmp_path / "first"), 2), (f"{s3_bucket}/runs/second", 0)):
        rows = fork(tiny_config(), store, place)
        directory = RunDirectory(place)
        assert without_times(rows) == expected
        assert without_times(directory.metric_rows()) == expected
        origin = Origin.read(directory)
        assert origin is not None and (origin.epoch, origin.built_epochs) == (2, built)
        assert directory.checkpoint_epochs() == [3, 4]
    # The locks alone are files of this machine.
    assert {path.suffix for path in (tmp_path / "trunks").iterdir()} == {".lock"}


def test_a_trunk_grows_for_whoever_names_the_images_differently(tmp_path: Path) -> None:
    store = store_in(tmp_path, 1, 2)
    fork(tiny_config(schedule__group_start=1), store, tmp_path / "first")
    fork(tiny_config(data__placement="host", checkpoint__every=2), store, tmp_path / "second")
    assert origin_of(tmp_path / "second").built_epochs == 1


def test_a_run_without_a_group_stage_follows_the_trunk_to_its_end(tmp_path: Path) -> None:
    store = store_in(tmp_path, 1, 3)
    config = tiny_config(schedule__group_start="never")
    whole = run_here(config, tmp_path / "whole")
    assert without_times(fork(config, store, tmp_path / "fork")) == without_times(whole)
    assert origin_of(tmp_path / "fork").epoch == 3


def test_a_run_that_starts_with_the_group_stage_has_no_trunk(tmp_path: Path) -> None:
    fork(tiny_config(schedule__group_start=0), store_in(tmp_path, 0, 2), tmp_path / "run")
    assert not (tmp_path / "trunks").exists()
    assert Origin.read(RunDirectory(tmp_path / "run")) is None


def test_a_fork_stopped_before_its_first_checkpoint_still_tells_what_it_built(
    tmp_path: Path,
) -> None:
    store, config = store_in(tmp_path, 2), tiny_config(checkpoint__every=4)
    with pytest.raises(KeyboardInterrupt):
        fork(config, store, tmp_path / "fork", StopAfter(2))
    fork(config, store, tmp_path / "fork")
    assert origin_of(tmp_path / "fork").built_epochs == 2


def test_a_leg_that_ends_before_the_trunk_is_trained_without_it(tmp_path: Path) -> None:
    config, store = tiny_config(), store_in(tmp_path, 2)
    images, leg = open_data(config.data), RunDirectory(tmp_path / "leg")
    for until in (1, 2):
        span = Span(until=until)
        train_from_trunk(config, images, leg, Observers(), torch.device("cpu"), store, span)
        assert (len(leg.metric_rows()), leg.checkpoint_epochs()[-1]) == (until, until)
    assert not (tmp_path / "trunks").exists()


def test_a_stopped_fork_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    store = store_in(tmp_path, 2)
    whole = run_here(tiny_config(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fork(tiny_config(), store, tmp_path / "fork", StopAfter(2))
    assert without_times(fork(tiny_config(), store, tmp_path / "fork")) == without_times(whole)


def flip(data: bytes) -> bytes:
    """With another byte in the middle, amid the numbers of a tensor."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"not a checkpoint", flip, None])
def test_a_damaged_checkpoint_is_trained_anew_and_this_is_said(
    tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    store = store_in(tmp_path, 1, 2)
    fork(tiny_config(), store, tmp_path / "first")
    whole = RunDirectory(tmp_path / "first").metric_rows()
    trunk = the_trunk(store)
    for epoch in (1, 2):
        state = Path(trunk.uri) / trunk.checkpoint_name(epoch) / "state.pt"
        state.unlink() if damage is None else state.write_bytes(damage(state.read_bytes()))
    fork(tiny_config(), store, tmp_path / "second")
    assert without_times(RunDirectory(tmp_path / "second").metric_rows()) == without_times(whole)
    origin = origin_of(tmp_path / "second")
    assert origin.built_epochs == 2
    assert "was damaged" in origin.note
    assert trunk.checkpoint_epochs() == [1, 2]


@pytest.mark.slow
def test_several_who_ask_at_once_build_it_once(tmp_path: Path) -> None:
    store = store_in(tmp_path, 2)
    folders = [tmp_path / f"run {number}" for number in range(3)]
    with ProcessPoolExecutor(3, get_context("forkserver")) as pool:
        list(pool.map(_fork_alone, [store] * 3, folders))
    origins = [origin_of(folder) for folder in folders]
    assert sorted(origin.built_epochs for origin in origins) == [0, 0, 2]
    rows = [without_times(RunDirectory(folder).metric_rows()) for folder in folders]
    assert rows[0] == rows[1] == rows[2]


def _fork_alone(store: TrunkStore, folder: Path) -> None:
    torch.set_num_threads(1)
    fork(tiny_config(), store, folder)


@pytest.mark.slow
def test_workers_of_one_run_build_the_trunk_together(tmp_path: Path) -> None:
    store = store_in(tmp_path, 2)
    for name in ("builds", "finds"):
        run_workers(_fork_together, 2, store, tmp_path / name)
    assert [origin_of(tmp_path / name).built_epochs for name in ("builds", "finds")] == [2, 0]
    rows = [without_times(RunDirectory(tmp_path / n).metric_rows()) for n in ("builds", "finds")]
    assert rows[0] == rows[1]


def _fork_together(store: TrunkStore, folder: Path) -> None:
    fork(tiny_config(), store, folder)


def test_a_trunk_that_fails_fails_all_its_runs_alike(tmp_path: Path) -> None:
    store = store_in(tmp_path, 2)
    config = tiny_config(optim__lr=1e30)
    for name in ("first", "second"):
        with pytest.raises(RunFailed, match="the loss is"):
            fork(config, store, tmp_path / name)
        with pytest.raises(RunFailed, match="the loss is"):
            RunDirectory(tmp_path / name).raise_failure()


def test_a_trunk_that_had_no_memory_is_tried_again(tmp_path: Path) -> None:
    """Where the samples are kept is no part of its name, and may have been the remedy."""
    store = store_in(tmp_path, 2)
    config = tiny_config(schedule__epochs=3)
    trunk = store.directory(trunk_name(config, open_data(config.data).fingerprint))
    trunk.record_failure(OutOfMemory("out of memory on cuda:0"))
    assert len(fork(config, store, tmp_path / "run")) == 3
    assert not trunk.has_failed()


CHANGES: dict[str, Any] = {
    "neighborhood__k1": 5,
    "bank__size": 0,
    "boundary__initial_fraction": 0.5,
    "schedule__group_start": 3,
    "views__group_stage_strength": 0.5,
    "optim__group_stage_lr_factor": 0.5,
    "checkpoint__every": 2,
    "tracking__project": "mine",
    "data__placement": "host",
}


def test_runs_share_a_trunk_whatever_their_group_stages_are() -> None:
    name = trunk_name(tiny_config(), "images")
    for field, value in CHANGES.items():
        assert trunk_name(tiny_config(**{field: value}), "images") == name, field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("optim__lr", 0.2),
        ("byol__predictor_lr_factor", 2),
        ("schedule__epochs", 5),
        ("byol__momentum", 0.9),
        ("views__noise", 0.5),
        ("clustering__restarts", 1),
        ("evaluation__every", 2),
    ],
)
def test_runs_that_differ_in_their_instance_stage_share_none(field: str, value: Any) -> None:
    assert trunk_name(tiny_config(**{field: value}), "images") != trunk_name(
        tiny_config(), "images"
    )
    assert shapes_trunk(field.replace("__", "."))


def test_other_samples_and_other_results_have_other_trunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = trunk_name(tiny_config(), "images")
    assert trunk_name(tiny_config(), "others") != name
    with monkeypatch.context() as patch:
        patch.setattr(trunk_store, "RESULTS_VERSION", 99)
        assert trunk_name(tiny_config(), "images") != name
    with monkeypatch.context() as patch:
        patch.setattr(byol.Framework, "version", 99)
        assert trunk_name(tiny_config(), "images") != name
    assert trunk_name(tiny_config(), "images") == name


def test_every_field_is_the_trunks_or_the_group_stages() -> None:
    """A new field shapes the trunk unless it is marked: it can cost time, but not mix runs up."""
    config = trunk_config(tiny_config())
    assert config.schedule.group_start == "never"
    own = {name for name in field_names("byol") if not shapes_trunk(name)}
    assert {"neighborhood.k1", "bank.size", "boundary.initial_fraction"} <= own
    assert not own & {"seed", "optim.lr", "model.backbone", "data.limit"}
