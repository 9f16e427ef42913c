"""A backbone that others have trained, with its weights and what is known of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from conr_ray.config import ViewsConfig
from conr_ray.errors import UserError, one_line
from conr_ray.fields import short
from conr_ray.method.backbone_names import HUB, NONE
from conr_ray.method.timm_backbone import TimmBackbone, timm_config
from conr_ray.pretrained.fitting import fitted
from conr_ray.pretrained.preparation import Preparation
from conr_ray.pretrained.sources import find_weights
from conr_ray.pretrained.weights_file import digest_of


@dataclass(frozen=True)
class Pretrained:
    """A backbone with weights, on the CPU, in evaluation mode.

    Attributes:
        name: a value of `model.backbone`.
        source: where its weights came from, for people; `none` if they are random.
        digest: SHA-256 of the weights, which depends on names, shapes and values alone.
        licence: of the weights, as far as it is known.
        note: how names were matched, if they are not timm's; else empty. To be told to people.
        preparation: how images become its inputs.
        out_features: width of its features, d.
        module: normalised images (b, 3, h, w) to pooled features (b, d).
    """

    name: str
    source: str
    digest: str
    licence: str | None
    note: str
    preparation: Preparation
    out_features: int
    module: TimmBackbone

    def tensors(self) -> dict[str, Tensor]:
        """The weights by the names that an export has: timm's behind `backbone.`."""
        return _portable(self.module)


def load_pretrained(backbone: str, weights: str = HUB, size: int | None = None) -> Pretrained:
    """The backbone that `model.backbone` names with the weights that `model.weights` names.

    Args:
        backbone: `timm:NAME`.
        weights: `hub`, `none` (drawn, always the same ones), `package:NAME`, or the path or URI of
            a file.
        size: side of the network's images, pixels; the model's own if None.

    Raises:
        UserError: there is no such model, or its weights cannot be found or read, do not fit, or
            are not finite.
    """
    preparation = preparation_of(backbone, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TimmBackbone(backbone, preparation.size).eval()
    source, licence, note = NONE, None, ""
    if weights != NONE:
        try:
            found = find_weights(backbone, weights)
            named, note = fitted(module, found.tensors)
            _check_finite(named)
        except UserError as error:
            raise UserError(
                f"model.weights={short(weights)}: model.backbone={short(backbone)}: {error}"
            ) from None
        module.layers.load_state_dict(named, strict=False)
        source, licence = found.source, found.licence
    digest = digest_of(_portable(module))
    width = module.out_features
    return Pretrained(backbone, source, digest, licence, note, preparation, width, module)


@functools.cache
def preparation_of(backbone: str, size: int | None = None) -> Preparation:
    """How images become inputs of a model, as timm knows it; `size` replaces its own side.

    The whole picture is taken, not the middle of it that timm's tests of classifiers use.

    Raises:
        UserError: timm is not installed, or has no such model.
    """
    config = timm_config(backbone)
    bilinear = config["interpolation"] == "bilinear"
    return Preparation(
        size=size or int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if bilinear else "bicubic",
    )


def check_backbone(backbone: str, views: ViewsConfig) -> None:
    """Check that timm has a model with pooled features, and that it takes images of these sizes.

    Raises:
        UserError: it has not, or does not, or is not installed.
    """
    own, fixed = (
        preparation_of(backbone, views.size).size,
        timm_config(backbone)["fixed_input_size"],
    )
    other = next((side for _, side in views.sizes if side != own), None)
    if fixed and other is not None:
        raise UserError(
            f"views.sizes: model.backbone={short(backbone)} takes views of one size, {own}, not "
            f"{other}: leave views.sizes out"
        )
    try:
        # Without memory or arithmetic.
        with torch.device("meta"), torch.no_grad():
            TimmBackbone(backbone, own).eval()(torch.zeros(1, 3, own, own))
    except UserError:
        raise
    # Models raise errors of many kinds where an image is too small, or not a number of patches.
    except Exception as error:
        raise UserError(
            f"model.backbone={short(backbone)}: views.size={own} is not for this model "
            f"({one_line(error)}): leave it unset, or choose another one"
        ) from None


def _portable(module: TimmBackbone) -> dict[str, Tensor]:
    return {
        f"backbone.{name}": tensor
        for name, tensor in module.layers.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _check_finite(named: dict[str, Tensor]) -> None:
    for name, tensor in named.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{short(name)} holds NaN or infinity: give other weights")
