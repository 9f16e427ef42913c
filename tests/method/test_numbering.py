"""Numbers of clusters that follow earlier ones, against all one-to-one matches."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conr_ray.method.clustering.numbering import counts_of, followed, matched, numbers_of

COUNTS = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 9))
)


@given(COUNTS, st.sampled_from([0.0, 1 / 3, 0.6]))
@settings(deadline=None, max_examples=80)
def test_no_other_match_keeps_more_samples(counts: np.ndarray, least: float) -> None:
    def allowed(a: int, c: int) -> bool:
        either = counts[a].sum() + counts[:, c].sum() - counts[a, c]
        return bool(counts[a, c] > 0 and counts[a, c] / either >= least - 1e-9)

    found = matched(counts, least)
    assert len(set(found.values())) == len(found)
    assert all(allowed(a, c) for c, a in found.items())
    wide = counts if counts.shape[0] <= counts.shape[1] else counts.T
    best = max(
        sum(
            int(wide[i, j])
            for i, j in enumerate(order)
            if (allowed(i, j) if wide is counts else allowed(j, i))
        )
        for order in permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert sum(int(counts[a, c]) for c, a in found.items()) == best


@given(st.permutations(range(6)))
def test_clusters_in_another_order_come_back_to_their_places(order: list[int]) -> None:
    before = np.repeat(np.arange(6), [9, 4, 7, 1, 30, 2])
    now = np.array(order)[before]
    counts = counts_of(before, now, 6, 6)
    assert np.argsort(followed(counts))[now].tolist() == before.tolist()
    numbers = [3, 4, 8, 10, 11, 20]
    assert numbers_of(counts, numbers, 21)[now].tolist() == np.array(numbers)[before].tolist()


def test_where_the_number_of_clusters_changes_the_old_ones_come_first() -> None:
    before = np.repeat([0, 1, 2], 10)
    more = np.repeat([3, 0, 2, 1], [10, 5, 5, 10])
    assert followed(counts_of(before, more, 3, 4))[[0, 2]].tolist() == [3, 1]
    fewer = np.repeat([1, 0], [10, 20])
    assert followed(counts_of(before, fewer, 3, 2)).tolist() == [1, 0]


def test_what_shares_too_little_gets_a_number_that_was_never_used() -> None:
    # The last is of halves of both, the first of none.
    before = np.array([0] * 40 + [1] * 40)
    now = np.array([1] * 21 + [3] * 19 + [2] * 21 + [3] * 19)
    counts = counts_of(before, now, 2, 4)
    assert numbers_of(counts, [5, 7], 9).tolist() == [9, 5, 7, 10]
    assert numbers_of(np.array([[1, 2]]), [4], 6).tolist() == [6, 4]
    assert numbers_of(np.array([[1], [1], [1], [1]]), [0, 1, 2, 3], 4).tolist() == [4]
    # Of three equal parts, one keeps the number.
    assert sorted(numbers_of(np.array([[7, 7, 7]]), [0], 1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_one_cluster_against_many(shape: tuple[int, int]) -> None:
    counts = np.arange(1, 6).reshape(shape)
    (pair,) = matched(counts).items()
    assert pair == ((4, 0) if shape == (1, 5) else (0, 4))
