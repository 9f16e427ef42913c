"""What single pictures are: format, kind and size, whether they can be read, and a digest."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from conr_ray.data.decoders import Opened, opened
from conr_ray.data.decoding import is_grey, reason_of, to_mode
from conr_ray.errors import StorageError

# Of a digest: 16 bytes are alike by chance once in 10^20 sets of a billion pictures.
DIGEST_BYTES = 16


class Look(NamedTuple):
    """What a picture is.

    Attributes:
        reason: why it cannot be read; empty if it can.
        format: Pillow's name of the file's format; "pixels" if it is no file.
        mode: Pillow's name of what a pixel is, such as RGB, before it is converted.
        size: width and height of the upright picture.
        num_bytes: of the file, or of the pixels.
        digest: of the pixels as they are read; the same for copies, also in another format.
    """

    reason: str
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    num_bytes: int = 0
    digest: bytes = bytes(DIGEST_BYTES)


def look_at(task: Sequence[bytes | Opened]) -> list[Look]:
    """Decode pictures and tell what they are."""
    return [_look(one) for one in task]


def _look(one: bytes | Opened) -> Look:
    try:
        image = opened(one)
        kind, mode = image.format or "pixels", image.mode
        upright = to_mode(image, "L" if is_grey(image) else "RGB")
        pixels = upright.tobytes()
    except StorageError:
        raise
    # Decoders raise errors of many kinds.
    except Exception as error:
        return Look(reason_of(error), num_bytes=len(one) if isinstance(one, bytes) else 0)
    digest = blake2b(pixels, digest_size=DIGEST_BYTES)
    digest.update(repr((upright.mode, upright.size)).encode())
    num_bytes = len(one) if isinstance(one, bytes) else len(pixels)
    return Look("", kind, mode, upright.size, num_bytes, digest.digest())
