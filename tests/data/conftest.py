"""Writers of tiny image files in the formats that the sources read."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.sources import Contents, Source, make_source
from conr_ray.data.sources.encoded import SizesDiffer
from conr_ray.errors import UserError

Pixels = NDArray[np.uint8]


@pytest.fixture
def random_images() -> Callable[..., Pixels]:
    """`random_images(n, c, h, w)`: uint8 noise, the same for the same shape."""

    def make(*shape: int) -> Pixels:
        return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """`encode(pixels, format)`: the bytes of an image file with `pixels` (c, h, w)."""

    def write(pixels: Pixels, kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
        return buffer.getvalue()

    return write


@pytest.fixture
def read() -> Callable[[DataConfig], tuple[Contents, Pixels]]:
    """`read(config)`: what its source announces, and all its images."""

    def read_all(config: DataConfig) -> tuple[Contents, Pixels]:
        return _all_of(make_source(config))

    return read_all


def _all_of(source: Source) -> tuple[Contents, Pixels]:
    """Read as `open_data` does."""
    contents = source.contents()
    try:
        return contents, np.concatenate(list(source.blocks()))
    except SizesDiffer:
        source.look()
    contents = source.contents()
    return contents, np.concatenate(list(source.blocks()))


@pytest.fixture
def message() -> Callable[..., str]:
    """`message(**settings)`: the one line that a user of these settings is told."""

    def refused(**settings: Any) -> str:
        with pytest.raises(UserError) as caught:
            source = make_source(DataConfig(**settings))
            source.identity()
            _all_of(source)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return refused


class OfficialFiles:
    """Writes torchvision's data sets with few images, and their checksums into torchvision.

    torchvision compares checksums with those of the official content, which a tiny file cannot
    have; so they are replaced on its classes. Everything else that it does, runs as it is.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Write below `root`, patch through `monkeypatch`."""
        import torchvision

        self.root, self._monkeypatch, self._sets = root, monkeypatch, torchvision.datasets

    def cifar10(self, images: Pixels, labels: list[int], test: int) -> None:
        """CIFAR-10 of which the last `test` images are the test split."""
        train = len(images) - test
        bounds = [*np.linspace(0, train, 6).astype(int).tolist(), len(images)]
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        folder = self._folder("cifar-10-batches-py")
        sums = []
        for name, start, end in zip(names, bounds, bounds[1:], strict=False):
            part = {"data": images[start:end].reshape(-1, 3072), "labels": labels[start:end]}
            sums.append([name, self._pickle(folder / name, part)])
        meta = {"label_names": [f"c{i}" for i in range(10)]}
        self._patch("CIFAR10", "meta", folder / "batches.meta", "label_names", meta)
        self._monkeypatch.setattr(self._sets.CIFAR10, "train_list", sums[:5])
        self._monkeypatch.setattr(self._sets.CIFAR10, "test_list", sums[5:])

    def cifar100(self, images: Pixels, fine: list[int], coarse: list[int], test: int) -> None:
        """CIFAR-100 of which the last `test` images are the test split."""
        folder = self._folder("cifar-100-python")
        train = len(images) - test
        for name, rows in (("train", slice(0, train)), ("test", slice(train, None))):
            part = {
                "data": images[rows].reshape(-1, 3072),
                "fine_labels": fine[rows],
                "coarse_labels": coarse[rows],
            }
            checksum = self._pickle(folder / name, part)
            self._monkeypatch.setattr(self._sets.CIFAR100, f"{name}_list", [[name, checksum]])
        meta = {
            "fine_label_names": [f"fine{i}" for i in range(100)],
            "coarse_label_names": [f"coarse{i}" for i in range(20)],
        }
        self._patch("CIFAR100", "meta", folder / "meta", "fine_label_names", meta)

    def mnist(self, kind: str, images: Pixels, labels: list[int], test: int) -> None:
        """`kind` MNIST or FashionMNIST as the gzip files that torchvision unpacks on download."""
        folder = self._folder(f"{kind}/raw")
        train = len(images) - test
        sums = []
        for name, rows in (("train", slice(0, train)), ("t10k", slice(train, None))):
            pixels, numbers = images[rows, 0], np.array(labels[rows], np.uint8)
            for file, header, body in (
                (f"{name}-images-idx3-ubyte.gz", (0x803, *pixels.shape), pixels),
                (f"{name}-labels-idx1-ubyte.gz", (0x801, len(numbers)), numbers),
            ):
                content = struct.pack(f">{len(header)}I", *header) + body.tobytes()
                (folder / file).write_bytes(gzip.compress(content))
                sums.append((file, _md5(folder / file)))
        self._monkeypatch.setattr(getattr(self._sets, kind), "resources", sums)

    def stl10(self, images: Pixels, labels: list[int], test: int, unlabeled: int) -> None:
        """STL-10: train, then `test`, then `unlabeled` images; columns first, labels from 1."""
        folder = self._folder("stl10_binary")
        (folder / "class_names.txt").write_text("\n".join(f"s{i}" for i in range(10)))
        train = len(labels) - test
        numbers = np.array(labels, np.uint8) + 1
        parts = {
            "train_X.bin": images[:train].swapaxes(2, 3),
            "train_y.bin": numbers[:train],
            "unlabeled_X.bin": images[len(labels) :].swapaxes(2, 3),
            "test_X.bin": images[train : len(labels)].swapaxes(2, 3),
            "test_y.bin": numbers[train:],
        }
        assert len(images) == len(labels) + unlabeled
        sums = []
        for name, array in parts.items():
            (folder / name).write_bytes(array.tobytes())
            sums.append([name, _md5(folder / name)])
        self._monkeypatch.setattr(self._sets.STL10, "train_list", sums[:3])
        self._monkeypatch.setattr(self._sets.STL10, "test_list", sums[3:])

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        return folder

    def _pickle(self, path: Path, content: dict[str, Any]) -> str:
        path.write_bytes(pickle.dumps(content))
        return _md5(path)

    def _patch(self, kind: str, field: str, path: Path, key: str, content: dict[str, Any]) -> None:
        meta = {"filename": path.name, "key": key, "md5": self._pickle(path, content)}
        self._monkeypatch.setattr(getattr(self._sets, kind), field, meta)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfficialFiles:
    """Writer of torchvision's data sets below `official_files.root`."""
    return OfficialFiles(tmp_path / "torchvision", monkeypatch)
