"""CIFAR-10, -20 and -100 and STL-10, as torchvision reads, checks and fetches them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.benchmark_sets.base import BenchmarkSet, Images, Options
from conr_ray.data.sources.torchvision import TorchvisionSource
from conr_ray.errors import UserError

# Columns of a set's table, and what they are called in the official files.
_COLUMNS = {
    "cifar10": {"label": "label"},
    "cifar20": {"label": "coarse_label", "fine_label": "label"},
    "cifar100": {"label": "label", "coarse_label": "coarse_label"},
    "stl10": {"label": "label"},
}


def read_torchvision(spec: BenchmarkSet, root: Path, options: Options) -> Iterator[Images]:
    """The splits of a set of torchvision's, train and test, and unlabeled ones if asked for."""
    splits = ["train", "test", *(["unlabeled"] if options.unlabelled else [])]
    for split in splits:
        sources = {
            column: _source(spec, root, options, split, official)
            for column, official in _COLUMNS[spec.name].items()
        }
        labels: dict[str, NDArray[np.int64]] = {}
        names: dict[str, Sequence[str]] = {}
        for column, source in sources.items():
            contents = source.contents()
            assert contents.labels is not None
            labels[column] = contents.labels
            if contents.class_names is not None:
                names[column] = contents.class_names
        start = 0
        for block in sources["label"].blocks():
            rows = slice(start, start + len(block))
            start += len(block)
            some = {column: all_of[rows] for column, all_of in labels.items()}
            pixels = np.ascontiguousarray(block.transpose(0, 2, 3, 1))
            yield Images(split, pixels, some, names)


def _source(
    spec: BenchmarkSet, root: Path, options: Options, split: str, label_column: str
) -> TorchvisionSource:
    """A split, with its files in place."""

    def split_of(download: bool) -> TorchvisionSource:
        config = DataConfig(
            source="torchvision",
            name="cifar100" if spec.name == "cifar20" else spec.name,
            path=str(root),
            splits=(split,),
            label_column=label_column,
            download=download,
        )
        return TorchvisionSource(config)

    archive = root / spec.archive.name
    source = split_of(download=False)
    try:
        source.identity()
        return source
    except UserError as error:
        if not options.download and not archive.is_file():
            raise UserError(
                f"{spec.title} is not in {root}: {spec.archive.remedy(root)}"
            ) from error
    # torchvision unpacks it without a look at the network, if its sum is right.
    if archive.is_file():
        spec.archive.check(archive)
    source = split_of(download=True)
    try:
        source.identity()
    except UserError as error:
        told = str(error).removeprefix("data.path=").partition("; check the network")[0]
        raise UserError(
            f"{spec.title} cannot be fetched ({told}); {spec.archive.remedy(root)}"
        ) from None
    return source
