from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from conr_ray.config import override
from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import Span
from conr_ray.errors import RunFailed, UserError
from tests.gloo_workers import run_workers
from tests.tiny_runs import run_here, tiny_config, without_times
from tests.waiting import HANG_S


class StopAfter(Observers):
    """An observer that ends the run after an epoch, as Ctrl-C would."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.last: int = epoch
        self.ended_by: BaseException | None = None

    def epoch(self, row: MetricRow) -> None:
        if row["epoch"] == self.last:
            raise KeyboardInterrupt

    def end(self, error: BaseException | None) -> None:
        self.ended_by = error


def final_state(folder: Path, epoch: int = 4) -> dict[str, Any]:
    return RunDirectory(folder).load_checkpoint(epoch, torch.device("cpu"))


def assert_same_tensors(left: Any, right: Any, path: str = "state") -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same_tensors(left[key], right[key], f"{path}.{key}")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MetricRow]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_here(tiny_config(), folder)


def test_a_run_passes_both_stages_and_reports_their_figures(
    whole_run: tuple[Path, list[MetricRow]],
) -> None:
    _, rows = whole_run
    assert [row["stage"] for row in rows] == ["instance", "instance", "group", "group"]
    assert [row["fraction"] for row in rows] == [1, 1, 0.8, 1]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("acc", "nmi"))  # type: ignore
    assert ["neighbor_purity" in row for row in rows] == [False, False, True, True]
    assert all(math.isfinite(float(row["loss"] or 0)) for row in rows)


def test_a_run_writes_metrics_assignments_and_checkpoints(
    whole_run: tuple[Path, list[MetricRow]],
) -> None:
    folder, rows = whole_run
    assert RunDirectory(folder).metric_rows()[-1]["nmi"] == rows[-1]["nmi"]
    table = pq.read_table(folder / "assignments.parquet")
    assert table.column_names == ["sample_id", "cluster", "boundary_ratio", "kept"]
    assert table["sample_id"].to_pylist() == list(open_data(tiny_config().data).sample_ids.tolist())
    assert set(table["cluster"].to_pylist()) <= set(range(10))
    assert all(table["kept"].to_pylist())  # the last fraction is 1
    assert table["cluster"].to_pylist() == final_state(folder)["pseudo_labels"].tolist()
    assert RunDirectory(folder).checkpoint_epochs() == [3, 4]
    summary = json.loads((folder / "checkpoints/epoch_000004/summary.json").read_text())
    assert summary["epochs_trained"] == 4
    assert summary["nmi"] == rows[-1]["nmi"]


def test_a_run_writes_the_neighbors_of_every_image(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    folder, rows = whole_run
    images = open_data(tiny_config().data)
    assert images.labels is not None
    table = pq.read_table(folder / "neighbors.parquet")
    ids = images.sample_ids.tolist()
    assert table["sample_id"].to_pylist() == ids
    labels = dict(zip(ids, images.labels.tolist(), strict=True))
    for kind in ("contextual", "euclidean"):
        lists = table[kind].to_pylist()
        assert all(
            row[0] == own and len(set(row)) == 10 for own, row in zip(ids, lists, strict=True)
        )
        same = [labels[other] == labels[row[0]] for row in lists for other in row[1:]]
        assert rows[-1][f"data_purity_{kind}"] == pytest.approx(sum(same) / len(same))
    assert table["contextual"].to_pylist() != table["euclidean"].to_pylist()
    assert "data_purity_contextual" not in rows[-2]
    run_here(tiny_config(evaluation__neighbors=False), tmp_path)
    assert not (tmp_path / "neighbors.parquet").exists()


@pytest.mark.parametrize("last_epoch", [0, 1, 2])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path, last_epoch: int
) -> None:
    folder, rows = whole_run
    observer = StopAfter(last_epoch)
    with pytest.raises(KeyboardInterrupt):
        run_here(tiny_config(), tmp_path, observer)
    assert isinstance(observer.ended_by, KeyboardInterrupt)
    assert len(RunDirectory(tmp_path).metric_rows()) == last_epoch + 1
    resumed = run_here(tiny_config(), tmp_path)
    assert without_times(resumed) == without_times(rows)
    assert_same_tensors(final_state(folder), final_state(tmp_path))


def test_a_run_that_has_ended_is_trained_for_more_epochs_by_the_longer_schedules(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    longer = tiny_config(schedule__epochs=6)
    for epochs in (4, 6):
        config = tiny_config(schedule__epochs=epochs)
        RunDirectory(tmp_path / "run").claim(config, resume=True)
        rows = run_here(config, tmp_path / "run")
    assert without_times(rows)[:4] == without_times(whole_run[1])
    whole = run_here(longer, tmp_path / "whole")
    for name in ("lr", "predictor_lr", "momentum"):
        assert [row[name] for row in rows[4:]] == [row[name] for row in whole[4:]]
        assert rows[3][name] != whole[3][name]
    assert RunDirectory(tmp_path / "run").read_config() == longer
    tables = [pq.read_table(f / "assignments.parquet") for f in (tmp_path / "run", whole_run[0])]
    assert tables[0] != tables[1]


def test_where_no_schedule_depends_on_the_end_the_longer_run_is_what_it_would_have_been(
    tmp_path: Path,
) -> None:
    # Snapshots and k-means of the last epoch are its own.
    fixed = {
        "model__framework": "moco",
        "schedule__cosine_epochs": 20,
        "schedule__group_start": "never",
    }
    for epochs in (2, 4):
        config = tiny_config(schedule__epochs=epochs, **fixed)
        RunDirectory(tmp_path / "run").claim(config, resume=True)
        rows = run_here(config, tmp_path / "run")
    whole = run_here(config, tmp_path / "whole")
    assert without_times(rows)[2:] == without_times(whole)[2:]
    # It numbers its clusters as those that it had.
    states = [
        {**final_state(tmp_path / name), "cluster_numbers": None} for name in ("run", "whole")
    ]
    assert_same_tensors(*states)


def test_a_run_without_its_last_checkpoints_repeats_their_epochs_alike(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    config = tiny_config(checkpoint__every=3)
    with pytest.raises(KeyboardInterrupt):
        run_here(config, tmp_path, StopAfter(1))
    assert RunDirectory(tmp_path).checkpoint_epochs() == []
    assert without_times(run_here(config, tmp_path)) == without_times(whole_run[1])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics_in_another_process(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path;"
        "from tests.tiny_runs import run_here, tiny_config;"
        "run_here(tiny_config(), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=HANG_S)
    other = RunDirectory(tmp_path).metric_rows()
    own = RunDirectory(whole_run[0]).metric_rows()
    assert without_times(other) == without_times(own)


def test_another_seed_gives_other_metrics(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    rows = run_here(tiny_config(seed=1), tmp_path)
    assert rows[-1]["loss"] != whole_run[1][-1]["loss"]


def test_the_instance_stage_does_not_depend_on_the_group_stage(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    config = tiny_config(
        schedule__group_start="never", neighborhood__k1=7, boundary__initial_fraction=0.5
    )
    rows = run_here(config, tmp_path)
    assert without_times(rows)[:2] == without_times(whole_run[1])[:2]
    assert [row["stage"] for row in rows] == ["instance"] * 4


def test_a_run_may_start_with_the_group_stage(tmp_path: Path) -> None:
    rows = run_here(tiny_config(schedule__group_start=0), tmp_path)
    assert [row["stage"] for row in rows] == ["group"] * 4


def test_the_kind_of_neighbourhood_changes_the_group_stage_only(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    rows = run_here(tiny_config(neighborhood__kind="euclidean"), tmp_path)
    assert without_times(rows)[:2] == without_times(whole_run[1])[:2]
    assert rows[2]["loss"] != whole_run[1][2]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(tiny_config(), tmp_path, StopAfter(0))
    state = RunDirectory(tmp_path).load_checkpoint(1, torch.device("cpu"))
    state["framework"]["predictor.3.bias"] += math.inf
    RunDirectory(tmp_path).save_checkpoint(1, state, {}, keep=1)
    with pytest.raises(RunFailed, match=r"nan at epoch 1, step 0; .*epoch_000001; lower optim.lr"):
        run_here(tiny_config(), tmp_path)
    with pytest.raises(RunFailed, match="epoch 1, step 0"):
        RunDirectory(tmp_path).raise_failure()
    assert RunDirectory(tmp_path).checkpoint_epochs() == [1]


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(tiny_config(), tmp_path, StopAfter(0))
    with pytest.raises(UserError, match=r"data\.path: the samples are not those"):
        run_here(tiny_config(data__limit=299), tmp_path)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"layout": 1}, "was written by conr_ray .* in another layout"),
        ({"layout": None}, "was written by conr_ray .* in another layout"),
        ({"framework_name": "moco"}, r"model\.framework=byol: the checkpoint is of moco"),
        ({"inputs": {"kind": "vectors"}}, r"data\.source=digits: the checkpoint is of vectors"),
    ],
)
def test_a_checkpoint_of_another_kind_of_run_is_refused(
    tmp_path: Path, change: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(tiny_config(), tmp_path, StopAfter(0))
    state = RunDirectory(tmp_path).load_checkpoint(1, torch.device("cpu"))
    RunDirectory(tmp_path).save_checkpoint(1, {**state, **change}, {}, keep=1)
    with pytest.raises(UserError, match=refusal) as caught:
        run_here(tiny_config(), tmp_path)
    assert "choose another name" in str(caught.value) and "\n" not in str(caught.value)


def test_images_without_labels_train_and_are_scored_without(tmp_path: Path) -> None:
    config = tiny_config()
    images = open_data(config.data)
    table = {"image": [image.tobytes() for image in images.rows]}
    import pyarrow as pa

    schema = pa.schema([("image", pa.binary())], metadata={"shape": "8,8"})
    pq.write_table(pa.table(table, schema=schema), tmp_path / "plain.parquet")
    config = tiny_config(
        data__source="parquet", data__path=str(tmp_path / "plain.parquet"), data__limit=None
    )
    rows = run_here(config, tmp_path / "run")
    assert "acc" not in rows[-1]
    assert "neighbor_purity" not in rows[-1]
    assert -1 <= float(rows[-1]["silhouette"] or 0) <= 1


def _run_and_read(folder: str) -> list[dict[str, Any]]:
    return without_times(run_here(tiny_config(), Path(folder)))


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_number_of_workers_does_not_change_the_run(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path, workers: int
) -> None:
    # 64 rows are not divisible by 3, nor are 300 images.
    rows_by_worker = run_workers(_run_and_read, workers, str(tmp_path))
    assert all(rows == rows_by_worker[0] for rows in rows_by_worker)
    for row, alone in zip(rows_by_worker[0], without_times(whole_run[1]), strict=True):
        assert row["loss"] == pytest.approx(alone["loss"], abs=1e-3)
        assert row["lr"] == alone["lr"]


def test_small_views_at_first_change_training_and_not_what_is_clustered(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    rows = run_here(tiny_config(views__sizes=[[1, 4], [2, 8]], schedule__epochs=3), tmp_path)
    late = run_here(tiny_config(views__sizes=[[9, 4]], schedule__epochs=3), tmp_path / "late")
    assert without_times(rows)[0] == without_times(late)[0]
    assert rows[1]["loss"] != late[1]["loss"]
    assert final_state(tmp_path, 3)["inputs"]["size"] == 8


def _in_groups(**changes: Any) -> Any:
    return tiny_config(model__norm_batch=16, evaluation__neighbors=False, **changes)


def _run_in_groups(folder: str) -> list[dict[str, Any]]:
    return without_times(run_here(_in_groups(), Path(folder)))


def test_groups_of_batch_normalisation_do_not_depend_on_the_workers(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    alone = without_times(run_here(_in_groups(), tmp_path / "alone"))
    assert abs(float(alone[0]["loss"]) - float(whole_run[1][0]["loss"] or 0)) > 1e-3
    for workers in (2, 4):
        found = run_workers(_run_in_groups, workers, str(tmp_path / str(workers)))[0]
        for row, expected in zip(found, alone, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-3)
        first, other = (final_state(tmp_path / name, 3) for name in ("alone", str(workers)))
        for name, value in first["framework"].items():
            torch.testing.assert_close(other["framework"][name], value, rtol=0.02, atol=2e-3)


def test_one_group_of_batch_normalisation_is_the_batch(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    rows = run_here(tiny_config(model__norm_batch=64), tmp_path)
    assert without_times(rows) == without_times(whole_run[1])


@pytest.mark.parametrize("last_epoch", [1, 2])
def test_a_run_goes_on_with_another_number_of_workers(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path, last_epoch: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_here(tiny_config(), tmp_path, StopAfter(last_epoch))
    rows = run_workers(_run_and_read, 2, str(tmp_path))[0]
    alone = without_times(whole_run[1])
    assert rows[: last_epoch + 1] == alone[: last_epoch + 1]
    assert rows[3]["loss"] == pytest.approx(alone[3]["loss"], abs=1e-3)
    # The bank is that of the checkpoint, dealt out anew: not an empty one.
    assert rows[3]["neighbor_age"] == pytest.approx(alone[3]["neighbor_age"], rel=0.05)


def test_the_bank_widens_the_pool_in_the_group_stage(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    rows = run_here(tiny_config(bank__size=0), tmp_path)
    assert without_times(rows)[:2] == without_times(whole_run[1])[:2]
    assert [row.get("bank_share") for row in rows] == [None, None, 0, 0]
    assert "neighbor_age" not in rows[3]
    with_bank = whole_run[1][3]
    # 130 of the pool's rows, less the batch's own older copies, are in the bank.
    assert 0.3 < float(with_bank["bank_share"] or 0) < 0.67
    assert 1 <= float(with_bank["neighbor_age"] or 0) <= 3
    assert float(with_bank["discovery_time_s"] or 0) > 0
    assert with_bank["kept"] == 1
    assert rows[3]["loss"] != with_bank["loss"]


def test_mixed_precision_trains_the_networks_in_it_and_nothing_else(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conr_ray.engine import evaluation

    kmeans, seen = evaluation.spherical_kmeans, []

    def watched(rows: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append((rows.dtype, torch.is_autocast_enabled("cpu")))
        return kmeans(rows, *args, **options)

    monkeypatch.setattr(evaluation, "spherical_kmeans", watched)
    rows = run_here(tiny_config(optim__precision="bf16"), tmp_path)
    assert set(seen) == {(torch.float32, False)}
    assert rows[0]["loss"] != whole_run[1][0]["loss"]
    assert rows[0]["loss"] == pytest.approx(whole_run[1][0]["loss"], abs=0.05)


def test_the_group_stage_clusters_each_epoch_from_the_last_and_scores_where_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conr_ray.engine import evaluation

    kmeans, starts, centers = evaluation.spherical_kmeans, [], []

    def watched(*args: Any, **options: Any) -> Any:
        if "warm_cd" not in options:
            # Of a subset, for the scores.
            return kmeans(*args, **options)
        warm = options["warm_cd"]
        starts.append((options["restarts"], warm is not None))
        # The same ones, in the order of the clusters before.
        assert warm is None or sorted(warm.tolist()) == sorted(centers[-1].tolist())
        found = kmeans(*args, **options)
        centers.append(found.centers_cd)
        return found

    monkeypatch.setattr(evaluation, "spherical_kmeans", watched)
    changes = {"schedule__epochs": 6, "evaluation__every": 4}
    rows = run_here(tiny_config(**changes), tmp_path / "warm")
    assert [row["epoch"] for row in rows if "acc" in row] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows if "silhouette" in row] == [2, 3, 5]
    full, continued = (10, False), (1, True)
    assert starts == [full, continued, continued, continued, full]
    starts.clear()
    run_here(tiny_config(**changes, clustering__warm_start=False), tmp_path / "cold")
    assert starts == [full] * 5


def test_the_last_epoch_of_a_span_is_scored(tmp_path: Path) -> None:
    config = tiny_config(schedule__epochs=6, evaluation__every=6)
    data, cpu = open_data(config.data), torch.device("cpu")
    rows = train(config, data, RunDirectory(tmp_path), Observers(), cpu, Span(until=3))
    assert [row["epoch"] for row in rows if "silhouette" in row] == [2]


class Told(Observers):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[MetricRow] = []

    def epoch(self, row: MetricRow) -> None:
        self.rows.append(row)

    def end(self, error: BaseException | None) -> None: ...


def test_a_run_stopped_after_its_last_checkpoint_tells_its_end_when_resumed(
    whole_run: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    run_here(tiny_config(), tmp_path)
    (tmp_path / "metrics.parquet").unlink()
    told = Told()
    rows = run_here(tiny_config(), tmp_path, told)
    assert told.rows == rows[-1:]
    assert without_times(RunDirectory(tmp_path).metric_rows()) == without_times(whole_run[1])


def test_a_run_goes_on_from_another_ones_state_with_values_of_its_own(tmp_path: Path) -> None:
    one = tiny_config(schedule__epochs=6)
    run_here(one, tmp_path / "one")
    images = open_data(one.data)
    changes = {"neighborhood.k1": 13, "neighborhood.k": 4, "optim.weight_decay": 0.3}
    changed = override(one, {**changes, "checkpoint.keep": 9})
    origin = Span(origin=(RunDirectory(tmp_path / "one"), 5))
    other, again = RunDirectory(tmp_path / "other"), RunDirectory(tmp_path / "again")
    rows = train(changed, images, other, Observers(), torch.device("cpu"), origin)
    same = train(one, images, again, Observers(), torch.device("cpu"), origin)
    expected = without_times(RunDirectory(tmp_path / "one").metric_rows())
    assert without_times(same) == expected
    assert without_times(rows)[:5] == expected[:5]
    assert without_times(rows)[5] != expected[5]
    state = other.load_checkpoint(6, torch.device("cpu"))
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.3}


def test_a_run_that_diverges_in_an_epochs_last_step_is_not_saved(tmp_path: Path) -> None:
    config = tiny_config(optim__batch_size=300, optim__lr=1e30, schedule__warmup_epochs=0)
    with pytest.raises(RunFailed, match=r"not finite after 1 epochs of 1 steps; .*none yet; low"):
        run_here(config, tmp_path)
    assert RunDirectory(tmp_path).checkpoint_epochs() == []
