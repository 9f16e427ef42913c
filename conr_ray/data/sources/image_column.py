"""Columns of any Arrow type as images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from conr_ray.data.decoders import Opened
from conr_ray.errors import printable
from conr_ray.fields import short

OfBytes = Callable[[Callable[[], bytes]], Opened]
"""From what reads the bytes of a file to what opens its image."""
# Of pixels as lists of lists: rows, columns, channels.
_MOST_LISTS = 3
# Grey, RGB, and RGB with alpha; the last one only behind the sides.
_CHANNELS = (1, 3, 4)


def holds_images(kind: Any) -> bool:
    """Whether a column of an Arrow type can hold images.

    Their files' bytes: binary of any kind, lists of integers, and dictionaries or structs of these,
    with a field `bytes`. Or pixels: tensors of a fixed shape, or lists of lists, of integers.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return holds_images(kind.value_type)
    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_bytes(kind.field(at).type)
    if isinstance(kind, pa.FixedShapeTensorType):
        return types.is_integer(kind.value_type) and len(kind.shape) in (2, 3)
    return _is_bytes(kind) or 0 < _num_lists(kind) <= _MOST_LISTS


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    whole = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return whole or types.is_fixed_size_binary(kind) or _num_lists(kind) == 1


def _num_lists(kind: Any) -> int:
    """How many lists are in each other around integers; 0 for other types."""
    types, count = pa.types, 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, count = kind.value_type, count + 1
    return count if types.is_integer(kind) else 0


def images_in(part: Any, of_bytes: OfBytes) -> list[Opened]:
    """For each row of an Arrow array, what opens its image; `of_bytes` makes that of bytes.

    Opening raises ValueError where there is none.
    """
    kind = part.type
    if not holds_images(kind):
        return [partial(_refused, f"the column holds {short(str(kind))}")] * len(part)
    if pa.types.is_dictionary(kind):
        return images_in(part.cast(kind.value_type), of_bytes)
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        opened = images_in(pc.struct_field(part, [at]), of_bytes)
        return _with_paths(part, opened)
    if isinstance(kind, pa.FixedShapeTensorType):
        return [partial(_tensor, part, row) for row in range(len(part))]
    if _num_lists(kind) > 1:
        return [partial(_lists, part, row) for row in range(len(part))]
    if _num_lists(kind) == 1:
        return [of_bytes(partial(_listed_bytes, part, row)) for row in range(len(part))]
    return [of_bytes(partial(_there, encoded)) for encoded in part.to_pylist()]


def _refused(reason: str) -> Image.Image:
    raise ValueError(reason)


def _with_paths(part: Any, opened: Sequence[Opened]) -> list[Opened]:
    """Where there are no bytes beside a path, the reason tells of it."""
    at = part.type.get_field_index("path")
    without = pc.struct_field(part, [part.type.get_field_index("bytes")]).is_null()
    if at < 0 or not pc.any(without).as_py():
        return list(opened)
    paths = pc.struct_field(part, [at]).to_pylist()
    return [
        partial(_refused, f"no bytes, only the path {short(printable(str(path)))}")
        if missing and path is not None
        else one
        for one, missing, path in zip(opened, without.to_pylist(), paths, strict=True)
    ]


def _there(encoded: bytes | None) -> bytes:
    if encoded is None:
        raise ValueError("no bytes")
    return encoded


def _listed_bytes(part: Any, row: int) -> bytes:
    if not part[row].is_valid:
        raise ValueError("no bytes")
    return _in_bytes(_numbers(part[row].values)).tobytes()


def _lists(part: Any, row: int) -> Image.Image:
    if not part[row].is_valid:
        raise ValueError("no pixels")
    return _picture(_nested(part[row].values))


def _tensor(part: Any, row: int) -> Image.Image:
    if not part[row].is_valid:
        raise ValueError("no pixels")
    kind = part.type
    pixels = _numbers(part.storage[row].values).reshape(kind.shape)
    return _picture(pixels.transpose(kind.permutation or range(len(kind.shape))))


def _nested(array: Any) -> NDArray[Any]:
    """The numbers in an Arrow array of lists in each other, which are all of one length."""
    if _num_lists(array.type) == 0:
        return _numbers(array)
    lengths = pc.unique(pc.list_value_length(array)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError("rows of pixels are not of one length")
    inner = _nested(array.flatten())
    return inner.reshape(len(array), lengths[0], *inner.shape[1:])


def _numbers(array: Any) -> NDArray[Any]:
    if array.null_count:
        raise ValueError("a number is missing")
    found: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found


def _in_bytes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    if numbers.size and not (numbers.min() >= 0 and numbers.max() <= 255):
        raise ValueError(f"numbers from {numbers.min()} to {numbers.max()} are no bytes")
    return np.ascontiguousarray(numbers, np.uint8)


def _picture(pixels: NDArray[Any]) -> Image.Image:
    """Pixels (h, w), (h, w, c) or (c, h, w) as a picture."""
    shape = "x".join(map(str, pixels.shape))
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS):
        raise ValueError(f"pixels of shape {shape}: 1, 3 or 4 channels are read")
    return Image.fromarray(_in_bytes(pixels))
