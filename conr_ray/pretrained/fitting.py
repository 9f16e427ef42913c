"""Put weights into a network whose names may differ from those in their file.

Tried in this order, the classifier left out each time:

1. by name;
2. by name after timm's own conversion of the model's older and foreign checkpoints;
3. by order, if no name is the network's own and all shapes agree in order.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from conr_ray.errors import UserError
from conr_ray.fields import short
from conr_ray.method.timm_backbone import TimmBackbone

_COUNTER = "num_batches_tracked"
_MOST_NAMED = 5
Shapes = dict[str, tuple[int, ...]]


def fitted(backbone: TimmBackbone, named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state of `backbone.layers` from weights, and a line on how names were matched.

    The line is empty if they have timm's names.

    Raises:
        UserError: they are of another network; it names the tensors that do not fit.
    """
    own = _counted_out(backbone.layers.state_dict())
    given = _counted_out(named)
    classifiers = _classifiers(backbone)
    kept = {n: t for n, t in given.items() if n in own or not n.startswith(classifiers)}
    if _shapes(kept) == _shapes(own):
        return kept, ""
    converted = _converted(backbone, given)
    if converted is not None:
        kept_then = {
            n: t for n, t in converted.items() if n in own or not n.startswith(classifiers)
        }
        if _shapes(kept_then) == _shapes(own):
            return (
                kept_then,
                "names and shapes are those of another program; timm has converted them",
            )
    if own.keys() & given.keys():
        told = difference(_shapes(own), _shapes(kept))
    elif (in_order := _in_order(own, given)) is not None:
        return in_order, (
            "no name in the file is timm's; its tensors have the shapes of timm's in the same "
            "order, and are taken in this order"
        )
    else:
        told = _difference_in_order(_shapes(own), _shapes(given))
    raise UserError(
        f"does not fit this model: {told}: give weights of this model, or set model.backbone to "
        "the model that they are of"
    )


def difference(wanted: Shapes, found: Shapes) -> str:
    """The first tensors that are missing, unexpected or of another shape, in words."""
    told = []
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        shown = short(name.removeprefix("backbone."))
        if name not in found:
            told.append(f"{shown} is missing")
        elif name not in wanted:
            told.append(f"{shown} is unexpected")
        elif found[name] != wanted[name]:
            told.append(f"{shown} is {_by(found[name])}, not {_by(wanted[name])}")
    return _first(told)


def _difference_in_order(wanted: Shapes, found: Shapes) -> str:
    """The first tensors whose shapes differ, where names tell nothing."""
    told = [
        f"{short(theirs)} is {_by(found[theirs])}, not {_by(wanted[own])} as {short(own)}"
        for own, theirs in zip(wanted, found, strict=False)
        if found[theirs] != wanted[own]
    ]
    counted = f"no name in the file is timm's, and of {len(found)} tensors, not {len(wanted)}, "
    return counted + (_first(told) if told else "those in common have the same shapes")


def _first(told: list[str]) -> str:
    more = len(told) - _MOST_NAMED
    return ", ".join(told[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _counted_out(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the numbers of batches that normalisation has seen, which not every file has."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _classifiers(backbone: TimmBackbone) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin."""
    layers: Any = backbone.layers
    named = layers.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


def _converted(backbone: TimmBackbone, named: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights after the conversion that timm has for the model; None without one."""
    layers: Any = backbone.layers
    convert = getattr(sys.modules[type(layers).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    takes_model = len(inspect.signature(convert).parameters) > 1
    try:
        found = convert(dict(named), layers) if takes_model else convert(dict(named))
        return _counted_out(dict(found))
    # It is written for certain files, and fails in many ways on others.
    except Exception:
        return None


def _in_order(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The given tensors by the network's names, if those before the last few agree in order.

    A classifier of another program comes last: at most its weight and bias are left over.
    """
    names, tensors = list(own), list(given.values())
    if not 0 <= len(tensors) - len(names) <= 2:
        return None
    pairs = list(zip(names, tensors[: len(names)], strict=True))
    same = all(own[name].shape == tensor.shape for name, tensor in pairs)
    return dict(pairs) if same else None
