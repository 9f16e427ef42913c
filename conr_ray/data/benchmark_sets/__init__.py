"""The sets that the paper and its neighbours measure on."""

from __future__ import annotations

from conr_ray.data.benchmark_sets.base import Archive, BenchmarkSet, Options
from conr_ray.data.benchmark_sets.class_lists import CLASSES
from conr_ray.data.benchmark_sets.torchvision_sets import read_torchvision
from conr_ray.data.benchmark_sets.trees import read_imagenet, read_tiny_imagenet

_CIFAR10 = Archive(
    "cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    170_498_071,
    "c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
)
_CIFAR100 = Archive(
    "cifar-100-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    169_001_437,
    "eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
)
_STL10 = Archive(
    "stl10_binary.tar.gz",
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    2_640_397_119,
    "91f7769df0f17e558f3565bffb0c7dfb",
    folder="stl10_binary",
)
_TINY = Archive(
    "tiny-imagenet-200.zip",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248_100_043,
    "90528d7ca1a48142e341f4ef8d21d0de",
    folder="tiny-imagenet-200",
)
_IMAGENET = Archive(
    "ILSVRC2012_img_train.tar",
    "https://image-net.org/download-images after its terms are accepted",
    147_897_477_120,
    "1d675b47d978889d74fa0da5fadfb00e",
    is_free=False,
    folder="train",
)
_FREE = "no licence file; for research, cite"
_TERMS = "ImageNet's terms of access: non-commercial research and teaching"
_CIFAR_COUNTS = {"train": 50_000, "test": 10_000}
_PRESETS = {"imagenet10", "imagenet_dogs"}


def _imagenet(name: str, title: str, exactly: int | None) -> BenchmarkSet:
    """A subset of ImageNet, of whose classes each has `exactly` so many images, if all have."""
    wnids = CLASSES[name]
    return BenchmarkSet(
        name=name,
        title=title,
        read=read_imagenet,
        counts={} if exactly is None else {"train": exactly * len(wnids)},
        classes={"label": len(wnids)},
        # A class of ILSVRC 2012 has from 732 to 1,300.
        per_class={"train": (732, 1300) if exactly is None else (exactly, exactly)},
        archive=_IMAGENET,
        licence=_TERMS,
        preset=name if name in _PRESETS else "",
        wnids=wnids,
    )


def _cifar(name: str, title: str, archive: Archive, classes: dict[str, int]) -> BenchmarkSet:
    num_classes = classes["label"]
    each = {split: (n // num_classes,) * 2 for split, n in _CIFAR_COUNTS.items()}
    return BenchmarkSet(
        name=name,
        title=title,
        read=read_torchvision,
        counts=_CIFAR_COUNTS,
        classes=classes,
        per_class=each,
        archive=archive,
        licence=f"{_FREE} Krizhevsky 2009",
        preset=name,
        shape=(32, 32, 3),
    )


SETS = {
    one.name: one
    for one in (
        _cifar("cifar10", "CIFAR-10", _CIFAR10, {"label": 10}),
        _cifar("cifar20", "CIFAR-20", _CIFAR100, {"label": 20, "fine_label": 100}),
        _cifar("cifar100", "CIFAR-100", _CIFAR100, {"label": 100, "coarse_label": 20}),
        BenchmarkSet(
            name="stl10",
            title="STL-10",
            read=read_torchvision,
            counts={"train": 5_000, "test": 8_000},
            classes={"label": 10},
            per_class={"train": (500, 500), "test": (800, 800)},
            archive=_STL10,
            licence=f"{_FREE} Coates, Lee and Ng 2011",
            preset="stl10",
            shape=(96, 96, 3),
            num_unlabelled=100_000,
        ),
        BenchmarkSet(
            name="tiny_imagenet",
            title="Tiny-ImageNet",
            read=read_tiny_imagenet,
            counts={"train": 100_000, "val": 10_000},
            classes={"label": 200},
            per_class={"train": (500, 500), "val": (50, 50)},
            archive=_TINY,
            licence=_TERMS,
        ),
        _imagenet("imagenet10", "ImageNet-10", 1300),
        _imagenet("imagenet_dogs", "ImageNet-Dogs", 1300),
        _imagenet("imagenet50", "ImageNet-50", None),
        _imagenet("imagenet100", "ImageNet-100", None),
        _imagenet("imagenet200", "ImageNet-200", None),
    )
}
"""The sets by name."""

__all__ = ["SETS", "BenchmarkSet", "Options"]
