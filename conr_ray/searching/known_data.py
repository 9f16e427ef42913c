"""What a plan knows about the data of a search without fetching or decoding them.

Prepared data are described by their own files. For other data, the numbers are published, or read
from the file or folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from conr_ray.config import DataConfig, load_preset
from conr_ray.data.inventory import line_of
from conr_ray.data.prepared import prepared_data
from conr_ray.data.sources import make_source
from conr_ray.data.sources.base import choose_splits
from conr_ray.data.subset import check_limit, long_tail_counts, no_labels
from conr_ray.engine.data_checks import Counted
from conr_ray.errors import UserError
from conr_ray.metric_names import LABELLED_METRICS
from conr_ray.searching.space import SearchSpace


@dataclass(frozen=True)
class _Published:
    """A data set's published numbers: images of each split, classes, channels and side length."""

    splits: dict[str, int]
    classes: int
    channels: int
    side: int


_DIGITS = _Published({"all": 1_797}, 10, 1, 8)
_TORCHVISION = {
    "cifar10": _Published({"train": 50_000, "test": 10_000}, 10, 3, 32),
    "cifar100": _Published({"train": 50_000, "test": 10_000}, 100, 3, 32),
    "mnist": _Published({"train": 60_000, "test": 10_000}, 10, 1, 28),
    "fashion_mnist": _Published({"train": 60_000, "test": 10_000}, 10, 1, 28),
    "stl10": _Published({"train": 5_000, "test": 8_000, "unlabeled": 100_000}, 10, 3, 96),
}
_COARSE_CLASSES = 20
_LOOKED_AT = 1000
# Presets that read a folder.
_IMAGENET = {
    "imagenet10": _Published({"train": 13_000}, 10, 3, 96),
    "imagenet_dogs": _Published({"train": 19_500}, 15, 3, 256),
}


@dataclass(frozen=True)
class KnownData:
    """What a plan knows about the data.

    Attributes:
        num_rows: rows of all splits that are read, less what `data.imbalance` and `data.limit`
            leave out.
        row_shape: shape of a sample, (c, h, w) or (d,).
        num_classes: number of classes; None without labels.
        fingerprint: of the prepared data; None if they are not prepared.
        source: where these facts come from, in words.
        line: what was found, in a line for people.
    """

    num_rows: int
    row_shape: tuple[int, ...]
    num_classes: int | None
    fingerprint: str | None
    source: str
    line: str = field(default="", compare=False)

    @property
    def what(self) -> str:
        """Images or vectors, for messages."""
        return "vectors" if len(self.row_shape) == 1 else "images"


def known_data(space: SearchSpace) -> KnownData:
    """What is known about the data of the runs of `space`.

    Raises:
        UserError: the settings of the data conflict, or nothing is known about the data.
    """
    whole = space.config()
    config = whole.data
    # Rejects settings that `open_data` would reject before reading a file.
    source = make_source(config)
    if (images := prepared_data(config)) is not None:
        return KnownData(
            images.num_rows,
            images.row_shape,
            images.num_classes,
            # Where images are embedded before training, that of the vectors is another.
            None if whole.embeds_once else images.fingerprint,
            "as prepared by an earlier run",
            images.line,
        )
    published = _published(config)
    if published is not None:
        return _part(config, _of_published(config, published))
    try:
        # Images of several sizes become others than the first one tells.
        source.look(_LOOKED_AT)
        contents = source.contents()
    except UserError:
        if space.preset in _IMAGENET and config.classes == load_preset(space.preset).data.classes:
            return _part(config, _of_published(config, _IMAGENET[space.preset]))
        raise
    labels = contents.labels
    num_classes, counts_c = None, None
    if labels is not None and (labels >= 0).any():
        counts_c = np.unique(labels[labels >= 0], return_counts=True)[1]
        num_classes = len(counts_c)
    line = line_of(contents.num_rows, contents.row_shape, labels, num_classes, source.inventory())
    known = KnownData(
        contents.num_rows, contents.row_shape, num_classes, None, f"as in {config.path}", line
    )
    return _part(config, known, counts_c)


def with_metric(space: SearchSpace, images: Counted) -> SearchSpace:
    """The space with the metric auto replaced by one that runs on `images` report.

    Raises:
        UserError: its metric needs labels, and there are none.
    """
    auto = "neighbor_consistency" if images.num_classes is None else "nmi"
    metrics = tuple(auto if metric == "auto" else metric for metric in space.metrics)
    for metric in metrics:
        if metric in LABELLED_METRICS and images.num_classes is None:
            raise UserError(
                f"metric={metric} needs labels and the data have none: set metric: "
                "neighbor_consistency"
            )
    return space.model_copy(update={"metrics": metrics})


def _published(config: DataConfig) -> _Published | None:
    if config.source == "digits":
        return _DIGITS
    return _TORCHVISION[config.name or ""] if config.source == "torchvision" else None


def _of_published(config: DataConfig, published: _Published) -> KnownData:
    splits = published.splits
    if config.source == "torchvision":
        splits = {name: splits[name] for name in choose_splits(config, splits)}
    labelled = config.label_column is not None and set(splits) != {"unlabeled"}
    classes = _COARSE_CLASSES if config.label_column == "coarse_label" else published.classes
    return KnownData(
        sum(splits.values()),
        (published.channels, published.side, published.side),
        classes if labelled else None,
        None,
        "as published; they are not prepared here yet",
    )


def _part(
    config: DataConfig, known: KnownData, counts_c: NDArray[np.int64] | None = None
) -> KnownData:
    """What `data.imbalance` and `data.limit` leave; classes are equally large if not counted."""
    if config.imbalance is not None:
        if known.num_classes is None:
            raise no_labels(config.imbalance, known.what)
        if counts_c is None:
            counts_c = np.full(known.num_classes, known.num_rows // known.num_classes)
        kept_c = long_tail_counts(counts_c, config.imbalance)
        known = replace(known, num_rows=int(kept_c.sum()))
    if config.limit is None:
        return known
    check_limit(config.limit, known.num_rows, known.what)
    return replace(known, num_rows=config.limit)
