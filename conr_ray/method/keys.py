"""Random keys."""

from __future__ import annotations

import hashlib


def fold(*parts: int | str) -> int:
    """A 63-bit key from integers and names, such as (seed, 'views', epoch, step)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
