"""A person's edits: which clusters and names they give, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conr_ray.edits.folder import fingerprint_of, read_edits, write_edits
from conr_ray.edits.log import JUNK, Edit, EditLog, sorted_ids
from conr_ray.errors import UserError
from conr_ray.storage.files import Folder

IDS = np.array([40, 10, 30, 20, 50])
CLUSTERS = np.array([0, 0, 1, 2, 2])


def log_of(*steps: Edit) -> EditLog:
    log = EditLog()
    for step in steps:
        log = log.with_step(step)
    return log


def move(into: int, *ids: int) -> Edit:
    return Edit("move", (), into, sample_ids_m=sorted_ids(ids))


def test_clusters_follow_the_steps_in_their_order() -> None:
    log = log_of(
        Edit("merge", (0, 1), 0),
        move(2, 30),
        Edit("split", (2,), 3, sample_ids_m=sorted_ids([50, 30])),
        move(JUNK, 10, 99),
    )
    assert log.clusters(IDS, CLUSTERS).tolist() == [0, JUNK, 3, 2, 3]
    # A part of the samples, in another order, has the same clusters.
    some = np.array([4, 2, 0])
    assert log.clusters(IDS[some], CLUSTERS[some]).tolist() == [3, 3, 0]


def test_undo_takes_back_one_step_after_another() -> None:
    log = log_of(Edit("merge", (0, 1), 0), move(2, 40), Edit("undo"))
    assert log.clusters(IDS, CLUSTERS).tolist() == [0, 0, 0, 2, 2]
    log = log.with_step(Edit("undo"))
    assert log.clusters(IDS, CLUSTERS).tolist() == CLUSTERS.tolist()
    with pytest.raises(UserError, match="nothing has been changed"):
        log.with_step(Edit("undo"))
    assert [step.kind for step in log.steps] == ["merge", "move", "undo", "undo"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), max_size=8))
def test_steps_and_as_many_undone_leave_what_was_there(moves: list[tuple[int, int, int]]) -> None:
    log = EditLog()
    for first, into, row in moves:
        step = move(into, IDS[row]) if first == into else Edit("merge", (first, into), into)
        log = log.with_step(step)
    for _ in moves:
        log = log.with_step(Edit("undo"))
    assert log.clusters(IDS, CLUSTERS).tolist() == CLUSTERS.tolist()


def test_a_name_is_one_clusters_until_that_is_merged() -> None:
    log = log_of(Edit("rename", (0,), name="shoes"), Edit("rename", (1,), name="bags"))
    with pytest.raises(UserError, match=r"name=Shoes: cluster 0 has this name already: choose"):
        log.with_step(Edit("rename", (2,), name="Shoes"))
    merged = log.with_step(Edit("merge", (0, 2), 2))
    assert merged.names() == {1: "bags", 2: "shoes"}
    assert merged.with_step(Edit("rename", (2,), name="")).names() == {1: "bags"}
    assert merged.with_step(Edit("undo")).names() == {0: "shoes", 1: "bags"}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Edit("merge", (1,), 1), "one cluster alone"),
        (move(1), "no images are chosen"),
        (Edit("rename", (1,), name="x" * 81), "81 characters"),
        (Edit("rename", (1,), name="a\nb"), "in one line"),
    ],
)
def test_steps_that_cannot_be_done(step: Edit, said: str) -> None:
    with pytest.raises(UserError, match=said):
        EditLog().with_step(step)


def test_fixed_samples_go_with_the_clusters_they_are_put_into() -> None:
    log = log_of(move(2, 40), move(1, 50), Edit("merge", (2, 0), 0))
    assert log.fixed() == {40: 0, 50: 1}


def test_files_hold_every_step(tmp_path: Path) -> None:
    centers = np.array([[1, 0], [0, 1]], np.float32)
    split = Edit("split", (2,), 3, sample_ids_m=sorted_ids([50]), centers_2d=centers, at="2026")
    log = log_of(Edit("rename", (0,), name="häuser: 1"), split, move(1, 10), Edit("undo"))
    folder, mark = Folder(tmp_path), fingerprint_of(IDS, CLUSTERS)
    write_edits(folder, log, mark)
    again = read_edits(folder, mark)
    assert [step.kind for step in again.steps] == ["rename", "split", "move", "undo"]
    assert again.names() == {0: "häuser: 1"}
    kept = again.steps[1].centers_2d
    assert kept is not None and (kept == centers).all()
    assert (again.clusters(IDS, CLUSTERS) == log.clusters(IDS, CLUSTERS)).all()


def test_edits_of_other_clusters_are_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    write_edits(folder, log_of(Edit("merge", (0, 1), 0)), fingerprint_of(IDS, CLUSTERS))
    with pytest.raises(UserError, match="edits of another run"):
        read_edits(folder, fingerprint_of(IDS, CLUSTERS[::-1]))


def test_names_written_by_hand_are_steps(tmp_path: Path) -> None:
    folder, mark = Folder(tmp_path), fingerprint_of(IDS, CLUSTERS)
    write_edits(folder, log_of(Edit("rename", (0,), name="cars")), mark)
    folder.write_text("names.yaml", "1: boats\n2: 7\n")
    log = read_edits(folder, mark)
    assert log.names() == {1: "boats", 2: "7"}
    assert log.with_step(Edit("undo")).names() == {1: "boats"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0: cars\n1: Cars\n", "cluster 0 has this name already"),
        ("- cars\n", "not a list of clusters and names"),
        ("one: cars\n", "not a list of clusters and names"),
        ("0: [", "not a list of clusters and names"),
    ],
)
def test_names_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    folder = Folder(tmp_path)
    folder.write_text("names.yaml", text)
    with pytest.raises(UserError, match=said):
        read_edits(folder, "any")
