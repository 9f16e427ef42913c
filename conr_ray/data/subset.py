"""Parts of a data set: a fixed random subset, and a long tail of its classes.

Shapes: n samples, c classes.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from conr_ray.config import DataConfig
from conr_ray.data.encoded_rows import EncodedRows, Rows
from conr_ray.data.statistics import statistics_of
from conr_ray.errors import UserError
from conr_ray.storage import disk

if TYPE_CHECKING:
    from conr_ray.data.data_set import DataSet

# Fields of `data` that do not affect what is decoded.
BESIDE_THE_COPY = {"imbalance", "limit", "placement", "download", "stream"}
# Those that leave samples out, as they are where all are wanted.
ALL_SAMPLES = {"data.imbalance": None, "data.limit": None}
_SUBSET_KEY = 20230923
_SUMMED_ROWS = 1024


def chosen_part(whole: DataSet, config: DataConfig) -> DataSet:
    """What `data.imbalance` and then `data.limit` leave of a data set, in its order.

    It depends only on them, on the size of the whole set and on its labels; a smaller limit gives a
    part of a larger one's.

    Raises:
        UserError: there are fewer samples than the limit, or no labels to imbalance.
    """
    if config.imbalance is not None:
        whole = _part(whole, _long_tail(whole, config.imbalance))
    limit, num_rows = config.limit, whole.num_rows
    if limit is None or limit == num_rows:
        return whole
    check_limit(limit, num_rows, whole.what)
    return _part(whole, np.sort(_shuffled(num_rows)[:limit]))


def check_limit(limit: int, num_rows: int, what: str) -> None:
    """Raise UserError if there are fewer samples than `data.limit`."""
    if limit > num_rows:
        raise UserError(
            f"data.limit={limit}: there are {num_rows} {what}; lower it or leave it out"
        )


def no_labels(ratio: float, what: str) -> UserError:
    """The error of `data.imbalance` without labels."""
    return UserError(
        f"data.imbalance={ratio:g}: the {what} have no labels to make rare classes of: leave it out"
    )


def _shuffled(num_rows: int) -> npt.NDArray[np.int64]:
    """Rows in a fixed random order."""
    # The raw words of a bit generator are stable between NumPy versions; permutations may change.
    words = np.random.PCG64(_SUBSET_KEY).random_raw(num_rows)
    return np.argsort(words, kind="stable").astype(np.int64)


def long_tail_counts(counts_c: npt.NDArray[Any], ratio: float) -> npt.NDArray[np.int64]:
    """Samples that a long tail keeps of classes, (c,), at least one of each that has some.

    Class i of c keeps the most frequent one's count times ratio ** (-i / (c - 1)), as Cui et al.
    2019 and Cao et al. 2019 make CIFAR's long tails, or all of its samples if they are fewer.
    """
    most, last = int(counts_c.max()), max(1, len(counts_c) - 1)
    wanted_c = (most * ratio ** (-np.arange(len(counts_c)) / last)).astype(np.int64)
    kept_c: npt.NDArray[np.int64] = np.minimum(counts_c, np.maximum(wanted_c, 1))
    return kept_c


def _long_tail(whole: DataSet, ratio: float) -> npt.NDArray[np.int64]:
    """Rows of a long tail of the labelled classes, sorted; unlabelled samples are left out."""
    labels_n = whole.labels
    if labels_n is None:
        raise no_labels(ratio, whole.what)
    classes_c, counts_c = np.unique(labels_n[labels_n >= 0], return_counts=True)
    order_n = _shuffled(whole.num_rows)
    kept = [
        order_n[labels_n[order_n] == label][:count]
        for label, count in zip(classes_c, long_tail_counts(counts_c, ratio), strict=True)
    ]
    return np.sort(np.concatenate(kept))


def _part(whole: DataSet, rows: npt.NDArray[np.int64]) -> DataSet:
    """The samples of `rows`, copied into memory unless they are streamed."""
    labels = None if whole.labels is None else whole.labels[rows]
    if labels is not None and (labels == -1).all():
        labels = None
    digests = [
        hashlib.sha256(one.encode() + rows.tobytes()).hexdigest()
        for one in (whole.fingerprint, whole.rows_fingerprint)
    ]
    chosen: Rows
    if isinstance(whole.rows, EncodedRows):
        chosen = streamed = whole.rows.part(rows)
        mean, std = _known_statistics(streamed, digests[1])
    else:
        chosen = copied = np.ascontiguousarray(whole.rows[rows])
        sums = statistics_of(copied.shape)
        sums.add(copied)
        mean, std = sums.mean_and_std()
    return replace(
        whole,
        rows=chosen,
        labels=labels,
        class_names=None if labels is None else whole.class_names,
        names=None if whole.names is None else [whole.names[row] for row in rows],
        sample_ids=whole.sample_ids[rows],
        num_in_all=whole.num_in_all or whole.num_rows,
        mean=mean,
        std=std,
        fingerprint=digests[0],
        rows_fingerprint=digests[1],
    )


def _known_statistics(
    rows: EncodedRows, fingerprint: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The statistics of a part, in a file beside the records: they take a pass over it."""
    path = rows.folder / f"part-{fingerprint[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads(path.read_text())
        return tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
    sums = statistics_of(rows.shape)
    for start in range(0, len(rows), _SUMMED_ROWS):
        sums.add(rows[start : start + _SUMMED_ROWS])
    mean, std = sums.mean_and_std()
    # A folder that only its owner may write is as good without.
    with suppress(OSError):
        disk.write_file(path, json.dumps({"mean": mean, "std": std}).encode())
    return mean, std
