"""All that changes while a run trains."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conr_ray import __version__
from conr_ray.config import RunConfig
from conr_ray.data.keyed_random import fold
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.errors import UserError
from conr_ray.method.batch_norm import synchronize_batch_norm
from conr_ray.method.collectives import world_size
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.networks import BACKBONES, Encoder, OnlineNetwork, TargetNetwork

# Buffers are equal on all workers, since batch statistics are global. The option's name has changed
# with torch 2.13.
_SYNC_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_BUFFERS_AS_THEY_ARE: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in _SYNC_OPTIONS
    else "broadcast_buffers": False
}

# Sections and fields that shape no part of the state: runs that go on from one checkpoint can
# differ in them.
_CHANGEABLE = (
    *("neighborhood", "boundary", "optim", "views"),
    *("schedule.relax_epochs", "model.momentum"),
)
_CHANGEABLE_BUT = ("optim.batch_size", "views.size")


def may_change(field: str) -> bool:
    """Whether a run can go on from a checkpoint with another value of the dotted `field`."""
    section = field.partition(".")[0]
    return not {section, field}.isdisjoint(_CHANGEABLE) and field not in _CHANGEABLE_BUT


@dataclass
class TrainingState:
    """Networks, optimiser, memory bank, pseudo-labels and metrics after `epoch` epochs.

    Randomness has no state: it is keyed by seed, epoch, step and position.
    """

    online: OnlineNetwork
    target: TargetNetwork
    optimizer: torch.optim.SGD
    bank: MemoryBank
    epoch: int = 0
    # Cluster of each sample of the data set, (n,) int64, centres (c, d), and how many epochs were
    # trained when they were found: None until the first clustering.
    pseudo_labels: Tensor | None = None
    centers: Tensor | None = None
    clustered_epoch: int | None = None
    history: list[MetricRow] = field(default_factory=list)

    @classmethod
    def create(cls, config: RunConfig, num_channels: int, device: torch.device) -> TrainingState:
        """The state before the first step; weights depend on the seed alone."""
        model = config.model
        # Weights are drawn on the CPU, so that every device starts from the same ones.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(config.seed, "weights"))
            backbone = BACKBONES[model.backbone](num_channels, model.stem, model.widths)
            encoder = Encoder(backbone, model.head_hidden_dim, model.embedding_dim)
            online = OnlineNetwork(encoder, model.head_hidden_dim, model.embedding_dim)
        target = TargetNetwork(online)
        for network in (online, target):
            synchronize_batch_norm(network, device)
            # Faster on GPUs, and on CPUs too.
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            [
                {"params": list(online.encoder.parameters())},
                {"params": list(online.predictor.parameters())},
            ],
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )
        bank = MemoryBank(
            config.bank.size,
            model.embedding_dim,
            config.optim.batch_size,
            Neighborhood(**config.neighborhood.model_dump()),
            dtype=torch.bfloat16 if config.bank.dtype == "bf16" else torch.float32,
            device=device,
            sharded=config.bank.sharded,
        )
        return cls(online, target, optimizer, bank)

    def trained_module(self) -> nn.Module:
        """The online network as it is called in training: gradients averaged over the workers."""
        if world_size() == 1:
            return self.online
        return nn.parallel.DistributedDataParallel(self.online, **_BUFFERS_AS_THEY_ARE)

    def to_checkpoint(self, config: RunConfig, data_fingerprint: str) -> dict[str, Any]:
        """Everything a run needs to go on, as tensors and plain values.

        All workers make it, since each holds a part of the bank.
        """
        return {
            "version": __version__,
            "epoch": self.epoch,
            "config": config.to_yaml(),
            "data_fingerprint": data_fingerprint,
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict(),
            "pseudo_labels": self.pseudo_labels,
            "centers": self.centers,
            "clustered_epoch": self.clustered_epoch,
            "history": [dict(row) for row in self.history],
        }

    def load(self, checkpoint: dict[str, Any], data_fingerprint: str) -> None:
        """Go on from `checkpoint`; what the optimiser is set to stays as this run has it.

        Raises:
            UserError: it was made from other images.
        """
        if checkpoint["data_fingerprint"] != data_fingerprint:
            raise UserError(
                "data.path: the images are not those of the checkpoint: restore them, or choose "
                "another --name to start anew"
            )
        self.online.load_state_dict(checkpoint["online"])
        self.target.load_state_dict(checkpoint["target"])
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**checkpoint["optimizer"], "param_groups": settings})
        self.bank.load_state_dict(checkpoint["bank"])
        self.epoch = checkpoint["epoch"]
        self.pseudo_labels = checkpoint["pseudo_labels"]
        self.centers = checkpoint["centers"]
        self.clustered_epoch = checkpoint["clustered_epoch"]
        self.history = list(checkpoint["history"])
