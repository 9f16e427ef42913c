"""From samples as stored to clusters, in one module that the exported formats share.

Shapes: n samples, c channels, h x w pixels, d embedding width, k clusters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from conr_ray.engine.trained_run import TrainedRun
from conr_ray.engine.training_state import backbone_of
from conr_ray.errors import UserError
from conr_ray.frozen import FrozenBackbone
from conr_ray.method.networks import Encoder
from conr_ray.pretrained import Preparation
from conr_ray.pretrained.preparation import colours

OUTPUTS = ("embedding", "cluster", "distance", "other_distance", "boundary_ratio")


class ImagePreparation(nn.Module):
    """uint8 images of one size to the network's inputs, as `Views.plain` makes them."""

    mean: Tensor
    std: Tensor

    def __init__(self, height: int, width: int, size: int, mean: list[float], std: list[float]):
        """Fix the sizes, in pixels; `mean` and `std` are per channel, of values from 0 to 1."""
        super().__init__()
        self.resized = resized_shape(height, width, size)
        self.is_resized = self.resized != (height, width)
        self.top, self.left = ((side - size) // 2 for side in self.resized)
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        # As in `Views`: a constant channel has a deviation of 0.
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1).clamp_min(1 / 255))

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) uint8 to (n, c, size, size) float32."""
        pixels = images.float() / 255
        if self.is_resized:
            pixels = interpolate(pixels, self.resized, mode="bilinear", align_corners=False)
        bottom, right = self.top + self.size, self.left + self.size
        return (pixels[:, :, self.top : bottom, self.left : right] - self.mean) / self.std


class PretrainedPreparation(nn.Module):
    """uint8 images of one size to the inputs of a model of timm, as `Preparation.prepare` does.

    Resizing is a product with a matrix on each side: formats know anti-aliasing in other ways.
    """

    mean: Tensor
    std: Tensor
    resizing: Tensor

    def __init__(self, height: int, width: int, preparation: Preparation):
        """Fix the sizes, in pixels."""
        super().__init__()
        self.preparation, self.size = preparation, preparation.size
        self.side = preparation.crop_side(height, width)
        self.top, self.left = (height - self.side) // 2, (width - self.side) // 2
        self.is_resized = self.side != self.size
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preparation, name)).view(1, -1, 1, 1))
        unit = torch.eye(self.side)[None, None]
        mode = preparation.interpolation
        resizing = interpolate(unit, (self.size, self.side), mode=mode, antialias=True)
        self.register_buffer("resizing", resizing[0, 0])

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) uint8 to (n, 3, size, size) float32; grey is repeated, alpha dropped."""
        bottom, right = self.top + self.side, self.left + self.side
        pixels = colours(images)[:, :, self.top : bottom, self.left : right].float() / 255
        if self.is_resized:
            pixels = (self.resizing @ pixels @ self.resizing.T).clamp(0, 1)
        return (pixels - self.mean) / self.std


class VectorPreparation(nn.Module):
    """Float vectors to the network's inputs, as `Vectors.plain` makes them."""

    mean: Tensor

    def __init__(self, mean: list[float], scale: float):
        """`mean` is per feature; `scale` is the deviation of all of them."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.scale = scale or 1.0

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, features) float32, centred and scaled."""
        return (vectors - self.mean) / self.scale


AnyPreparation = ImagePreparation | PretrainedPreparation | VectorPreparation


class ClusteringNetwork(nn.Module):
    """Preparation, encoder and centres of a run, on the CPU in float32."""

    centers: Tensor
    boundary_centers: Tensor
    cluster_numbers: Tensor

    def __init__(
        self,
        preparation: AnyPreparation,
        encoder: Encoder,
        centers_kd: Tensor,
        boundary_kd: Tensor,
        numbers_k: Tensor,
    ):
        """`centers_kd` decide the cluster, which `numbers_k` name; `boundary_kd` distances."""
        super().__init__()
        self.preparation, self.encoder = preparation, encoder
        self.register_buffer("centers", centers_kd)
        self.register_buffer("boundary_centers", boundary_kd)
        self.register_buffer("cluster_numbers", numbers_k)

    @classmethod
    def of(cls, run: TrainedRun) -> ClusteringNetwork:
        """The network of a run.

        Raises:
            UserError: the run has not been clustered yet.
        """
        centers_kd, numbers_k = run.state.centers, run.state.cluster_numbers
        boundary_kd = run.state.boundary_centers(run.config.boundary.centers)
        if centers_kd is None or numbers_k is None or boundary_kd is None:
            raise UserError("the run has no clusters yet: train it to its next evaluation")
        trained = run.state.framework.embedding_encoder
        # Built anew: that of the run may have normalisations of its own over workers or groups.
        with torch.random.fork_rng(devices=[]):
            backbone = backbone_of(run.config, tuple(run.inputs_state["shape"]))
            encoder = Encoder(backbone, trained.hidden_dim, trained.embedding_dim)
        # A framework may end its projector with a normalisation.
        for layer in list(trained.projector)[len(encoder.projector) :]:
            assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
            encoder.projector.append(nn.BatchNorm1d(layer.num_features, affine=layer.affine))
        encoder.load_state_dict(trained.state_dict())
        if run.backbone is not None:
            _put_before(encoder, run.backbone, run.inputs_state)
        fixed = (tensor.clone() for tensor in (centers_kd, boundary_kd, numbers_k))
        network = cls(_preparation(run), encoder, *fixed)
        return network.cpu().float().eval().requires_grad_(False)

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What `OUTPUTS` names: (n, d) float32, (n,) int64, three times (n,) float32."""
        features_nd = self.encoder(self.preparation(samples))
        lengths_n1 = torch.linalg.vector_norm(features_nd, dim=1, keepdim=True)
        # What has no direction lies at the first axis, as for the run.
        axis_1d = torch.eye(1, features_nd.shape[1])
        embeddings_nd = torch.where(lengths_n1 > 0, features_nd / lengths_n1, axis_1d)
        boundary_kd = self.boundary_centers
        places_n = (embeddings_nd @ self.centers.T).argmax(1)
        distances_nk = torch.linalg.vector_norm(embeddings_nd[:, None] - boundary_kd, dim=2)
        own_nk = torch.arange(boundary_kd.shape[0]) == places_n[:, None]
        own_n = distances_nk.masked_fill(~own_nk, torch.inf).amin(1)
        other_n = distances_nk.masked_fill(own_nk, torch.inf).amin(1)
        ratios_n = torch.where((own_n == 0) & (other_n == 0), 1.0, own_n / other_n)
        return embeddings_nd, self.cluster_numbers[places_n], own_n, other_n, ratios_n


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width from whose centre the view is cut: enlarged if a side is shorter."""
    if min(height, width) >= size:
        return height, width
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def random_samples(run: TrainedRun, count: int) -> Tensor:
    """Samples of the run's shape and range: noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape, state = (count, *run.sample_shape), run.inputs_state
    if len(run.sample_shape) == 3:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noise = torch.randn(shape, generator=generator)
    return torch.tensor(state["mean"]) + (state["std"][0] or 1.0) * noise


@torch.no_grad()
def _put_before(encoder: Encoder, backbone: FrozenBackbone, state: Mapping[str, Any]) -> None:
    """Let an encoder of embedded images begin with their backbone.

    That its vectors are centred and scaled becomes a part of the projector's first layer. Without
    a projector they are centred only: embeddings have no length.
    """
    mean_d, scale = torch.tensor(state["mean"]), state["std"][0] or 1.0
    if not len(encoder.projector):
        centred = nn.BatchNorm1d(len(mean_d), affine=False)
        assert centred.running_mean is not None
        centred.running_mean.copy_(mean_d)
        encoder.projector.append(centred)
    else:
        first = encoder.projector[0]
        assert isinstance(first, nn.Linear)
        first.weight.div_(scale)
        first.bias.sub_(first.weight @ mean_d)
    encoder.backbone = copy.deepcopy(backbone.pretrained.module)


def _preparation(run: TrainedRun) -> AnyPreparation:
    state = run.inputs_state
    mean, std = list(map(float, state["mean"])), list(map(float, state["std"]))
    if len(run.sample_shape) == 1:
        return VectorPreparation(mean, std[0])
    _, height, width = run.sample_shape
    if run.backbone is not None:
        return PretrainedPreparation(height, width, run.backbone.pretrained.preparation)
    if "interpolation" in state:
        return PretrainedPreparation(height, width, Preparation.from_json(state))
    return ImagePreparation(height, width, state["size"], mean, std)
