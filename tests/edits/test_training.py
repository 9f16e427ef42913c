"""Runs that learn from a person's edits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import conr_ray.train
from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.session import Session
from conr_ray.config import RunConfig
from conr_ray.data.store import open_data
from conr_ray.edits.log import JUNK
from conr_ray.engine.given_edits import TABLE, edits_digest
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_store import trunk_name
from conr_ray.errors import UserError
from conr_ray.method.clustering.corrections import heeded_clusters
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.neighbors.data_neighbors import DataNeighbors
from conr_ray.method.neighbors.links import Links
from conr_ray.method.stages.pairs import PairStage
from tests.browsing.conftest import digits  # noqa: F401
from tests.engine.test_loop import assert_same_tensors, final_state
from tests.engine.test_trunk import fork, origin_of, store_in
from tests.gloo_workers import run_workers
from tests.tiny_runs import as_settings, run_here, run_step_by_step, tiny_config, without_times


def links_of(groups: list[int], fixed: list[int], junk: list[int]) -> Links:
    rows = torch.arange(len(groups))
    return Links(
        torch.tensor(groups),
        torch.isin(rows, torch.tensor(fixed)),
        torch.isin(rows, torch.tensor(junk)),
    )


# Samples 0 to 3 belong together by themselves, 4 to 6 as a merged cluster, 7 is alone, 8 is junk.
LINKS = links_of([0, 0, 0, 0, 1, 1, 1, 2, -1, -1, -1, -1], [0, 1, 2, 3, 7], [8])


def test_neighbours_are_parted_and_joined_as_the_person_says() -> None:
    ids_p = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    order = torch.argsort(ids_p)
    # Of each sample its own row and five others.
    near = torch.stack(
        [torch.cat([order[[i]], order[torch.arange(12) != i][:5]]) for i in range(12)]
    )
    found = LINKS.heeded(near, torch.arange(12), ids_p)
    groups, fixed = LINKS.groups_n.tolist(), LINKS.fixed_n.tolist()
    for sample in range(12):
        before = ids_p[near[sample]].tolist()
        entries = [None if row < 0 else int(ids_p[row]) for row in found[sample].tolist()]
        assert entries[0] == sample
        there = [one for one in entries if one is not None]
        assert len(there) == len(set(there))
        own = groups[sample]
        size = groups.count(own) if own >= 0 else 0
        for place, one in enumerate(before[: 3 if size > 1 else 6]):
            apart = own >= 0 and groups[one] >= 0 and groups[one] != own
            gone = one == 8 or (apart and (fixed[one] or fixed[sample]))
            assert entries[place] == (None if gone and one != sample else one)
        if size > 1:
            others = {one for one in range(12) if groups[one] == own and one != sample}
            assert set(entries[3:]) - {None} <= others
            assert others <= set(there)
    # Members of a merged cluster may still be near samples of which nothing is said.
    assert 9 in ids_p[near[4]].tolist() or 10 not in ids_p[near[4]].tolist()


def test_without_a_word_nothing_changes() -> None:
    silent = links_of([-1] * 6, [], [])
    near = torch.tensor([[i, (i + 1) % 6, (i + 2) % 6, -1] for i in range(6)])
    assert torch.equal(silent.heeded(near, torch.arange(6), torch.arange(6)), near)
    alone = links_of([-1, 0, -1, -1, -1, -1], [1], [])
    assert torch.equal(alone.heeded(near, torch.arange(6), torch.arange(6)), near)


def _pool(kind: str, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids and mean keys of the neighbours of all workers, over steps, and the latest keys."""
    from conr_ray.method.collectives import all_gather_rows

    generator = torch.Generator().manual_seed(1)
    bank = MemoryBank(size, 8, 6, Neighborhood(kind, 5, 2, 6))
    found = []
    for step in range(3):
        keys = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator))
        ids = torch.arange(6) + 6 * (step % 2)
        [near] = bank.find([keys], ids, LINKS)
        parts = (all_gather_rows(one, 6) for one in (near.sample_ids_bk, near.mean_keys_bd))
        found.append((*parts, keys))
    return found


@pytest.mark.parametrize("kind", ["contextual", "euclidean"])
@pytest.mark.parametrize("size", [0, 7])
def test_the_pool_heeds_it_and_means_are_of_what_is_left(kind: str, size: int) -> None:
    held: dict[int, Tensor] = {}
    for step, (ids_nk, means_nd, keys_nd) in enumerate(_pool(kind, size)):
        own = (torch.arange(6) + 6 * (step % 2)).tolist()
        held = (held if size else {}) | dict(zip(own, keys_nd, strict=True))
        for place, sample in enumerate(own):
            there = [one for one in ids_nk[place].tolist() if one >= 0]
            assert there[0] == sample and len(there) == len(set(there))
            assert 8 not in there[1:]
            if sample < 4:
                assert not {4, 5, 6, 7} & set(there)
                assert not set(range(4)) & set(own) - set(there)
            mean_d = torch.stack([held[one] for one in there]).mean(0)
            assert torch.allclose(means_nd[place], mean_d, atol=1e-6)


def test_the_pool_is_the_same_on_two_workers() -> None:
    [one] = run_workers(_pool, 1, "contextual", 7)
    for found in run_workers(_pool, 2, "contextual", 7):
        for left, right in zip(one, found, strict=True):
            assert torch.equal(left[0], right[0]) and torch.allclose(left[1], right[1], atol=1e-6)


def test_pairs_heed_it() -> None:
    rows = torch.nn.functional.normalize(
        torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    )
    near = DataNeighbors(Neighborhood("euclidean", 5, 2, 6), lambda: rows, 12)
    stage = PairStage("euclidean", links=LINKS)
    stage.find(near)
    lists = stage.neighbors_mk
    assert lists is not None and (lists[:, 0] == torch.arange(12)).all()
    assert not torch.isin(lists[[i for i in range(12) if i != 8]], torch.tensor(8)).any()
    for sample in range(4):
        assert not {4, 5, 6, 7} & set(lists[sample].tolist())
        assert set(range(4)) <= set(lists[sample].tolist())


def test_groups_become_clusters_of_their_own() -> None:
    groups = np.repeat(np.arange(3), 8)
    near = torch.tensor(
        [[j for j in range(24) if groups[j] == groups[i] and j != i] for i in range(24)]
    )
    # k-means has the first two as one and halves the third.
    clusters = torch.tensor([0] * 16 + [1] * 4 + [2] * 4)
    said = [-1] * 24
    for row in (8, 9, 10, 11, 12):
        said[row] = 0
    for row in (16, 17, 22, 23):
        said[row] = 1
    links = links_of(said, [8, 9, 10, 11, 12], [20])
    found = heeded_clusters(clusters, near, links, 3).tolist()
    first = found[8]
    assert found[8:16] == [first] * 8
    third = found[16]
    # By neighbours, also of junk.
    assert found[16:] == [third] * 8 and third != first
    assert len({first, third}) == 2


# --- Runs.


@pytest.fixture
def edited(digits: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A run that a person has changed."""
    folder = Path(shutil.copytree(digits, tmp_path / "edited"))
    with Session(open_collection(str(folder))) as session:
        session.move(session.members(7, 0, 6).tolist(), JUNK)
        session.merge([0, 1])
        session.move(session.members(2, 0, 8).tolist(), 5)
        session.move(session.members(3, 0, 8, least_sure=True).tolist(), 4)
    return folder


def learning(edited: Path, **changes: Any) -> RunConfig:
    return tiny_config(clustering__edits=str(edited), **changes)


def test_a_run_learns_from_edits_and_trains_on_no_junk(edited: Path, tmp_path: Path) -> None:
    config = learning(edited)
    run_here(config, tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / TABLE)
    junk, fixed = table["junk"].to_numpy(), table["fixed"].to_numpy()
    groups = table["group"].to_numpy()
    assert junk.sum() == 6 and fixed.sum() == 16 and not (junk & fixed).any()
    clusters = pq.read_table(tmp_path / "run/assignments.parquet")["cluster"].to_numpy()
    of_fixed = {(g, c) for g, c in zip(groups[fixed], clusters[fixed], strict=True)}
    # Each group of those that were moved is one cluster, and no two are the same.
    assert len(of_fixed) == 2 == len({c for _, c in of_fixed})
    state = final_state(tmp_path / "run")
    assert state["pseudo_labels"].tolist() == clusters.tolist()
    assert not set(np.flatnonzero(junk)) & set(state["bank"]["sample_ids"].tolist())
    plain = run_here(tiny_config(), tmp_path / "plain")
    learned = RunDirectory(tmp_path / "run").metric_rows()
    assert learned[0]["loss"] != plain[0]["loss"]


def test_a_run_with_edits_resumes_bit_for_bit_whatever_is_edited_meanwhile(
    edited: Path, tmp_path: Path
) -> None:
    config = learning(edited)
    whole = run_here(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("checkpoints", "metrics.jsonl"):
        place = tmp_path / "parts" / name
        if place.is_dir():
            shutil.rmtree(place)
    with Session(open_collection(str(edited))) as session:
        session.undo()
    rows, told = run_step_by_step(config, tmp_path / "parts")
    assert len(told) > 4
    assert without_times(rows) == without_times(whole)
    assert_same_tensors(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def _trained(source: str, folder: str) -> Any:
    config = tiny_config(clustering__edits=source, schedule__epochs=3)
    data = open_data(config.data)
    return train(config, data, RunDirectory(folder), Observers(), torch.device("cpu"))


@pytest.mark.slow
def test_two_workers_learn_the_same(edited: Path, tmp_path: Path) -> None:
    [one] = run_workers(_trained, 1, str(edited), str(tmp_path / "one"))
    first, second = run_workers(_trained, 2, str(edited), str(tmp_path / "two"))
    assert without_times(first) == without_times(second)
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in one], abs=1e-3)


def test_edits_are_part_of_what_shapes_a_trunk(edited: Path, tmp_path: Path) -> None:
    config = learning(edited)
    whole = run_here(config, tmp_path / "whole")
    store = store_in(tmp_path, 2)
    fork(tiny_config(), store, tmp_path / "plain")
    rows = fork(config, store, tmp_path / "fork")
    assert origin_of(tmp_path / "fork").built_epochs == 2
    assert origin_of(tmp_path / "fork").trunk != origin_of(tmp_path / "plain").trunk
    assert without_times(rows) == without_times(whole)
    assert_same_tensors(final_state(tmp_path / "fork"), final_state(tmp_path / "whole"))
    # Wherever they are.
    shutil.copytree(edited, tmp_path / "elsewhere")
    fork(learning(tmp_path / "elsewhere"), store, tmp_path / "again")
    assert origin_of(tmp_path / "again").built_epochs == 0
    assert trunk_name(config, "x", None, edits_digest(LINKS)) != trunk_name(config, "x")


def test_heads_learn_from_edits(edited: Path, tmp_path: Path) -> None:
    changes = {"model__framework": "heads", "neighborhood__pool": "data", "bank__size": 0}
    config = learning(edited, **changes, boundary__initial_fraction=0.8)
    whole = run_here(config, tmp_path / "run")
    assert whole[-1]["loss"] is not None
    table = pq.read_table(tmp_path / "run" / TABLE)
    fixed, groups = table["fixed"].to_numpy(), table["group"].to_numpy()
    clusters = pq.read_table(tmp_path / "run/assignments.parquet")["cluster"].to_numpy()
    for group in set(groups[fixed].tolist()):
        assert len(set(clusters[fixed & (groups == group)].tolist())) == 1


def train_with(source: Path, folder: Path, *more: str, **changes: Any) -> None:
    settings = as_settings({**changes}) if changes else []
    arguments = ["--preset", "digits", "--local", "--storage", str(folder), "--name", "run"]
    conr_ray.train.main([*arguments, *settings, "--edits", str(source), *more])


@pytest.mark.parametrize("as_file", [False, True])
def test_the_command(edited: Path, tmp_path: Path, as_file: bool) -> None:
    tiny = tiny_config().model_dump(mode="json")
    changes = [
        f"--set={section}.{leaf}={tiny[section][leaf]}"
        for section, leaf in (
            ("data", "limit"),
            ("model", "widths"),
            ("model", "head_hidden_dim"),
            ("model", "embedding_dim"),
            ("optim", "batch_size"),
            ("schedule", "epochs"),
            ("schedule", "group_start"),
            ("schedule", "relax_epochs"),
            ("schedule", "warmup_epochs"),
        )
    ]
    source = edited / "edits.parquet" if as_file else edited
    train_with(source, tmp_path / "runs", *changes)
    config = RunDirectory(tmp_path / "runs/run").read_config()
    assert config is not None and config.clustering.edits == str(source)
    assert (tmp_path / "runs/run" / TABLE).exists()


def test_edits_that_are_not_of_these_samples_are_refused(edited: Path, tmp_path: Path) -> None:
    def refused(config: RunConfig, told: str) -> None:
        with pytest.raises(UserError, match=told):
            run_here(config, tmp_path / "run")
        assert not (tmp_path / "run/checkpoints").exists()

    refused(learning(edited, data__limit=200), "of a run on other images")
    refused(learning(edited, clustering__num_clusters=2), "of 3 clusters, and the run may have 2")
    refused(
        learning(edited, optim__batch_size=296, bank__size=0), "exceeds the 294 images that are"
    )
    refused(learning(tmp_path), "there is no edits.parquet")
    with Session(open_collection(str(edited))) as session:
        for _ in range(4):
            session.undo()
        session.rename(0, "noughts")
    refused(learning(edited), "names teach nothing")
    with Session(open_collection(str(edited))) as session:
        session.merge([0, 1])
    table = pq.read_table(edited / "assignments.parquet")
    at = table.column_names.index("cluster")
    other = np.roll(table["cluster"].to_numpy(), 1)
    pq.write_table(table.set_column(at, "cluster", [other]), edited / "assignments.parquet")
    refused(learning(edited), "edits of another run")
    (edited / "assignments.parquet").unlink()
    refused(learning(edited), "no assignments.parquet is beside them")
