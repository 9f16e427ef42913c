"""Near-duplicates: pairs that vectors propose and pixels confirm, in groups with one to keep.

Shapes: n samples, m pairs, k neighbours.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from conr_ray.curation.alignment import CLOSE, SIDE, likeness
from conr_ray.curation.calibration import Tail, precisions, threshold
from conr_ray.curation.cells import Neighbors
from conr_ray.curation.pictures import Thumbnails

CANDIDATES = 4
"""Nearest neighbours of each sample that may be its duplicates."""

LEAST_PRECISION = 0.9
"""Of all pairs that are reported together."""

# Ordinary pairs are of neighbours from this rank on; how many; samples of which copies are made.
_ORDINARY, _ORDINARY_PAIRS = 6, 8192
_COPIED = 400
# Likeness below which no pair is a duplicate, whatever it is compared with.
_LEAST_LIKENESS = 0.935
_NEARLY_EQUAL = 0.95
# The rate of the tail where too few ordinary pairs are alike, per unit of `_stretched`.
_RATE = 6.0
# Distances below this are rounding.
_SAME = 1e-6


@dataclass(frozen=True)
class Pairs:
    """Pairs of duplicates.

    Attributes:
        left_m: row of one, int64.
        right_m: row of the other, larger.
        scores_m: likeness of pictures, or cosine of vectors.
        precisions_m: estimated share of true pairs among those at least as much alike.
        inside_m: below 1 where the left picture shows more, above 1 where less.
        threshold: least score of the pairs.
        recall: share of planted copies above it; None for vectors alone.
    """

    left_m: NDArray[np.int64]
    right_m: NDArray[np.int64]
    scores_m: NDArray[np.float32]
    precisions_m: NDArray[np.float64]
    inside_m: NDArray[np.float32]
    threshold: float
    recall: float | None = None


@dataclass(frozen=True)
class Group:
    """Samples that are copies of one another: the one to keep, and the others.

    Attributes:
        keep: row.
        others: rows, ascending.
        scores: of each row, keep included, that of its best pair.
        precisions: likewise.
    """

    keep: int
    others: list[int]
    scores: dict[int, float]
    precisions: dict[int, float]


def by_pixels(
    neighbors: Neighbors, alike: Neighbors, thumbnails: Thumbnails, seed: int = 0
) -> Pairs:
    """Pairs of neighbours whose pictures are alike but for crop, size, encoding and brightness.

    Neighbours are those by vectors, and those by thumbnails, `alike`.

    The threshold on likeness is the lowest at which the estimated precision is `LEAST_PRECISION`:
    what ordinary neighbours, of higher ranks, reach is false. Copies of a sample of the pictures,
    made on the spot, tell how many it finds.
    """
    count = len(thumbnails.has_n)
    proposed = [_candidates(one, thumbnails.has_n)[:2] for one in (neighbors, alike)]
    joined = np.unique(np.concatenate([left * count + right for left, right in proposed]))
    left_m, right_m = joined // count, joined % count
    found = likeness(thumbnails.pixels_n, left_m, right_m)
    generator = np.random.default_rng(seed)
    ordinary = _ordinary(neighbors, thumbnails, generator)
    tail = Tail.above(_stretched(ordinary), _stretched(np.array([CLOSE]))[0], _RATE)
    precisions_m = precisions(_stretched(found.scores_m), tail)
    # Equal ones are copies, however much alike all others are.
    equal = np.flatnonzero(found.scores_m > _NEARLY_EQUAL)
    for start in range(0, len(equal), _ORDINARY_PAIRS):
        some = equal[start : start + _ORDINARY_PAIRS]
        pixels = (thumbnails.pixels_n[side[some]] for side in (left_m, right_m))
        precisions_m[some[np.equal(*pixels).all((1, 2, 3))]] = 1
    copies = _planted(thumbnails, generator)
    unequal = precisions_m < 1
    least = threshold(found.scores_m[unequal], precisions_m[unequal], LEAST_PRECISION)
    least = max(_LEAST_LIKENESS, least)
    chosen = (found.scores_m >= least) | (precisions_m == 1)
    return Pairs(
        left_m[chosen],
        right_m[chosen],
        found.scores_m[chosen],
        precisions_m[chosen],
        found.inside_m[chosen],
        least,
        float((copies >= least).mean()) if len(copies) else None,
    )


def by_vectors(neighbors: Neighbors) -> Pairs:
    """Pairs of vectors much nearer than neighbours are elsewhere: less sure than pictures.

    The distance of a sample to its nearest neighbour is compared with that between neighbours of
    the middle of its list, so that dense and sparse regions are judged alike.
    """
    cosines_nk = np.asarray(neighbors.similarities_nk)
    wide = cosines_nk[:, min(_ORDINARY, cosines_nk.shape[1]) - 1 :]
    usual_n = 1 - np.median(np.where(np.isfinite(wide), wide, 0), axis=1)
    left_m, right_m, cosines_m = _candidates(neighbors, np.isfinite(cosines_nk[:, 0]))
    scores_m = _nearer(cosines_m, np.minimum(usual_n[left_m], usual_n[right_m]))
    first_n = _nearer(cosines_nk[:, 0], usual_n)
    tail = Tail.between(first_n, 0.5, 0.9)
    precisions_m = precisions(scores_m, tail)
    alike = scores_m >= threshold(scores_m, precisions_m, LEAST_PRECISION)
    return Pairs(
        left_m[alike],
        right_m[alike],
        cosines_m[alike],
        precisions_m[alike],
        np.ones(int(alike.sum()), np.float32),
        float(cosines_m[alike].min()) if alike.any() else 1.0,
    )


def _nearer(cosines: NDArray[np.float32], usual: NDArray[np.floating]) -> NDArray[np.floating]:
    """How much nearer than usual, as the logarithm of a quotient of distances."""
    distances = np.maximum(1 - np.maximum(cosines, -1), _SAME)
    nearer: NDArray[np.floating] = np.log(np.maximum(usual, _SAME) / distances)
    return nearer


def groups_of(pairs: Pairs, num_rows: int, areas_n: NDArray[np.int64] | None) -> list[Group]:
    """Groups of samples that pairs join.

    The one to keep has the most pixels; of equal ones, that of which others are crops; then the
    first.
    """
    if not len(pairs.left_m):
        return []
    ones = np.ones(len(pairs.left_m), np.int8)
    graph = coo_array((ones, (pairs.left_m, pairs.right_m)), shape=(num_rows, num_rows))
    names_n = connected_components(graph, directed=False)[1]
    rows = np.unique(np.concatenate([pairs.left_m, pairs.right_m]))
    shows_n = np.zeros(num_rows, np.int32)
    cropped = np.abs(np.log(pairs.inside_m)) > 0.03
    left_more = cropped & (pairs.inside_m < 1)
    np.add.at(shows_n, pairs.right_m[left_more], -1)
    np.add.at(shows_n, pairs.left_m[cropped & ~left_more], -1)
    best_score, best_precision = np.zeros(num_rows), np.zeros(num_rows)
    for side in (pairs.left_m, pairs.right_m):
        np.maximum.at(best_score, side, pairs.scores_m)
        np.maximum.at(best_precision, side, pairs.precisions_m)
    areas = np.zeros(len(rows), np.int64) if areas_n is None else areas_n[rows]
    order = np.lexsort((rows, -shows_n[rows], -areas, names_n[rows]))
    rows = rows[order]
    starts = np.flatnonzero(np.diff(names_n[rows], prepend=-1))
    groups = []
    for members in np.split(rows, starts[1:]):
        keep, *others = members.tolist()
        others.sort()
        groups.append(
            Group(
                keep,
                others,
                {row: float(best_score[row]) for row in (keep, *others)},
                {row: float(best_precision[row]) for row in (keep, *others)},
            )
        )
    return sorted(groups, key=lambda group: (-len(group.others), group.keep))


def _candidates(
    neighbors: Neighbors, usable_n: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Each pair of a sample and one of its nearest once, sorted by the smaller row; cosines."""
    near_nk = np.asarray(neighbors.rows_nk[:, :CANDIDATES], np.int64)
    left = np.repeat(np.arange(len(near_nk)), near_nk.shape[1])
    right = near_nk.ravel()
    usable = (right >= 0) & usable_n[left] & usable_n[right]
    low, high = np.minimum(left, right)[usable], np.maximum(left, right)[usable]
    joined, first = np.unique(low * len(near_nk) + high, return_index=True)
    cosines = np.asarray(neighbors.similarities_nk[:, :CANDIDATES]).ravel()[usable][first]
    return joined // len(near_nk), joined % len(near_nk), cosines


def _stretched(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Correlations as Fisher's z, which has room near 1."""
    stretched: NDArray[np.floating] = np.arctanh(np.clip(scores, -0.9999, 0.9999))
    return stretched


def _ordinary(
    neighbors: Neighbors, thumbnails: Thumbnails, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Likeness of pairs that are seldom duplicates, though neighbours."""
    ranks = neighbors.rows_nk.shape[1]
    first = min(_ORDINARY, ranks) - 1
    rows = np.flatnonzero(thumbnails.has_n)
    left = generator.choice(rows, _ORDINARY_PAIRS)
    places = generator.integers(first, ranks, len(left))
    right = neighbors.rows_nk[left, places].astype(np.int64)
    usable = (right >= 0) & thumbnails.has_n[right]
    return likeness(thumbnails.pixels_n, left[usable], right[usable]).scores_m


def _planted(thumbnails: Thumbnails, generator: np.random.Generator) -> NDArray[np.float32]:
    """Likeness of pictures with copies of them, each changed in one of four ways."""
    rows = np.flatnonzero(thumbnails.has_n)
    rows = generator.choice(rows, min(_COPIED, len(rows)), replace=False)
    originals = np.array(thumbnails.pixels_n[rows])
    copies = [_copy(p, place % 4, generator) for place, p in enumerate(originals)]
    both = np.concatenate([originals, np.stack(copies)])
    places = np.arange(len(rows))
    return likeness(both, places, places + len(rows)).scores_m


def _copy(pixels: NDArray[np.uint8], way: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A crop, a re-encoded, a brighter or darker, or a smaller copy of a thumbnail."""
    picture = Image.fromarray(pixels.transpose(1, 2, 0))
    if way == 0:
        width, height = generator.uniform(0.8, 0.95, 2) * SIDE
        left, top = generator.uniform(0, SIDE - width), generator.uniform(0, SIDE - height)
        box = (left, top, left + width, top + height)
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
    elif way == 1:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(generator.integers(40, 91)))
        picture = Image.open(buffer)
    elif way == 2:
        factor = generator.choice([generator.uniform(0.6, 0.85), generator.uniform(1.15, 1.5)])
        picture = Image.fromarray(
            np.clip(np.asarray(picture, np.float32) * factor, 0, 255).astype(np.uint8)
        )
    else:
        side = int(generator.integers(SIDE // 2, SIDE))
        picture = picture.resize((side, side), Image.Resampling.BICUBIC).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
    return np.asarray(picture, np.uint8).transpose(2, 0, 1)
