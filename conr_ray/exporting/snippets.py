"""Python that loads an export without this package, run in the export's folder.

Each snippet defines `place`: samples as stored to the outputs of `network.OUTPUTS`.
"""

from __future__ import annotations

from typing import Any

from conr_ray.method.backbone_names import TIMM, is_timm

_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])


def place(samples):  # a NumPy array
    return session.run(None, {"samples": samples})
"""
_TORCHSCRIPT = """\
import torch

place = torch.jit.load("model.ts")
"""
_PT2 = """\
import torch

place = torch.export.load("model.pt2").module()
"""
_SAFETENSORS = """\
import torch
{imports}from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import interpolate, normalize

tensors = load_file("model.safetensors")
centers, boundary_centers = tensors.pop("centers"), tensors.pop("boundary_centers")
numbers = tensors.pop("cluster_numbers")
{backbone}
{projector}
{extra}network = nn.ModuleDict({{"backbone": backbone, "projector": projector}}).eval()
network.load_state_dict(tensors)
mean, std = torch.tensor({mean}), torch.tensor({std})


@torch.no_grad()
def place(samples):  # a torch tensor
{prepare}
    embeddings = normalize(projector(backbone(x)))
    places = (embeddings @ centers.T).argmax(1)
    distances = (embeddings[:, None] - boundary_centers).norm(dim=2)
    own = nn.functional.one_hot(places, len(centers)).bool()
    distance = distances.masked_fill(~own, torch.inf).amin(1)
    other_distance = distances.masked_fill(own, torch.inf).amin(1)
    return embeddings, numbers[places], distance, other_distance, distance / other_distance
"""


def snippet(format_name: str, config: dict[str, Any]) -> str:
    """The code for a format; `config` is the export's config.json."""
    fixed = {"onnx": _ONNX, "torchscript": _TORCHSCRIPT, "pt2": _PT2}
    if format_name in fixed:
        return fixed[format_name]
    backbone = config["backbone"]
    library = "torchvision" if backbone["name"].startswith("resnet") else None
    if is_timm(backbone["name"]):
        library = "timm"
    norm = f"projector.append(nn.BatchNorm1d({config['embedding_dim']}, affine=False))\n"
    kept = config["input"]
    return _SAFETENSORS.format(
        imports=f"import {library}\n" if library else "",
        backbone="\n".join(_backbone(backbone, kept["shape"][0])),
        projector=_projector(
            backbone["out_features"], config["head_hidden_dim"], config["embedding_dim"]
        ),
        extra=norm if config["projector_ends_with_norm"] else "",
        mean=kept["mean"],
        std=kept["std"],
        prepare="\n".join(f"    {line}" for line in _preparation(kept)),
    )


def _projector(features: int, hidden: int, width: int) -> str:
    if not hidden:
        return "projector = nn.Sequential()"
    return "\n".join(
        [
            f"hidden = {hidden}",
            f"layers = [nn.Linear({features}, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]",
            f"projector = nn.Sequential(*layers, nn.Linear(hidden, {width}))",
        ]
    )


def _backbone(backbone: dict[str, Any], channels: int) -> list[str]:
    name, widths = backbone["name"], backbone["widths"]
    if is_timm(name):
        size = backbone["image_size"]
        sized = "" if size is None else f", img_size={size}"
        return [f'backbone = timm.create_model("{name.removeprefix(TIMM)}", num_classes=0{sized})']
    if name == "identity":
        return ["backbone = nn.Identity()"]
    if name == "mlp":
        return [
            f"widths = [{channels}, {', '.join(map(str, widths))}]",
            "layers = []",
            "for before, after in zip(widths, widths[1:]):",
            "    layers.append(nn.Linear(before, after, bias=False))",
            "    layers += [nn.BatchNorm1d(after), nn.ReLU()]",
            "backbone = nn.Sequential(*layers)",
        ]
    if name == "convnet":
        return [
            f"widths = [{channels}, {', '.join(map(str, widths))}]",
            "layers = []",
            "for depth, (before, after) in enumerate(zip(widths, widths[1:])):",
            f"    stride = 2 if depth == {len(widths) // 2} else 1",
            "    layers.append(nn.Conv2d(before, after, 3, stride, padding=1, bias=False))",
            "    layers += [nn.BatchNorm2d(after), nn.ReLU()]",
            "backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())",
        ]
    lines = [f"backbone = torchvision.models.{name}()", "backbone.fc = nn.Identity()"]
    if backbone["stem"] == "cifar":
        lines.append(f"backbone.conv1 = nn.Conv2d({channels}, 64, 3, padding=1, bias=False)")
        lines.append("backbone.maxpool = nn.Identity()")
    elif channels != 3:
        stem = f"nn.Conv2d({channels}, 64, 7, stride=2, padding=3, bias=False)"
        lines.append(f"backbone.conv1 = {stem}")
    return lines


def _preparation(kept: dict[str, Any]) -> list[str]:
    if len(kept["shape"]) == 1:
        return ["x = (samples.float() - mean) / std"]
    if "interpolation" in kept:
        return _as_pretrained(kept)
    size, (height, width) = kept["view_size"], kept["resized_to"]
    top, left = kept["cropped_at"]
    lines = ["x = samples.float() / 255"]
    if kept["resized_to"] != kept["shape"][1:]:
        lines.append(f'x = interpolate(x, ({height}, {width}), mode="bilinear")')
    if (height, width) != (size, size):
        lines.append(f"x = x[:, :, {top} : {top + size}, {left} : {left + size}]")
    return [*lines, "x = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)"]


def _as_pretrained(kept: dict[str, Any]) -> list[str]:
    size, side, (top, left) = kept["view_size"], kept["cropped_to"], kept["cropped_at"]
    channels, height, width = kept["shape"]
    lines = ["x = samples.float() / 255"]
    if channels == 1:
        lines.append("x = x.expand(-1, 3, -1, -1)")
    elif channels != 3:
        lines.append("x = x[:, :3]")
    if (height, width) != (side, side):
        lines.append(f"x = x[:, :, {top} : {top + side}, {left} : {left + side}]")
    if side != size:
        how = f'mode="{kept["interpolation"]}", antialias=True'
        lines.append(f"x = interpolate(x, ({size}, {size}), {how}).clamp(0, 1)")
    return [*lines, "x = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)"]
