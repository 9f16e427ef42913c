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

from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk
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
            if not self._is_pinned(old):
                self.delete_checkpoint(old)

    def load_checkpoint(self, epoch: int, device: torch.device) -> dict[str, Any]:
        """The state saved after `epoch` epochs, its tensors on `device`.

        Raises:
            UserError: it is missing or damaged, or of another epoch.
        """
        import torch

        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device={device}: torch sees no GPU here: use cpu")
        try:
            data = self._sound_state(epoch)
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
            if state.get("epoch", epoch) != epoch:
                raise ValueError(f"it is of epoch {state['epoch']}")
        except pickle.UnpicklingError:
            # What torch says of it names a way to run its code.
            raise self._damage(epoch, "it holds more than tensors and plain values") from None
        except StorageError:
            raise
        except (RuntimeError, EOFError, ValueError, KeyError) as error:
            raise self._damage(epoch, error) from None
        return state

    def delete_checkpoint(self, epoch: int) -> None:
        """Delete the checkpoint after `epoch` epochs, if there is one."""
        self.delete_folder(self.checkpoint_name(epoch))

    def delete_unsound_checkpoints(self) -> None:
        """Delete checkpoints without a summary, and damaged ones newer than any sound one.

        A line on standard error tells of each damaged one. Only who trains the run may call it.
        """
        epochs = self.checkpoint_epochs()
        whole = set(map(self.checkpoint_name, epochs))
        for folder in self.folder_names("checkpoints"):
            if f"checkpoints/{folder}" not in whole:
                self.delete_folder(f"checkpoints/{folder}")
        while epochs:
            try:
                self._sound_state(epochs[-1])
                return
            except StorageError:
                raise
            except ValueError as error:
                damaged = epochs.pop()
                before = f"that after {epochs[-1]} epochs" if epochs else "the start"
                told = str(self._damage(damaged, error)).rpartition(": ")[0]
                disk.tell(f"{told}: deleted; the run goes on from {before}")
                self.delete_checkpoint(damaged)

    def _sound_state(self, epoch: int) -> bytes:
        """The bytes of a state; ValueError if they are missing or damaged."""
        data = self.read_bytes(f"{self.checkpoint_name(epoch)}/state.pt")
        if data is None:
            raise ValueError("it is missing")
        summary = self.read_json(f"{self.checkpoint_name(epoch)}/summary.json") or {}
        digest = _digest(data)
        if summary.get("sha256", digest) != digest:
            raise ValueError("its checksum does not match")
        return data

    def _damage(self, epoch: int, reason: object) -> UserError:
        return UserError(
            f"{self.uri}/{self.checkpoint_name(epoch)}/state.pt is damaged "
            f"({str(reason).splitlines()[0] if str(reason) else type(reason).__name__}): resume "
            "the run, which goes on from the checkpoint before"
        )

    def _is_pinned(self, epoch: int) -> bool:
        try:
            summary = self.read_json(f"{self.checkpoint_name(epoch)}/summary.json") or {}
        except StorageError:
            raise
        except UserError:
            return False
        return bool(summary.get("pinned"))


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
