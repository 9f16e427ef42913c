"""What `clustering.num_clusters` may be beside a number: `auto`, or a range such as 5..30."""

from __future__ import annotations

import re

AUTO = "auto"
# What auto chooses from.
_AUTO_RANGE = range(2, 31)
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def checked_numbers(text: str) -> str:
    """`text`, if it is `auto` or a range of two numbers or more, from 2 on.

    Raises:
        ValueError: it is not.
    """
    if text == AUTO:
        return text
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError("give a number, a range such as 5..30, or auto")
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise ValueError(f"the range is the wrong way round: give {last}..{first}")
    if last == first:
        raise ValueError(f"the range holds one number: give {first}")
    if first < 2:
        raise ValueError("fewer than 2 clusters tell nothing: begin with 2 or more")
    return text


def numbers_of(value: int | str | None, num_rows: int) -> range | None:
    """The numbers that a run of `num_rows` samples chooses from; None if it has one number."""
    if not isinstance(value, str):
        return None
    if value == AUTO:
        return range(_AUTO_RANGE.start, min(_AUTO_RANGE.stop, num_rows + 1))
    first, last = (int(end) for end in value.split(".."))
    return range(first, last + 1)
