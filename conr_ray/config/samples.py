"""The sections of samples: where they come from, and the random views of them."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from conr_ray.fields import (
    Count,
    Fraction,
    Mark,
    Names,
    NonNegative,
    Positive,
    Probability,
    Section,
    Whole,
)
from conr_ray.plugins import SOURCES, plugins

# Of an image in the decoded copy: no run trains on more, and a small file can ask for any number.
_LARGEST_SIDE = 4096
MOST_STORED_PIXELS = _LARGEST_SIDE**2
# Of a view for our own backbones, pixels.
OWN_SIDE = 32

# Sources of images that `data.source=auto` finds by what is at `data.path`.
_FILES = ("auto", "folder", "archive", "parquet", "list", "numpy")
_OWN_IMAGES = ("digits", "torchvision", *_FILES)
OWN_SOURCES = (*_OWN_IMAGES, "vectors")
# Of other packages; they may read any field but those of one of our own alone.
_OTHERS = tuple(plugins(SOURCES, OWN_SOURCES))
_IMAGES = (*_OWN_IMAGES, *_OTHERS)
_FOR_IMAGES = Mark(used_by=("data.source", _IMAGES))
_FOR_ALL = Mark(used_by=("data.source", (*_IMAGES, "vectors")))
_GROUP_STAGE = Mark(stage="group")
_STRENGTH = Mark(stage="group", used_by=_FOR_ALL.used_by)
_HEAD = Mark(used_by=("model.train", ("head",)))
_Side = Annotated[int, Field(ge=1, le=_LARGEST_SIDE)]


def _source(*names: str) -> Mark:
    return Mark(used_by=("data.source", names))


_WITH_FOLDERS = _source("auto", "folder", "archive")


def _known_source(name: str) -> str:
    known = (*OWN_SOURCES, *_OTHERS)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    raise ValueError(f"no such source; {hint}")


class DataConfig(Section):
    """Where the images or vectors come from and how they are stored."""

    source: Annotated[str, AfterValidator(_known_source)] = Field(
        "torchvision",
        description="digits, torchvision, folder, archive, parquet, list, numpy or vectors; auto, "
        "images in files of any form, as what is at data.path shows; or the name of an entry point "
        "`conr_ray.sources` of another package, which gives images",
    )
    name: Annotated[str | None, _source("torchvision")] = Field(
        None, description="torchvision data set: cifar10, cifar100, ..."
    )
    path: Annotated[str | None, _source(*OWN_SOURCES[1:], *_OTHERS)] = Field(
        None,
        description="image folder; archive, array or table of images, or table of their paths or "
        "URLs; folder or pattern of these; here, or with s3://, gs://, https://; torchvision root",
    )
    download: Annotated[bool, _source("torchvision")] = Field(
        False, description="let torchvision download missing files"
    )
    splits: Annotated[Names | None, _source(*OWN_SOURCES[1:], *_OTHERS)] = Field(
        None, description="splits to join; all if unset"
    )
    classes: Annotated[Names | None, _source("auto", "folder")] = Field(
        None, description="sub-folders to read; all if unset"
    )
    image_column: Annotated[str, _source("auto", "archive", "parquet", "list", "numpy")] = Field(
        "image",
        description="column of images, or of their paths or URLs; array; of samples with several "
        "images in archives the ending, such as left.png",
    )
    id_column: Annotated[str | None, _source("auto", "list")] = Field(
        None, description="column that names the images of a list; their paths do if unset"
    )
    vector_column: Annotated[str, _source("vectors")] = Field(
        "embedding", description="column of a Parquet file: lists of floats of equal length"
    )
    label_column: str | None = Field(
        "label", description="for metrics, and for num_clusters if unset; null ignores labels"
    )
    labels: Annotated[Literal["auto", "folders", "none"], _WITH_FOLDERS] = Field(
        "auto",
        description="whether sub-folders are classes; auto: if there are two or more, they are no "
        "dates, and most pictures are in them",
    )
    on_error: Annotated[Literal["stop", "skip"], _source(*_FILES)] = Field(
        "stop", description="stop at images that cannot be read, or leave them out and list them"
    )
    imbalance: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        None,
        description="train on a long tail of a labelled set: the first class keeps this many times "
        "the samples of the last, those between fall exponentially; 10 and 100 are usual",
    )
    limit: Count | None = Field(
        None, description="train on a fixed random subset of this size, of what imbalance leaves"
    )
    stored_size: Annotated[_Side | None, _FOR_IMAGES] = Field(
        None,
        description="resize images to squares of this side, pixels; if unset and sizes differ, the "
        "median of their short sides, at most 256",
    )
    placement: Literal["device", "host"] = Field(
        "device", description="keep all samples on the device, or memory-mapped on the host"
    )
    stream: Annotated[
        Literal["auto", "always", "never"], Mark(shapes_rows=False, used_by=_FOR_IMAGES.used_by)
    ] = Field(
        "auto",
        description="decode images whenever they are needed, instead of once into a copy in the "
        "cache; auto: if the disk of the cache has no room for that copy",
    )
    embedded_views: Annotated[int, Field(ge=0, le=1000), _HEAD] = Field(
        0,
        description="random views of each image that the backbone embeds beside the plain one; "
        "training draws from them",
    )

    @property
    def title(self) -> str:
        """What people call the data: the name of the data set, or of the folder or file."""
        if self.source == "torchvision" and self.name is not None:
            return self.name
        last = (self.path or "").rstrip("/").rpartition("/")[2]
        return last.partition("?")[0].removesuffix(".parquet").removesuffix(".csv") or self.source


class ViewsConfig(Section):
    """The random views. An amplitude of 0 switches a transformation off."""

    mark: ClassVar[Mark] = Mark(changeable=True, used_by=_FOR_IMAGES.used_by)

    size: Annotated[Count | None, Mark(changeable=False)] = Field(
        None,
        description="side of a view, pixels; unset is 32, or what a model of timm was made for",
    )
    sizes: tuple[tuple[Whole, Count], ...] = Field(
        (), description="epochs, and the side of training views from each on; size before the first"
    )
    crop_scale: tuple[Fraction, Fraction] = Field((0.08, 1.0), description="share of the area")
    crop_scale_group_stage: Annotated[tuple[Fraction, Fraction], _GROUP_STAGE] = (0.45, 1.0)
    crop_ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="width over height")
    flip_probability: Probability = Field(0.5, description="of a horizontal flip")
    rotation: NonNegative = Field(0.0, description="maximum angle, radians")
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="maximum change of scale")
    shear: NonNegative = Field(0.0, description="maximum shear, tangent of the angle")
    shift: NonNegative = Field(0.0, description="maximum shift, in half widths")
    jitter_probability: Probability = Field(0.8, description="of applying the next four changes")
    brightness: NonNegative = Field(0.4, description="maximum deviation of the factor from 1")
    contrast: NonNegative = Field(0.4, description="as brightness")
    saturation: NonNegative = Field(0.4, description="as brightness; colour images only")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="maximum change, turns")
    grayscale_probability: Probability = Field(0.2, description="colour images only")
    blur_probability: Probability = Field(0.0, description="of a Gaussian blur")
    blur_sigma: tuple[Positive, Positive] = Field(
        (0.1, 2.0), description="standard deviation, pixels"
    )
    noise: Annotated[NonNegative, _FOR_ALL] = Field(
        0.0, description="standard deviation of added noise; on pixels in 0-1 or scaled vectors"
    )
    dropout: Annotated[float, Field(ge=0, lt=1), _source("vectors")] = Field(
        0.0, description="share of a vector's features set to their mean"
    )
    group_stage_strength: Annotated[float, Field(ge=0, le=2), _STRENGTH] = Field(
        1.0, description="group stage: factor on all amplitudes except crop and blur"
    )

    def size_in(self, epoch: int) -> int | None:
        """Side of a training view in `epoch`, pixels; None for a model's own."""
        return next((side for first, side in reversed(self.sizes) if epoch >= first), self.size)

    @classmethod
    def unused_when_embedded(cls, num_views: int) -> frozenset[str]:
        """Fields without effect on images that are embedded before training.

        With `num_views` random views of each, those have none that say what changes during
        training; without, none that say how images are changed.
        """
        of_training = {"sizes", "crop_scale_group_stage"}
        of_vectors = {"noise", "dropout", "group_stage_strength"}
        every = frozenset(cls.model_fields) - of_vectors - {"size"}
        return frozenset(of_training) if num_views else every
