"""Which epochs W&B's own files of a run hold: LevelDB's log format around protocol buffers.

W&B's process appends records to `run-ID.wandb` with a delay: after a kill, the file shows which
ones were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

_FILE_HEADER, _RECORD_HEADER, _BLOCK = 7, 7, 32768
_FULL, _LAST = 1, 4
# Created at run time, invisible to type checkers.
_RECORD: Any = vars(wandb_internal_pb2)["Record"]


def logged_epochs(folder: str, run_id: str) -> set[int]:
    """Epochs in the run's files under `folder`; empty if there are none."""
    found: set[int] = set()
    for file in Path(folder).glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"):
        found |= {row["epoch"] for row in history(file) if "epoch" in row}
    return found


def has_ended(file: Path) -> bool:
    """Whether W&B's process has written the end of the run; it may do so after the run's."""
    return any(record.WhichOneof("record_type") == "exit" for record in records(file))


def history(file: Path) -> list[dict[str, Any]]:
    """Logged rows."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def records(file: Path) -> Iterator[Any]:
    """The records of a file, up to the first incomplete one."""
    data, offset, parts = file.read_bytes(), _FILE_HEADER, b""
    while offset < len(data):
        left_in_block = _BLOCK - offset % _BLOCK
        if left_in_block < _RECORD_HEADER:
            offset += left_in_block
            continue
        length = int.from_bytes(data[offset + 4 : offset + 6], "little")
        kind = data[offset + 6] if offset + 6 < len(data) else 0
        start = offset + _RECORD_HEADER
        if not kind or start + length > len(data):
            return
        parts += data[start : start + length]
        offset = start + length
        if kind in (_FULL, _LAST):
            record = _RECORD()
            try:
                record.ParseFromString(parts)
            except DecodeError:
                return
            yield record
            parts = b""
