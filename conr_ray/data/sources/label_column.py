"""Columns of any Arrow type, and classes that a program gives, as labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conr_ray.data.sources.base import Int64Array
from conr_ray.errors import UserError
from conr_ray.fields import short

Names = tuple[str, ...] | None
_COLUMN_REMEDY = "name a column of integers or strings, or null to ignore labels"
# Beyond this, floats do not tell whole numbers apart.
_LARGEST_WHOLE = 2**53


def labels_of(classes: Sequence[Any] | NDArray[Any], told: str) -> tuple[Int64Array, Names]:
    """Classes (n,) that a program gives as labels, as `labels_in` takes those of a column.

    Args:
        classes: numbers, strings or booleans; None where they are unknown.
        told: what they are called, for messages.

    Raises:
        UserError: they are something else, or of several kinds.
    """
    found = np.asarray(classes).ravel()
    try:
        array = pa.array(found.tolist() if found.dtype == object else found, from_pandas=True)
    except (pa.ArrowException, OverflowError):
        raise UserError(
            f"{told}: holds values of several kinds: give integers or strings"
        ) from None
    return _checked(pa.chunked_array([array]), told, "give integers or strings")


def labels_in(column: Any, name: str) -> tuple[Int64Array, Names]:
    """The labels in an Arrow column, -1 for unlabelled samples, and their names if they have some.

    Whole numbers are kept, also those stored as floats or decimals; null, NaN and -1 mean
    unlabelled. Strings, bytes that are text, and numbers beyond 63 bits are numbered in sorted
    order; booleans are 0 and 1.

    Args:
        column: an Arrow chunked array.
        name: of `data.label_column`, for messages.

    Raises:
        UserError: the column holds something else.
    """
    return _checked(column, f"data.label_column={name}", _COLUMN_REMEDY)


def _checked(column: Any, told: str, remedy: str) -> tuple[Int64Array, Names]:
    kind = column.type
    try:
        found = _labels(_plain(column))
    # Arrow has no cast from some types, and text may be no UTF-8.
    except (pa.ArrowException, UnicodeDecodeError, OverflowError):
        found = None
    if found is None:
        raise UserError(f"{told}: holds {short(str(kind))}; {remedy}")
    labels, names = found
    if isinstance(labels, str):
        raise UserError(f"{told}: holds {labels}, which is no class; {remedy}")
    if len(labels) and labels.min() < -1:
        raise UserError(f"{told}: holds {labels.min()}; write -1 for an unlabelled image")
    return labels, names


def _plain(column: Any) -> Any:
    """The column without dictionaries, runs and extensions."""
    while True:
        kind = column.type
        if isinstance(kind, pa.Bool8Type):
            chunks = [pc.not_equal(chunk.storage, 0) for chunk in column.chunks]
            column = pa.chunked_array(chunks, pa.bool_())
        elif isinstance(kind, pa.BaseExtensionType):
            chunks = [chunk.storage for chunk in column.chunks]
            column = pa.chunked_array(chunks, kind.storage_type)
        elif pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        elif pa.types.is_run_end_encoded(kind):
            chunks = [pc.run_end_decode(chunk) for chunk in column.chunks]
            column = pa.chunked_array(chunks, kind.value_type)
        else:
            return column


def _labels(column: Any) -> tuple[Int64Array | str, Names] | None:
    """Labels and names; text instead of labels is a value that is none; None for other types."""
    kind, types = column.type, pa.types
    if types.is_null(kind):
        return np.full(len(column), -1, np.int64), None
    if types.is_boolean(kind):
        return _with_gaps(column.cast(pa.int8())), ("false", "true")
    if types.is_integer(kind):
        if types.is_uint64(kind) and (pc.max(column).as_py() or 0) >= 2**63:
            return _numbered(column)
        return _with_gaps(column), None
    if types.is_floating(kind):
        return _whole(column)
    if types.is_decimal(kind):
        return _with_gaps(column.cast(pa.int64())), None
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        column = column.cast(pa.binary())
    if _is_text_or_bytes(column.type):
        return _numbered(column.cast(pa.large_string()))
    return None


def _is_text_or_bytes(kind: Any) -> bool:
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    as_bytes = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(text or as_bytes)


def _numbered(column: Any) -> tuple[Int64Array, Names]:
    values = pc.unique(column.drop_null())
    values = values.take(pc.array_sort_indices(values))
    return _with_gaps(pc.index_in(column, value_set=values)), tuple(map(str, values.to_pylist()))


def _with_gaps(column: Any) -> Int64Array:
    filled: NDArray[Any] = column.cast(pa.int64()).fill_null(-1).to_numpy()
    return filled.astype(np.int64)


def _whole(column: Any) -> tuple[Int64Array | str, Names]:
    """Floats that are whole numbers, as other programs write integers with gaps."""
    values = np.asarray(column.to_numpy(), np.float64)
    known = ~np.isnan(values)
    odd = known & ~(np.abs(values) <= _LARGEST_WHOLE)
    odd |= known & ~odd & (values != np.round(values))
    if odd.any():
        return f"{column.type}, such as {values[odd][0]:g}", None
    return np.where(known, values, -1).astype(np.int64), None
