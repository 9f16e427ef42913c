"""Checkpoints: saved states of a run.

checkpoints/epoch_000040/state.pt       tensors and plain values
checkpoints/epoch_000040/summary.json   written last; a checkpoint without it is incomplete and
                                        ignored
checkpoints/epoch_000040_step_000017/   after 17 steps of the next epoch, of a run that was stopped
                                        there or has long epochs; deleted once there is a later one
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conr_ray.errors import StorageError, UserError
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

if TYPE_CHECKING:
    # Torch takes seconds to import, and readers of metrics do not need it.
    import torch


# Trained epochs, and steps of the next one: places in a run in the order of training.
Position = tuple[int, int]
_SUMMARY = re.compile(r"epoch_(\d+)(?:_step_(\d+))?/summary\.json")


class CheckpointFolder(Folder):
    """A folder with checkpoints."""

    def checkpoints(self) -> list[Position]:
        """Where in the run there are complete checkpoints, ascending."""
        found = map(_SUMMARY.fullmatch, self.paths_below("checkpoints"))
        return sorted((int(match[1]), int(match[2] or 0)) for match in found if match)

    def checkpoint_epochs(self) -> list[int]:
        """Numbers of epochs after which there are complete checkpoints, ascending."""
        return [epoch for epoch, steps in self.checkpoints() if not steps]

    def newest_checkpoint(self) -> Position:
        """Where the run would go on: at (0, 0) without a checkpoint."""
        return max(self.checkpoints(), default=(0, 0))

    def checkpoint_name(self, epoch: int, steps: int = 0) -> str:
        """Name of the folder of the checkpoint after `epoch` epochs and `steps` of the next."""
        return f"checkpoints/epoch_{epoch:06d}" + (f"_step_{steps:06d}" if steps else "")

    def save_checkpoint(
        self,
        epoch: int,
        state: Mapping[str, Any],
        summary: Mapping[str, Any],
        keep: int,
        *,
        pinned: bool = False,
        steps: int = 0,
    ) -> None:
        """Write a checkpoint, then delete earlier ones.

        The newest `keep` after whole epochs stay, and those that are pinned.
        """
        import torch

        name = self.checkpoint_name(epoch, steps)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        # Not a view of the buffer, which Python 3.13 complains of where an error keeps both.
        data = buffer.getvalue()
        self.write_bytes(f"{name}/state.pt", data)
        summary = {**summary, "sha256": _digest(data)}
        summary |= {"pinned": True} if pinned else {}
        self.write_text(f"{name}/summary.json", json.dumps(summary, indent=2) + "\n")
        self.delete_earlier_checkpoints(keep)

    def load_checkpoint(self, epoch: int, device: torch.device, steps: int = 0) -> dict[str, Any]:
        """The state saved after `epoch` epochs and `steps` of the next, its tensors on `device`.

        Raises:
            UserError: it is missing or damaged, or of another epoch.
        """
        import torch

        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device={device}: torch sees no GPU here: use cpu")
        try:
            data = self._sound_state(epoch, steps)
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
            if state.get("epoch", epoch) != epoch:
                raise ValueError(f"it is of epoch {state['epoch']}")
        except pickle.UnpicklingError:
            # What torch says of it names a way to run its code.
            reason = "it holds more than tensors and plain values"
            raise self._damage(epoch, steps, reason) from None
        except StorageError:
            raise
        # What torch's readers raise of bytes that make no sense to them.
        except (
            RuntimeError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise self._damage(epoch, steps, error) from None
        return state

    def delete_checkpoint(self, epoch: int, steps: int = 0) -> None:
        """Delete the checkpoint after `epoch` epochs and `steps` of the next, if there is one."""
        self.delete_folder(self.checkpoint_name(epoch, steps))

    def delete_earlier_checkpoints(self, keep: int) -> None:
        """Delete those within an epoch that are not the newest, and all but `keep` whole epochs.

        The newest stay, and those that are pinned. Only who trains the run may call it.
        """
        known = self.checkpoints()
        self._delete_within_epochs(known[:-1])
        for epoch in [epoch for epoch, steps in known if not steps][:-keep]:
            if not self._is_pinned(epoch):
                self.delete_checkpoint(epoch)

    def delete_unsound_checkpoints(self) -> None:
        """Delete checkpoints without a summary, and damaged ones newer than any sound one.

        A line on standard error tells of each damaged one. One within an epoch is deleted too if
        there is a later one. Only who trains the run may call it.
        """
        known = self.checkpoints()
        whole = {self.checkpoint_name(*place) for place in known}
        for folder in self.folder_names("checkpoints"):
            if f"checkpoints/{folder}" not in whole:
                self.delete_folder(f"checkpoints/{folder}")
        while known and (damage := self._damage_of(*known[-1])):
            damaged = known.pop()
            before = f"that {described(*known[-1])}" if known else "the start"
            told = str(damage).rpartition(": ")[0]
            disk.tell(f"{told}: deleted; the run goes on from {before}")
            self.delete_checkpoint(*damaged)
        self._delete_within_epochs(known[:-1])

    def _delete_within_epochs(self, places: Sequence[Position]) -> None:
        for epoch, steps in places:
            if steps:
                self.delete_checkpoint(epoch, steps)

    def _damage_of(self, epoch: int, steps: int) -> UserError | None:
        try:
            self._sound_state(epoch, steps)
        except StorageError:
            raise
        except ValueError as error:
            return self._damage(epoch, steps, error)
        return None

    def _sound_state(self, epoch: int, steps: int) -> bytes:
        """The bytes of a state; ValueError if they are missing or damaged."""
        name = self.checkpoint_name(epoch, steps)
        data = self.read_bytes(f"{name}/state.pt")
        if data is None:
            raise ValueError("it is missing")
        summary = self.read_json(f"{name}/summary.json") or {}
        digest = _digest(data)
        if summary.get("sha256", digest) != digest:
            raise ValueError("its checksum does not match")
        return data

    def _damage(self, epoch: int, steps: int, reason: object) -> UserError:
        return UserError(
            f"{self.uri}/{self.checkpoint_name(epoch, steps)}/state.pt is damaged "
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


def described(epoch: int, steps: int) -> str:
    """A place in a run, for messages; epochs are counted from 1, as progress is shown."""
    return f"in epoch {epoch + 1} after step {steps}" if steps else f"after {epoch} epochs"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
