"""Which files are pictures: by their endings, and by what is in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from conr_ray.cores import usable_cores
from conr_ray.data.decoding import MOST_BYTES, batched, has_format, known_formats, open_encoded
from conr_ray.data.sources.files import FoundFile, Location
from conr_ray.data.sources.walk import WHY, Walk, as_text

# Endings of pictures, and Pillow's name of what is in them.
_FORMAT_OF = (
    dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "pjpeg", "mpo"), "JPEG")
    | dict.fromkeys(("png", "apng"), "PNG")
    | dict.fromkeys(("bmp", "dib"), "BMP")
    | dict.fromkeys(("tif", "tiff"), "TIFF")
    | dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM")
    | dict.fromkeys(("jp2", "j2k", "jpx", "jpf"), "JPEG2000")
    | dict.fromkeys(("avif", "avifs"), "AVIF")
    | dict.fromkeys(("heic", "heif", "hif"), "HEIF")
    | {"webp": "WEBP", "gif": "GIF"}
)
_REMEDY = {
    "HEIF": "pip install pillow-heif, and they are read",
    "AVIF": "install a Pillow with AVIF, and they are read",
}
# What is not looked into: known to be something else, or, as of cameras, with a small picture
# inside that is not the one that people mean.
_ENDINGS_OF_OTHERS = """
txt json jsonl csv tsv xml html htm md rst yaml yml toml ini cfg log py ipynb js css sh bat npy npz
pt pth pkl pickle h5 hdf5 mat parquet pq arrow feather db sqlite lmdb safetensors zip tar gz tgz bz2
xz zst 7z rar iso dmg exe dll so pdf doc docx xls xlsx ppt pptx svg eps ps psd ai xcf ico icns mp4
m4v mov avi mkv webm mpg mpeg wmv 3gp mp3 m4a wav flac ogg aac dcm nii lnk url xmp aae thm
dng nef nrw cr2 cr3 crw arw srf sr2 orf rw2 raf pef 3fr iiq x3f rwl
"""
_OTHERS = frozenset(_ENDINGS_OF_OTHERS.split())
_HEAD_BYTES = 32
_NUM_THREADS = 8


@dataclass
class PictureFiles:
    """The pictures that a walk finds; each iteration looks anew.

    A file is one if its ending is that of a picture, or is not known and Pillow reads the file's
    header.

    Attributes:
        walk: what is looked through.
        others: endings of other files that are wanted too, without a dot.
        left_out: what the last iteration left out, and how many of each kind.
    """

    walk: Walk
    others: Collection[str] = ()
    left_out: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[FoundFile]:
        """In no particular order, but the same each time."""
        self.left_out.clear()
        unknown: list[FoundFile] = []
        for file in self.walk:
            ending = ending_of(file.name)
            if ending in self.others or has_format(_FORMAT_OF.get(ending, "")):
                yield file
            elif ending in _FORMAT_OF or ending in _OTHERS:
                self.left_out[kind_of(file.name)] += 1
            else:
                unknown.append(file)
        looks = partial(is_picture, self.walk.location)
        with ThreadPoolExecutor(min(_NUM_THREADS, 2 * usable_cores())) as pool:
            for some in batched(unknown, 1024):
                for file, found in zip(some, pool.map(looks, some), strict=True):
                    if found:
                        yield file
                    else:
                        self.left_out[kind_of(file.name)] += 1
        self.left_out.update(self.walk.left_out)

    @property
    def why_left_out(self) -> dict[str, str]:
        """For some kinds of what was left out, the reason."""
        return {kind: why for kind in self.left_out if (why := WHY.get(kind) or _remedy(kind))}

    @property
    def remedies(self) -> str:
        """What can be done that more is read, for a line; empty for nothing."""
        told = [f"{kind}: {why}" for kind in self.left_out if (why := _remedy(kind))]
        return "; ".join(sorted(told))


def ending_of(name: str) -> str:
    """The ending of a file's name in small letters, without the dot."""
    return os.path.splitext(name)[1][1:].lower()


def endings() -> list[str]:
    """Endings that are read without a look into the file."""
    return sorted(ending for ending, name in _FORMAT_OF.items() if has_format(name))


def kind_of(name: str) -> str:
    """What a file that is left out is counted as: its ending."""
    ending = ending_of(name)
    return as_text(f".{ending}") if ending else "without an ending"


def _remedy(kind: str) -> str:
    name = _FORMAT_OF.get(kind.removeprefix("."), "")
    return "" if has_format(name) else _REMEDY.get(name, "")


def is_picture(location: Location, file: FoundFile) -> bool:
    """Whether Pillow reads the header of a file."""
    try:
        head = location.head(file.name, _HEAD_BYTES)
        if not any(_accepts(name, head) for name in known_formats()):
            return False
        open_file(location, file).close()
    # Decoders and stores raise errors of many kinds.
    except Exception:
        return False
    return True


def _accepts(name: str, head: bytes) -> bool:
    accept = Image.OPEN[name][1]
    # A text is the reason why a picture of this kind cannot be read here.
    return accept is not None and accept(head) is True


def open_file(folder: Location, file: FoundFile) -> Image.Image:
    """A picture of a folder; pixels are decoded on use."""
    return open_encoded(read_file(folder, file))


def read_file(folder: Location, file: FoundFile) -> bytes:
    """The content of a picture's file."""
    if file.size > MOST_BYTES:
        raise ValueError(f"{file.size:,} bytes, more than {MOST_BYTES:,}")
    return folder.read(file.name, file.size)
