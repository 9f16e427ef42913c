"""The benchmark data sets that torchvision can download, in their official files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conr_ray.config import DataConfig
from conr_ray.data.decoding import fit_arrays
from conr_ray.data.sources.base import (
    Contents,
    Int64Array,
    Source,
    UInt8Array,
    check_label_column,
    choose_splits,
)
from conr_ray.data.sources.files import locked
from conr_ray.errors import UserError, one_line

_CLASSES = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "stl10": "STL10",
}
_BLOCK_IMAGES = 1024


class TorchvisionSource(Source):
    """CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST or STL-10 below the folder `data.path`.

    Splits are joined in the order train, test, unlabeled. STL-10's unlabelled images have label
    -1. For CIFAR-100, `data.label_column=coarse_label` gives the 20 coarse classes. Whole splits
    are held in memory while they are read.
    """

    def __init__(self, config: DataConfig) -> None:
        """Refuse unknown names, splits and label columns; no file is touched yet."""
        super().__init__(config)
        assert config.name is not None, "checked by RunConfig"
        self._name = config.name
        if config.name not in _CLASSES:
            raise UserError(
                f"data.name={config.name}: no such data set; choose from {', '.join(_CLASSES)}"
            )
        if config.path is None:
            raise UserError("data.path is not set: name the folder that torchvision reads")
        self._root = Path(os.path.expanduser(config.path)).absolute()
        coarse = ["coarse_label"] if config.name == "cifar100" else []
        check_label_column(config, ["label", *coarse])
        more = ["unlabeled"] if config.name == "stl10" else []
        self._splits = choose_splits(config, ["train", "test", *more])

    def identity(self) -> dict[str, object]:
        """The official files with size and modification time, and what is read from them.

        Missing files are downloaded first if `data.download` is set.
        """
        missing = [path for path in self._files() if not path.is_file()]
        if missing and not self.config.download:
            raise UserError(
                f"data.path={self.config.path}: {self._name} is missing (no {missing[0].name}); "
                f"set data.download=true to download it"
            )
        if missing:
            self._dataset("train")
        stats = [(path, path.stat()) for path in self._files()]
        return {
            "source": "torchvision",
            "name": self._name,
            "splits": self._splits,
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
            "files": [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats],
        }

    @property
    def labels_from(self) -> str:
        """Nothing: the labels of the set itself."""
        return ""

    def contents(self) -> Contents:
        """Number, shape, labels and class names of the splits' images."""
        parts = [self._loaded[split] for split in self._splits]
        images, class_names = parts[0][0], parts[0][2]
        channels, height, width = fit_arrays(images[:1], self.config.stored_size).shape[1:]
        labelled = self.config.label_column is not None
        return Contents(
            num_rows=sum(len(part[0]) for part in parts),
            row_shape=(channels, height, width),
            labels=np.concatenate([part[1] for part in parts]) if labelled else None,
            class_names=class_names if labelled else None,
        )

    def blocks(self) -> Iterator[UInt8Array]:
        """All images in order, in blocks (b, c, h, w)."""
        for split in self._splits:
            images = self._loaded[split][0]
            for start in range(0, len(images), _BLOCK_IMAGES):
                yield fit_arrays(images[start : start + _BLOCK_IMAGES], self.config.stored_size)

    @cached_property
    def _loaded(self) -> dict[str, tuple[UInt8Array, Int64Array, tuple[str, ...] | None]]:
        """Images (n, c, h, w), labels and class names of every split that is read."""
        return {split: self._load(split) for split in self._splits}

    def _load(self, split: str) -> tuple[UInt8Array, Int64Array, tuple[str, ...] | None]:
        dataset = self._dataset(split)
        classes = getattr(dataset, "classes", None)
        if self._name == "stl10":
            images, labels = dataset.data, dataset.labels
        elif self._name.startswith("cifar"):
            images, labels = dataset.data.transpose(0, 3, 1, 2), dataset.targets
        else:
            images, labels = dataset.data.numpy()[:, None], dataset.targets.numpy()
        if self.config.label_column == "coarse_label":
            # torchvision has verified the checksums of these files, so unpickling them is safe.
            labels = self._unpickled(dataset, split)["coarse_labels"]
            classes = self._unpickled(dataset, dataset.meta["filename"])["coarse_label_names"]
        names = None if classes is None else tuple(str(name) for name in classes)
        return images, np.asarray(labels).astype(np.int64), names

    def _unpickled(self, dataset: Any, name: str) -> dict[str, Any]:
        with (self._root / dataset.base_folder / name).open("rb") as file:
            content: dict[str, Any] = pickle.load(file, encoding="latin1")
        return content

    def _dataset(self, split: str) -> Any:
        """The torchvision data set, downloaded if that is allowed.

        Raises UserError if files are missing, damaged or cannot be downloaded.
        """
        download = self.config.download
        part = {"split": split} if self._name == "stl10" else {"train": split == "train"}
        lock: AbstractContextManager[None] = nullcontext()
        try:
            if download:
                # torchvision unpacks in place: only one worker may download at a time.
                self._root.mkdir(parents=True, exist_ok=True)
                lock = locked(self._root / f".{self._name}.lock")
            with lock:
                return self._class()(self._root, download=download, **part)
        # Damaged files, of which not all have checksums, raise errors of many kinds.
        except Exception as error:
            remedy = (
                f"check the network, or put the official files of {self._name} there"
                if download
                else "set data.download=true to download it"
            )
            raise UserError(f"data.path={self.config.path}: {one_line(error)}; {remedy}") from None

    def _class(self) -> Any:
        import torchvision

        return getattr(torchvision.datasets, _CLASSES[self._name])

    def _files(self) -> list[Path]:
        """The files that torchvision will read or check."""
        kind = self._class()
        if "mnist" in self._name:
            folder = self._root / kind.__name__ / "raw"
            return [folder / Path(archive).stem for archive, _ in kind.resources]
        names = [name for name, _ in kind.train_list + kind.test_list]
        if self._name.startswith("cifar"):
            names.append(kind.meta["filename"])
        return [self._root / kind.base_folder / name for name in names]
