"""Clusters keep their numbers, names and edits: resumed, seeded anew, extended, reclustered."""

from __future__ import annotations

import csv
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import conr_ray.recluster
import conr_ray.train
from conr_ray import Clusterer, TrainedRun, UserError
from conr_ray.config import RunConfig
from conr_ray.config.networks import ModelConfig
from conr_ray.edits.folder import assigned_fingerprint, read_edits, write_edits
from conr_ray.edits.log import JUNK, Edit, EditLog
from conr_ray.engine.cluster_changes import read_changes
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.stopping import stop_request
from conr_ray.errors import RunStopped
from tests.tiny_runs import lists_of, run_here, run_step_by_step, tiny_config

DIGITS = load_digits()
# Networks of a few epochs tell little: digits' own pixels are clustered, and only heads are drawn.
FIELDS: dict[str, Any] = {
    "data__source": "vectors",
    "data__limit": None,
    "model__backbone": "identity",
    "bank__size": 0,
    "schedule__epochs": 2,
    "schedule__group_start": 1,
    "evaluation__neighbors": False,
}


def table_of(rows: np.ndarray, file: Path) -> str:
    """A file of digits as vectors."""
    columns = {"embedding": lists_of((DIGITS.data[rows] / 16).astype(np.float32))}
    pq.write_table(pa.table(columns | {"label": DIGITS.target[rows]}), file)
    return str(file)


def config_of(**changes: Any) -> RunConfig:
    """That of such a run."""
    return tiny_config(**{**FIELDS, "model__widths": ModelConfig.default_of("widths"), **changes})


def trained(folder: Path, **changes: Any) -> RunDirectory:
    """A run on vectors that has ended."""
    config = config_of(**changes)
    directory = RunDirectory(folder)
    directory.claim(config, resume=True)
    run_here(config, folder)
    return directory


def assigned(folder: Path | RunDirectory) -> dict[int, int]:
    """Clusters by sample id."""
    uri = folder.uri if isinstance(folder, RunDirectory) else str(folder)
    table = pq.read_table(f"{uri}/assignments.parquet")
    return dict(zip(table["sample_id"].to_pylist(), table["cluster"].to_pylist(), strict=True))


def changes_in(folder: Path) -> dict[int, dict[str, str]]:
    """Rows of cluster_changes.csv by number."""
    with (folder / "cluster_changes.csv").open() as file:
        return {int(row["cluster"]): row for row in csv.DictReader(file)}


def share_kept(before: dict[int, int], now: dict[int, int]) -> float:
    """Share of the samples in both with the same number."""
    both = before.keys() & now.keys()
    return sum(before[i] == now[i] for i in both) / len(both)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first 80% of the digits."""
    folder = tmp_path_factory.mktemp("ids")
    path = table_of(np.arange(1437), folder / "few.parquet")
    table_of(np.arange(1797), folder / "all.parquet")
    trained(folder / "few", data__path=path)
    return folder / "few"


def test_added_samples_leave_nearly_all_others_in_their_cluster(few: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(few, run)
    (run / "names.yaml").write_text("3: threes\n0: noughts\n")
    whole = str(few.parent / "all.parquet")
    conr_ray.recluster.main(["--run", str(run), "--extend", whole, "--out", str(out)])
    before, now = assigned(run), assigned(out)
    assert len(now) == 1797 and share_kept(before, now) >= 0.97
    assert {row["change"] for row in changes_in(out).values()} == {"kept"}
    assert yaml.safe_load((out / "names.yaml").read_text()) == {0: "noughts", 3: "threes"}
    # It is a run: it applies its clusters, and finds them again.
    placed = TrainedRun.load(out).place(DIGITS.data.astype(np.float32) / 16)
    assert placed.clusters_n.tolist() == list(now.values())
    with pytest.raises(UserError, match="it holds clusters: choose another folder"):
        conr_ray.recluster.main(["--run", str(run), "--extend", whole, "--out", str(out)])
    # It can be extended in turn, and trained on.
    again = tmp_path / "again"
    conr_ray.recluster.main(["--run", str(out), "--extend", whole, "--out", str(again)])
    assert share_kept(now, assigned(again)) >= 0.97


def test_without_other_samples_an_extended_run_is_the_same(few: Path, tmp_path: Path) -> None:
    same = str(few.parent / "few.parquet")
    conr_ray.recluster.main(["--run", str(few), "--extend", same, "--out", str(tmp_path / "out")])
    # Centres that rest do not move.
    assert assigned(tmp_path / "out") == assigned(few)


def test_edits_go_along_with_added_samples(few: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(few, run)
    table = pq.read_table(run / "assignments.parquet")
    of = {c: [i for i, o in assigned(run).items() if o == c] for c in range(10)}
    steps = (
        Edit("merge", (1, 2), 1),
        Edit("rename", (1,), name="pair"),
        Edit("move", (4,), 5, sample_ids_m=np.array(of[4][:3])),
        Edit("move", (7,), JUNK, sample_ids_m=np.array(of[7][:2])),
    )
    write_edits(RunDirectory(run), EditLog(steps), assigned_fingerprint(table))
    whole = str(few.parent / "all.parquet")
    conr_ray.recluster.main(["--run", str(run), "--extend", whole, "--out", str(out)])
    loaded = Clusterer.load(out)
    assert loaded.cluster_names_ == {1: "pair"}
    assert 2 not in loaded.labels_ and (loaded.labels_[of[4][:3]] == 5).all()
    assert (loaded.labels_[of[7][:2]] == JUNK).all()
    assert (np.bincount(loaded.labels_[loaded.labels_ >= 0])[1]) > len(of[1]) + len(of[2]) - 30


def test_another_seed_takes_the_numbers_of_the_clusters_that_it_finds_again(
    few: Path, tmp_path: Path
) -> None:
    # Heads find much the same clusters with any seed.
    heads = {"model__framework": "heads", "neighborhood__pool": "data", "schedule__epochs": 20}
    heads |= {"schedule__group_start": 0, "neighborhood__k": 20, "neighborhood__k1": 20}
    first = trained(tmp_path / "first", data__path=str(few.parent / "few.parquet"), **heads)
    heads |= {"data__path": str(few.parent / "all.parquet"), "seed": 5}
    plain = trained(tmp_path / "plain", **heads)
    followed = trained(tmp_path / "followed", clustering__ids_of=first.uri, **heads)
    before, alone, now = assigned(first), assigned(plain), assigned(followed)
    # The same clusters under other numbers.
    pairs = set(zip(alone.values(), now.values(), strict=True))
    assert len(pairs) == 10
    assert share_kept(before, alone) < 0.5 < 0.7 < share_kept(before, now)
    kept = sum(int(row["kept"]) for row in changes_in(tmp_path / "followed").values())
    assert kept == round(share_kept(before, now) * 1437)
    told_lines = read_changes(followed)
    assert told_lines[0].startswith(f"{kept / 1437:.1%} of the 1,437 samples that were there")
    # What is applied, exported and shown has these numbers.
    placed = TrainedRun.load(followed).place(DIGITS.data.astype(np.float32) / 16)
    assert placed.clusters_n.tolist() == list(now.values())
    shown = pq.read_table(tmp_path / "followed/snapshot/samples.parquet")
    assert shown["cluster"].to_pylist() == [now[i] for i in shown["sample_id"].to_pylist()]


def test_numbers_that_are_gone_stay_unused(few: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(few, run)
    (run / "names.yaml").write_text("".join(f"{i}: digit {i}\n" for i in range(10)))
    arguments = ["--run", str(run), "--ids-of", str(run), "--clusters"]
    conr_ray.recluster.main([*arguments, "6"])
    found = assigned(run / "recluster/6")
    numbers, rows = set(found.values()), changes_in(run / "recluster/6")
    gone = {n for n, row in rows.items() if row["change"] == "gone"}
    assert len(numbers) == 6 and gone and not numbers & gone and gone <= set(range(10))
    assert yaml.safe_load((run / "recluster/6/names.yaml").read_text()) == {
        n: f"digit {n}" for n in sorted(numbers) if n < 10
    }
    loaded = TrainedRun.load(run, num_clusters=6)
    placed = loaded.place(DIGITS.data[:1437].astype(np.float32) / 16)
    assert placed.clusters_n.tolist() == list(found.values())
    # Edits of clusters with such numbers are heeded for new samples too.
    first, second, *_ = sorted(numbers)
    table = pq.read_table(run / "recluster/6/assignments.parquet")
    log = EditLog((Edit("merge", (first, second), second),))
    write_edits(RunDirectory(run / "recluster/6"), log, assigned_fingerprint(table))
    edited = TrainedRun.load(run, num_clusters=6, edits=True)
    after = edited.place(DIGITS.data[:1437].astype(np.float32) / 16).clusters_n
    merged = torch.where(placed.clusters_n == first, second, placed.clusters_n)
    assert torch.equal(after, merged)
    with pytest.raises(UserError, match="recluster/6 has names or edits of its own: choose"):
        conr_ray.recluster.main([*arguments, "6"])
    # A later clustering that follows it gives new ones numbers above all.
    conr_ray.recluster.main([*arguments[:3], str(run / "recluster/6"), "--clusters", "10"])
    new = set(assigned(run / "recluster/10").values()) - numbers
    assert new and min(new) >= max(10, *numbers) and not new & gone


def test_a_run_that_is_trained_on_keeps_numbers_names_and_edits(tmp_path: Path) -> None:
    path = table_of(np.arange(600), tmp_path / "some.parquet")
    folder = tmp_path / "run"
    trained(folder, data__path=path)
    before = assigned(folder)
    table = pq.read_table(folder / "assignments.parquet")
    steps = (Edit("rename", (4,), name="fours"), Edit("merge", (8, 9), 9))
    write_edits(RunDirectory(folder), EditLog(steps), assigned_fingerprint(table))
    trained(folder, data__path=path, schedule__epochs=4)
    now = assigned(folder)
    rows = changes_in(folder)
    kept = sum(int(row["kept"]) for row in rows.values())
    assert kept == round(share_kept(before, now) * 600) and kept > 300
    again = pq.read_table(folder / "assignments.parquet")
    log = read_edits(RunDirectory(folder), assigned_fingerprint(again))
    assert [step.kind for step in log.active][:2] == ["rename", "merge"]
    assert log.names() == ({4: "fours"} if 4 in now.values() else {})


def test_pseudo_labels_keep_their_order_from_epoch_to_epoch(tmp_path: Path) -> None:
    path = table_of(np.arange(600), tmp_path / "some.parquet")
    changes = {"data__path": path, "schedule__epochs": 6, "schedule__group_start": 5}
    trained(tmp_path / "run", **changes, checkpoint__keep=9)
    labels = [
        RunDirectory(tmp_path / "run").load_checkpoint(epoch, torch.device("cpu"))["pseudo_labels"]
        for epoch in range(1, 7)
    ]
    for before, now in pairwise(labels):
        counts = torch.zeros(10, 10).index_put((before, now), torch.ones(600), accumulate=True)
        order = torch.tensor(np.array([*range(1, 10), 0]))
        same = counts.diagonal().sum()
        # No exchange of two, and no turn of all, keeps more.
        assert same >= counts[torch.arange(10), order].sum()
        for i in range(10):
            for j in range(i):
                assert counts[i, i] + counts[j, j] >= counts[i, j] + counts[j, i]


def test_images_in_a_folder_are_known_by_their_paths(tmp_path: Path) -> None:
    def written(rows: range) -> None:
        for row in rows:
            # Names of added images come before and between those of the others.
            name = f"{(row * 7919) % 1797:04d}.png"
            pixels = (DIGITS.images[row] * 15.9).astype(np.uint8)
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "images" / name)

    images = {"data__source": "folder", "data__path": str(tmp_path / "images")}
    images |= {"data__limit": None, "bank__size": 0, "evaluation__neighbors": False}
    images |= {"data__stored_size": 8, "clustering__num_clusters": 10}
    images |= {"schedule__epochs": 2, "schedule__group_start": 1}
    written(range(240))
    config = tiny_config(**images)
    RunDirectory(tmp_path / "run").claim(config, resume=False)
    run_here(config, tmp_path / "run")
    written(range(240, 300))
    arguments = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--extend"]
    conr_ray.recluster.main([*arguments, str(tmp_path / "images")])

    def by_path(folder: str) -> dict[int, int]:
        table = pq.read_table(tmp_path / folder / "assignments.parquet")
        names = [hash(path) for path in table["path"].to_pylist()]
        return dict(zip(names, table["cluster"].to_pylist(), strict=True))

    before, now = by_path("run"), by_path("out")
    assert before.keys() < now.keys() and len(now) == 300
    assert (
        share_kept(before, now)
        > 0.9
        > share_kept(assigned(tmp_path / "run"), assigned(tmp_path / "out"))
    )


def test_a_run_that_names_an_earlier_one_does_not_need_it_later(few: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(few, other)
    told = {"data__path": str(few.parent / "few.parquet"), "clustering__ids_of": str(other)}
    config = config_of(**told, seed=2)
    directory = RunDirectory(tmp_path / "run")
    directory.claim(config, resume=False)
    straight = trained(tmp_path / "straight", **told, seed=2)
    # Stopped after its first step, and then the other run is lost.
    stop_request.asked = True
    with pytest.raises(RunStopped):
        run_here(config, tmp_path / "run")
    shutil.rmtree(other)
    run_step_by_step(config, tmp_path / "run")
    assert (tmp_path / "run/clusters.csv").read_bytes() == (
        tmp_path / "straight/clusters.csv"
    ).read_bytes()
    assert read_changes(directory)[0] == read_changes(straight)[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("none", "there are no clusters .no assignments.parquet.: give the folder of a run"),
        ("unfinished", "the run has not ended: resume it to its end"),
        ("columns", "assignments.parquet has no column cluster: give the folder of a run"),
        ("damaged", "assignments.parquet is damaged"),
        ("elsewhere", "no sample is in both: its first sample_id is 100000, here it is 0: give"),
        ("paths", "its samples are known by their paths, these by their rows: give clusters"),
        ("edits", "edits of another run, or of other clusters"),
        ("twice", "name=threes: cluster 3 has this name already"),
    ],
)
def test_earlier_clusters_that_cannot_be_followed_are_refused_in_a_line(
    few: Path, tmp_path: Path, change: str, told: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(few, other)
    file = other / "assignments.parquet"
    table = pq.read_table(file)
    if change in ("none", "unfinished"):
        file.unlink()
    if change == "none":
        (other / "config.yaml").unlink()
    elif change == "columns":
        pq.write_table(table.drop_columns(["cluster"]), file)
    elif change == "damaged":
        file.write_bytes(file.read_bytes()[:200])
    elif change == "elsewhere":
        ids = pa.array(table["sample_id"].to_numpy() + 100000)
        pq.write_table(table.set_column(0, "sample_id", ids), file)
    elif change == "paths":
        paths = pa.array([f"{i}.png" for i in range(len(table))])
        pq.write_table(table.append_column("path", paths), file)
    elif change == "edits":
        log = EditLog((Edit("rename", (4,), name="fours"),))
        write_edits(RunDirectory(other), log, "of other clusters")
    elif change == "twice":
        (other / "names.yaml").write_text("3: threes\n4: threes\n")
    with pytest.raises(UserError, match=f"^--ids-of=.*other: .*{told}|^--ids-of=.*other: {told}"):
        arguments = ["--run", str(few), "--clusters", "4", "--out", str(tmp_path / "out")]
        conr_ray.recluster.main([*arguments, "--ids-of", str(other)])
    file = tmp_path / "config.yaml"
    file.write_text(config_of(data__path=str(few.parent / "few.parquet")).to_yaml())
    with pytest.raises(UserError, match=r"^clustering.ids_of=.*other: "):
        arguments = ["--config", str(file), "--local", "--storage", str(tmp_path), "--name", "run"]
        conr_ray.train.main([*arguments, "--ids-of", str(other)])


def test_options_that_exclude_each_other_are_refused(few: Path, tmp_path: Path) -> None:
    for arguments, told in (
        (["--edits", "--ids-of", str(few)], "--edits keeps the numbers"),
        (["--extend", "x", "--ids-of", str(few), "--out", "y"], "leave out --ids-of"),
        (["--extend", "x"], "give its folder with --out"),
        (["--extend", str(tmp_path / "none"), "--out", str(tmp_path / "o")], "--extend: data.path"),
    ):
        with pytest.raises(UserError, match=told):
            conr_ray.recluster.main(["--run", str(few), *arguments])
    wide = tmp_path / "wide.parquet"
    pq.write_table(pa.table({"embedding": lists_of(np.random.rand(99, 5).astype("f4"))}), wide)
    with pytest.raises(UserError, match=r"vectors of 5, but those of .* are 64: give vectors"):
        conr_ray.recluster.main(
            ["--run", str(few), "--extend", str(wide), "--out", str(tmp_path / "wider")]
        )
