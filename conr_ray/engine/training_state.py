"""Everything that changes while a run trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conr_ray import __version__
from conr_ray.config import RunConfig, mark_of
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.errors import UserError
from conr_ray.method.batch_norm import (
    divide_batch_norm,
    set_running_statistics,
    synchronize_batch_norm,
)
from conr_ray.method.collectives import world_size
from conr_ray.method.frameworks import framework_class
from conr_ray.method.frameworks.base import Framework
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.networks import Backbone, Encoder, Identity, make_backbone, portable_names
from conr_ray.method.stages.boundary import boundary_centers

# Buffers are made equal on all workers by `method.batch_norm`. torch 2.13 renamed the option.
_SYNC_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_BUFFERS_AS_THEY_ARE: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in _SYNC_OPTIONS
    else "broadcast_buffers": False
}

# Version of the layout of checkpoints: increase it with every change of their contents.
_LAYOUT = 2


def may_change(field: str) -> bool:
    """Whether a run can resume from a checkpoint with another value of the dotted `field`."""
    return bool(mark_of(field).changeable)


@dataclass
class TrainingState:
    """Networks, optimiser, memory bank, pseudo-labels and metrics after `epoch` epochs.

    Randomness has no state: it is keyed by seed, epoch, step and position. `within` is set where
    the first steps of another epoch are trained too: their `StepFigures`, and each worker's running
    statistics.
    """

    framework: Framework[Any]
    optimizer: torch.optim.SGD
    bank: MemoryBank
    num_clusters: int = 2
    epoch: int = 0
    # Cluster of each sample of the data set, by its place from 0, (n,) int64, centres of unit
    # length (c, d), lengths of the clusters' means (c,), the numbers by which people know the
    # clusters, (c,) int64, and how many epochs were trained when they were found: None until the
    # first clustering.
    pseudo_labels: Tensor | None = None
    centers: Tensor | None = None
    center_lengths: Tensor | None = None
    cluster_numbers: Tensor | None = None
    clustered_epoch: int | None = None
    history: list[MetricRow] = field(default_factory=list)
    within: dict[str, Any] | None = None

    @classmethod
    def create(
        cls,
        config: RunConfig,
        row_shape: tuple[int, ...],
        acceleration: Acceleration,
        num_clusters: int = 2,
    ) -> TrainingState:
        """The state before the first step; weights depend only on the seed.

        Args:
            config: of the run.
            row_shape: of a sample, (c, h, w) or (d,).
            acceleration: where and how the networks compute.
            num_clusters: for frameworks that learn clusters.
        """
        model, device = config.model, acceleration.device
        # Weights are drawn on the CPU, so that every device starts from the same ones.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(config.seed, "weights"))
            backbone = backbone_of(config, row_shape)
            framework = framework_class(model.framework)(
                config.framework, backbone, model.head_hidden_dim, model.embedding_dim
            )
            framework.for_clusters(num_clusters)
        for module in framework.modules():
            if isinstance(module, Encoder):
                module.freeze(model.train)
        if config.norm_rows is None:
            synchronize_batch_norm(framework, device)
        else:
            divide_batch_norm(framework, config.norm_rows)
        acceleration.place(framework)
        optimizer = torch.optim.SGD(
            [
                {
                    "params": [one for one in group.parameters if one.requires_grad],
                    "name": group.name,
                    "lr_factor": group.lr_factor,
                    "group_stage_lr_factor": group.group_stage_lr_factor,
                }
                for group in framework.param_groups()
            ],
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
            **acceleration.sgd_options,
        )
        bank = MemoryBank(
            config.bank.size,
            model.embedding_dim,
            config.optim.batch_size,
            neighborhood_of(config),
            dtype=torch.bfloat16 if config.bank.dtype == "bf16" else torch.float32,
            device=device,
            sharded=config.bank.sharded,
        )
        return cls(framework, optimizer, bank, num_clusters)

    @torch.no_grad()
    def start_from(self, encoder: Mapping[str, Tensor]) -> None:
        """Put weights, by `portable_names`, into all encoders, online and target."""
        for module in self.framework.modules():
            if isinstance(module, Encoder):
                own = portable_names(module)
                for name, tensor in encoder.items():
                    own[name].copy_(tensor)

    def boundary_centers(self, kind: str) -> Tensor | None:
        """Centres of which boundary ratios are taken, (c, d); None before the first clustering."""
        if self.centers is None or self.center_lengths is None:
            return None
        return boundary_centers(kind, self.centers, self.center_lengths)

    def trained_module(self) -> nn.Module:
        """The framework as called in training, with gradients averaged over the workers."""
        trained: nn.Module = self.framework
        if world_size() > 1:
            trained = nn.parallel.DistributedDataParallel(trained, **_BUFFERS_AS_THEY_ARE)
        if self.within is not None:
            # It has given all workers the first one's.
            set_running_statistics(self.framework, self.within["running_statistics"])
        return trained

    def to_checkpoint(
        self, config: RunConfig, data_fingerprint: str, inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Everything a run needs to resume, as tensors and plain values.

        Called by all workers, since each holds a part of the bank. `inputs` says how samples are
        prepared for the networks, so that the checkpoint can be applied to new ones.
        """
        return {
            "layout": _LAYOUT,
            "version": __version__,
            "epoch": self.epoch,
            "config": config.to_yaml(),
            "data_fingerprint": data_fingerprint,
            "inputs": dict(inputs),
            "framework_name": config.model.framework,
            "framework": self.framework.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict(),
            "num_clusters": self.num_clusters,
            "pseudo_labels": self.pseudo_labels,
            "centers": self.centers,
            "center_lengths": self.center_lengths,
            "cluster_numbers": self.cluster_numbers,
            "clustered_epoch": self.clustered_epoch,
            "history": [dict(row) for row in self.history],
            "within": self.within,
        }

    def for_samples(self, data_fingerprint: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """`checkpoint` for other samples than it was written for.

        It keeps networks and centres; what is known of single samples begins anew, as in this state
        before the first step.
        """
        return {
            **checkpoint,
            "data_fingerprint": data_fingerprint,
            "bank": self.bank.state_dict(),
            "pseudo_labels": None,
            "clustered_epoch": None,
            "within": None,
        }

    def load(self, checkpoint: dict[str, Any], config: RunConfig, data_fingerprint: str) -> None:
        """Resume from `checkpoint`; the optimiser keeps the settings of this run.

        Raises:
            UserError: its layout, framework or samples differ.
        """
        check_checkpoint(checkpoint, config)
        if checkpoint["data_fingerprint"] != data_fingerprint:
            raise UserError(
                "data.path: the samples are not those of the checkpoint: restore them, or choose "
                "another name to start anew"
            )
        self.framework.load_state_dict(checkpoint["framework"])
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**checkpoint["optimizer"], "param_groups": settings})
        self.bank.load_state_dict(checkpoint["bank"])
        self.epoch = checkpoint["epoch"]
        self.pseudo_labels = checkpoint["pseudo_labels"]
        self.centers = checkpoint["centers"]
        self.clustered_epoch = checkpoint["clustered_epoch"]
        self.center_lengths = checkpoint.get("center_lengths")
        self.cluster_numbers = checkpoint.get("cluster_numbers")
        if self.centers is not None and self.cluster_numbers is None:
            self.cluster_numbers = torch.arange(len(self.centers))
        if self.centers is not None and self.center_lengths is None:
            # Not every checkpoint of this layout has them; the same clusters are then found anew.
            self.center_lengths, self.clustered_epoch = self.centers.norm(dim=1), None
        self.history = list(checkpoint["history"])
        self.within = checkpoint.get("within")


def neighborhood_of(config: RunConfig) -> Neighborhood:
    """How a run finds neighbours, wherever it does."""
    return Neighborhood(**config.neighborhood.model_dump(exclude={"pool"}))


def backbone_of(config: RunConfig, row_shape: tuple[int, ...]) -> Backbone:
    """The backbone for samples of `row_shape`; weights are drawn from torch's global generator."""
    model, size = config.model, config.views.size
    if model.embeds_once:
        return Identity(row_shape[0])
    return make_backbone(model.backbone, row_shape, model.stem, model.widths, size)


def check_checkpoint(checkpoint: Mapping[str, Any], config: RunConfig) -> None:
    """Raise UserError if a run of `config` cannot resume from `checkpoint`."""
    if checkpoint.get("layout") != _LAYOUT:
        raise UserError(
            f"the checkpoint was written by conr_ray {checkpoint.get('version')} in another "
            f"layout than that of {__version__}: use that version, or choose another name to "
            "start anew"
        )
    framework = checkpoint["framework_name"]
    if framework != config.model.framework:
        raise UserError(
            f"model.framework={config.model.framework}: the checkpoint is of {framework}: set "
            f"model.framework={framework}, or choose another name to start anew"
        )
    kind = checkpoint["inputs"]["kind"]
    if (kind == "vectors") != config.trains_on_vectors:
        raise UserError(
            f"data.source={config.data.source}: the checkpoint is of {kind}: choose another name "
            "to start anew"
        )
