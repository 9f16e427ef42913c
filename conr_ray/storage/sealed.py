"""Folders whose files are listed, with size and checksum, in a JSON file that is written last."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zlib import crc32

from conr_ray.storage import disk

# At 3 GB/s a CRC-32 costs a fraction of reading the file; it finds damage, not forgery.
_BLOCK_BYTES = 2**18
# What this process has written, or has read whole and found right: files, as they were then.
_checked: set[tuple[int, int, int, int]] = set()


class Damaged(Exception):
    """What is wrong with a sealed folder."""


def seal(
    folder: Path,
    name: str,
    facts: Mapping[str, Any],
    unread: Collection[str] = (),
    known: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Sync the files of a folder and write the JSON file `name`: `facts`, and what they are.

    Of the `unread` ones, whose parts have checksums of their own, only sizes are noted. `known` are
    the CRC-32 of files that whoever wrote them has computed.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        with disk.opened(path, os.O_RDONLY) as file:
            os.fsync(file)
        now, content = path.stat(), None
        if path.name not in unread:
            content = known[path.name] if path.name in known else _sum_of(path)
            _checked.add(_seen(now, content))
        files[path.name] = {"bytes": now.st_size, "crc32": content}
    tree = {**facts, "files": files}
    text = json.dumps({**tree, "crc32": _sum_of_tree(tree)}, indent=1)
    disk.write_file(folder / name, text.encode())


def unseal(folder: Path, name: str) -> dict[str, Any]:
    """The facts of a sealed folder.

    Sizes are compared each time, contents once per process, and again if a file has changed.

    Raises:
        FileNotFoundError: there is no file `name`.
        Damaged: it or a file that it lists is not as it was written.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / name).read_bytes())
        found, files = facts.pop("crc32", None), facts.get("files")
    except (ValueError, AttributeError, RecursionError):
        raise Damaged(f"{name} is no JSON") from None
    if not isinstance(files, dict):
        raise Damaged(f"{name} lists no files")
    if found != _sum_of_tree(facts):
        raise Damaged(f"{name} has changed")
    for file, expected in files.items():
        path = folder / file
        try:
            now = path.stat()
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        if now.st_size != expected["bytes"]:
            raise Damaged(f"{file} has {now.st_size} of {expected['bytes']} bytes")
        if expected["crc32"] is None:
            continue
        seen = _seen(now, expected["crc32"])
        if seen not in _checked and _sum_of(path) != expected["crc32"]:
            raise Damaged(f"{file} has changed")
        _checked.add(seen)
    del facts["files"]
    return facts


def _seen(now: os.stat_result, content: int) -> tuple[int, int, int, int]:
    return now.st_dev, now.st_ino, now.st_mtime_ns, content


def _sum_of(path: Path) -> int:
    total, block = 0, bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            total = crc32(memoryview(block)[:size], total)
    return total


def _sum_of_tree(tree: Mapping[str, Any]) -> int:
    return crc32(json.dumps(tree, sort_keys=True).encode())
