"""Backbones of the timm library: `model.backbone: timm:NAME`, pooled features without classifier.

timm is imported where such a backbone is made: it takes a second, and is an optional dependency.

Shapes: b rows of a worker, h x w pixels.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from conr_ray.errors import UserError, one_line
from conr_ray.fields import short
from conr_ray.method.backbone_names import TIMM


class TimmBackbone(nn.Module):
    """A model of timm without its classifier; weights are drawn from torch's global generator.

    Its own random layers, dropout and stochastic depth, are off: what happens to a sample then
    depends on the keys of its views alone, and a run that is resumed goes on bit for bit.

    Attributes:
        name: a value of `model.backbone`.
        layers: timm's model.
        image_size: side of its images, pixels, if it was made for this one instead of its own.
        out_features: width of its pooled features.
    """

    def __init__(self, backbone: str, size: int | None = None) -> None:
        """Make the model that `backbone` names.

        Args:
            backbone: `timm:NAME`, where the name may have a tag, as in `resnet18.a1_in1k`.
            size: side of its images, pixels; the model's own if None. Only models whose weights
                depend on it, such as vision transformers, read it.

        Raises:
            UserError: timm is not installed, has no such model, or the model takes no such size.
        """
        super().__init__()
        self.name = backbone
        config = timm_config(backbone)
        own = int(config["input_size"][-1])
        differs = config["fixed_input_size"] and size not in (None, own)
        self.image_size = size if differs else None
        sized = {"img_size": size} if differs else {}
        try:
            self.layers = _timm(backbone).create_model(_name_of(backbone), num_classes=0, **sized)
        # Models raise errors of many kinds on sizes that do not fit their patches and windows.
        except Exception as error:
            what = f"views.size={size}: " if sized else ""
            remedy = f"leave it unset, which is {own}" if sized else "choose another model"
            raise UserError(
                f"{what}model.backbone={short(backbone)} cannot be made ({one_line(error)}): "
                f"{remedy}"
            ) from None
        self.out_features = int(
            getattr(self.layers, "head_hidden_size", None) or self.layers.num_features
        )
        for module in self.layers.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):
                module.drop_prob = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) normalised to (b, out_features).

        Raises:
            UserError: the model has no pooled features.
        """
        features: Tensor = self.layers(images)
        if features.ndim != 2:
            raise UserError(
                f"model.backbone={short(self.name)}: the model does not pool its features: choose "
                "another one"
            )
        return features


@functools.cache
def timm_config(backbone: str) -> dict[str, Any]:
    """What timm knows of a model's images and weights, by the names of its `pretrained_cfg`.

    Among them: `input_size` (c, h, w), `mean`, `std`, `interpolation`, `crop_pct`,
    `fixed_input_size`, `license`, `hf_hub_id`, `url`, `classifier`.

    Raises:
        UserError: timm is not installed, or has no such model; the nearest is named.
    """
    timm, name = _timm(backbone), _name_of(backbone)
    architecture, _, tag = name.partition(".")
    near, known = architecture, timm.list_models()
    if architecture in known:
        near, known = name, timm.list_pretrained(f"{architecture}.*")
        if not tag or name in known:
            found: dict[str, Any] = timm.get_pretrained_cfg(name).to_dict()
            return found
    hints = [TIMM + one for one in difflib.get_close_matches(near, known, n=3, cutoff=0.5)]
    remedy = f"did you mean {', '.join(hints)}?"
    if not hints:
        remedy = "python -c 'import timm; print(timm.list_models())' lists them"
    raise UserError(
        f"model.backbone={short(backbone)}: timm {timm.__version__} has no such model; {remedy}"
    )


def last_blocks(backbone: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that `model.train: last_blocks` trains, in the model's own order.

    They are those of the last stage and of all that the model has after it. The last stage is the
    last one that timm lists for the model (`feature_info`): of a ResNet its `layer4`, of an
    EfficientNet the last of its `blocks`, of a vision transformer its last block. Where timm lists
    the activations that stages end with, it begins after the one before the last; where it lists
    nothing that the model has, it is the last member of its last list of blocks.

    Raises:
        UserError: the model has none of these.
    """
    names = [name for name, _ in backbone.named_parameters()]
    firsts = (
        next((i for i, name in enumerate(names) if name.startswith(beginnings)), None)
        for beginnings in _last_stages(backbone)
    )
    # From the first parameter on it would be the whole model.
    first = next((i for i in firsts if i), None)
    if first is None:
        raise UserError("model.train=last_blocks: this model has no stages: set it to all or head")
    return tuple(names[first:])


def _last_stages(backbone: nn.Module) -> Iterator[tuple[str, ...]]:
    """How the names of the last stage's parameters may begin, the best guess first."""
    layers: Any = backbone.layers
    listed = getattr(layers, "feature_info", None)
    if listed is None:
        # A ResNet of torchvision.
        yield ("layers.layer4.",)
        return
    ends = [f"layers.{one['module']}" for one in listed if one.get("module")]
    yield from ((f"{end}.",) for end in reversed(ends))
    modules = [name for name, _ in backbone.named_modules()]
    for end in reversed(ends):
        if end in modules:
            yield tuple(f"{name}." for name in modules[modules.index(end) + 1 :])
    for name, child in reversed(list(layers.named_children())):
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            yield (f"layers.{name}.{len(child) - 1}.",)


def _name_of(backbone: str) -> str:
    return backbone.removeprefix(TIMM)


def _timm(backbone: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(
            f"model.backbone={short(backbone)}: timm is not installed: pip install 'conr_ray[timm]'"
        ) from None
    return timm
