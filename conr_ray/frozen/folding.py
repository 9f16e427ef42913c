"""Batch normalisation folded into the convolutions before it, for networks that do not train."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Of the largest output: what folding may change of float32.
_TOLERANCE = 1e-4


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network in evaluation mode, faster where it can be, of the same outputs.

    A convolution and the batch normalisation of its output are one convolution. What the
    normalisation does besides, such as an activation in timm's models, is kept. A network whose
    program cannot be traced, or which gives something else on `example` when folded, is returned as
    it is.
    """
    try:
        traced = _traced(copy.deepcopy(network))
        num_folded = _fold(traced)
    # A network is any program, and tracing it raises errors of many kinds.
    except Exception:
        return network
    with torch.no_grad():
        expected, found = network(example), traced(example)
    gap = float((found - expected).abs().max())
    is_equal = gap <= _TOLERANCE * float(expected.abs().max())
    return traced.eval() if num_folded and is_equal else network


class _Tracer(fx.Tracer):
    """Sees convolutions and normalisations, sub-classes of torch's too, as single steps."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_leaf = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        return is_leaf or super().is_leaf_module(module, name)


def _traced(network: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(network, _Tracer().trace(network))


def _fold(traced: fx.GraphModule) -> int:
    """Fold where a normalisation alone reads a convolution's output; returns how often."""
    modules, count = dict(traced.named_modules()), 0
    calls: dict[Any, int] = {}
    for node in traced.graph.nodes:
        calls[node.target] = calls.get(node.target, 0) + 1
    for node in traced.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        # A module that is used twice cannot be changed for one of its uses.
        if calls[node.target] > 1 or calls[before.target] > 1:
            continue
        convolution = modules[before.target]
        if not isinstance(convolution, nn.Conv2d):
            continue
        assert norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, name = node.target.rpartition(".")
        # timm's normalisations end with these two.
        rest = [getattr(norm, part, nn.Identity()) for part in ("drop", "act")]
        kept = [layer for layer in rest if not isinstance(layer, nn.Identity)]
        setattr(traced.get_submodule(parent), name, nn.Sequential(*kept))
        count += 1
    return count
