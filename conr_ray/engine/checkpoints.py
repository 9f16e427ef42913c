"""Checkpoints: saved states of a run.

checkpoints/epoch_000040/state.pt       tensors and plain values
checkpoints/epoch_000040/summary.json   written last; a checkpoint without it is incomplete and
                                        ignored
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conr_ray.errors import UserError
from conr_ray.storage.files import Folder

if TYPE_CHECKING:
    # Torch takes seconds to import, and readers of metrics do not need it.
    import torch


class CheckpointFolder(Folder):
    """A folder with checkpoints."""

    def checkpoint_epochs(self) -> list[int]:
        """Numbers of epochs after which there are complete checkpoints, ascending."""
        paths = self.paths_below("checkpoints")
        found = (re.fullmatch(r"epoch_(\d+)/summary\.json", path) for path in paths)
        return sorted(int(match[1]) for match in found if match)

    def checkpoint_name(self, epoch: int) -> str:
        """Name of the folder of the checkpoint after `epoch` epochs."""
        return f"checkpoints/epoch_{epoch:06d}"

    def save_checkpoint(
        self,
        epoch: int,
        state: Mapping[str, Any],
        summary: Mapping[str, Any],
        keep: int,
        *,
        pinned: bool = False,
    ) -> None:
        """Write a checkpoint, then delete all but the newest `keep` and those that are pinned."""
        import torch

        name = self.checkpoint_name(epoch)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.write_bytes(f"{name}/state.pt", buffer.getbuffer())
        summary = {**summary, "sha256": _digest(buffer.getbuffer())}
        summary |= {"pinned": True} if pinned else {}
        self.write_text(f"{name}/summary.json", json.dumps(summary, indent=2) + "\n")
        for old in self.checkpoint_epochs()[:-keep]:
            if not self._summary(old).get("pinned"):
                self.delete_checkpoint(old)

    def load_checkpoint(self, epoch: int, device: torch.device) -> dict[str, Any]:
        """The state saved after `epoch` epochs, its tensors on `device`.

        Raises:
            UserError: it is missing or damaged.
        """
        import torch

        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device={device}: torch sees no GPU here: use cpu")
        name = f"{self.checkpoint_name(epoch)}/state.pt"
        data = self.read_bytes(name)
        try:
            if data is None:
                raise ValueError("it is missing")
            digest = _digest(data)
            if self._summary(epoch).get("sha256", digest) != digest:
                raise ValueError("its checksum does not match")
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.uri}/{name} is damaged ({reason}): delete its folder to resume from "
                "the checkpoint before"
            ) from None
        return state

    def delete_checkpoint(self, epoch: int) -> None:
        """Delete the checkpoint after `epoch` epochs."""
        self.delete_folder(self.checkpoint_name(epoch))

    def _summary(self, epoch: int) -> dict[str, Any]:
        text = self.read_text(f"{self.checkpoint_name(epoch)}/summary.json")
        return dict(json.loads(text or "{}"))


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
