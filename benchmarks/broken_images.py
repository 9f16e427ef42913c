"""A folder of pictures of which some are broken in ten ways: are all named, and how long it takes.

    python benchmarks/broken_images.py
    python benchmarks/broken_images.py --count 1000 --broken 50

Writes --count JPEG and PNG pictures of 96 x 96 pixels, of which --broken are broken, in equal parts
in each of the ways of `WAYS`. Then it opens them with data.on_error=stop, which has to name all of
them at once, and with skip, which has to keep all others, and prints the seconds that each takes
beside those of a folder with the sound ones alone. Exits with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.sources.walk import as_text
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError

_SIDE = 96


def sound(number: int, kind: str) -> bytes:
    """A picture of noise, as the bytes of a PNG or JPEG file."""
    pixels = np.random.default_rng(number).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _flipped(number: int) -> bytes:
    """A PNG of which a byte of the pixels has changed."""
    data = bytearray(sound(number, "PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def _png_of(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG whose checksums are right, whatever its header promises."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _not_finite(number: int) -> bytes:
    """A TIFF of floats, of which one is none."""
    pixels = np.random.default_rng(number).random((_SIDE, _SIDE)).astype(np.float32)
    pixels[number % _SIDE, 0] = np.nan
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


# Endings, and the bytes of a broken file by its number.
WAYS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "empty": ("png", lambda number: b""),
    "a page of a server": ("jpg", lambda number: b"<html>404 Not Found</html>"),
    "zeros after a failed download": ("jpg", lambda number: bytes(4096)),
    "header only": ("jpg", lambda number: sound(number, "JPEG")[:20]),
    "cut in the middle": ("jpg", lambda number: sound(number, "JPEG")[: 3000 + number % 500]),
    "cut PNG": ("png", lambda number: sound(number, "PNG")[:-2000]),
    "a changed byte": ("png", _flipped),
    "more pixels than there are": ("png", lambda number: _png_of(_SIDE, 500, bytes(9000))),
    "a bomb": ("png", lambda number: _png_of(60_000, 60_000, bytes(100))),
    "no numbers": ("tif", _not_finite),
}


def write(root: Path, count: int, num_broken: int) -> list[str]:
    """Write pictures below `root`, and the broken ones among them; returns the names of those."""
    root.mkdir(parents=True)
    every, ways = count // num_broken, list(WAYS.values())
    broken: list[str] = []
    for number in range(count):
        if number % every == every - 1 and len(broken) < num_broken:
            ending, content = ways[len(broken) % len(ways)]
            data = content(number)
            broken.append(f"{number:06}.{ending}")
            name = broken[-1]
        else:
            kind = "PNG" if number % 4 == 0 else "JPEG"
            data = sound(number, kind)
            name = f"{number:06}.{'png' if kind == 'PNG' else 'jpg'}"
        (root / name).write_bytes(data)
    return broken


def missed_by_stop(root: Path, broken: list[str], cache: Path) -> list[str]:
    """Broken files that the one error does not lead to."""
    try:
        open_data(DataConfig(source="folder", path=str(root)), cache)
    except UserError as error:
        told = str(error)
    else:
        return broken
    if "are in " in told:
        listed = csv.read_csv(told.rpartition(" are in ")[2]).column("place").to_pylist()
        told = " ".join(listed)
    return [name for name in broken if as_text(name) not in told]


def skipped(root: Path, cache: Path) -> DataSet:
    """The data without the broken files."""
    return open_data(DataConfig(source="folder", path=str(root), on_error="skip"), cache)


def main() -> None:
    """Print what was found, and the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="pictures (default: 10,000)")
    parser.add_argument("--broken", type=int, default=500, help="of them broken (default: 500)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        broken = write(top / "broken", args.count, args.broken)
        start = time.perf_counter()
        missed = missed_by_stop(top / "broken", broken, top / "cache")
        stop_s = time.perf_counter() - start
        start = time.perf_counter()
        data = skipped(top / "broken", top / "cache")
        skip_s = time.perf_counter() - start
        for name in broken:
            (top / "broken" / name).unlink()
        start = time.perf_counter()
        whole = skipped(top / "broken", top / "cache")
        sound_s = time.perf_counter() - start
    named = {one.place.partition("(")[2].rstrip(")") for one in data.inventory.skipped}
    print(data.line)
    print(f"stop names {len(broken) - len(missed)} of {len(broken)} in {stop_s:.1f} s")
    print(f"skip leaves out {len(named & set(broken))} of them, {len(named - set(broken))} others")
    print(f"skip takes {skip_s:.1f} s; the {whole.num_rows:,} sound ones alone {sound_s:.1f} s")
    same = data.fingerprint == whole.fingerprint
    print(f"what is left is {'' if same else 'not '}what the sound ones alone give")
    sys.exit(bool(missed) or named != set(broken) or not same)


if __name__ == "__main__":
    main()
