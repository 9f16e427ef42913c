"""Reads the file of an offline W&B run: LevelDB's log format around protocol buffers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2 as pb

_FILE_HEADER, _RECORD_HEADER, _BLOCK = 7, 7, 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(file: Path) -> list[pb.Record]:
    """The records of the `.wandb` file of a run that has ended, in order.

    W&B's own process may still be writing the last of them when the run's has ended.
    """
    deadline = time.monotonic() + 30
    while True:
        try:
            found = list(_parsed(file.read_bytes()))
        except DecodeError:
            found = []
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < deadline, f"{file} does not end"
        time.sleep(0.1)


def _parsed(data: bytes) -> Iterator[pb.Record]:
    offset, parts = _FILE_HEADER, b""
    while offset < len(data):
        left_in_block = _BLOCK - offset % _BLOCK
        if left_in_block < _RECORD_HEADER:
            offset += left_in_block
            continue
        length = int.from_bytes(data[offset + 4 : offset + 6], "little")
        kind = data[offset + 6]
        start = offset + _RECORD_HEADER
        parts += data[start : start + length]
        offset = start + length
        if kind in (_FULL, _LAST):
            record = pb.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def history(file: Path) -> list[dict[str, Any]]:
    """Logged rows."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def run(file: Path) -> pb.RunRecord:
    """The run's record: id, group, project and config."""
    return next(r.run for r in records(file) if r.WhichOneof("record_type") == "run")


def config(file: Path) -> dict[str, Any]:
    """The config that was given to `wandb.init`."""
    updates = run(file).config.update
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in updates}
