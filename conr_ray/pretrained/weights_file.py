"""Tensors by name, read from a file without running anything in it."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conr_ray.errors import UserError, one_line
from conr_ray.fields import short
from conr_ray.storage.files import Folder

SUFFIXES = (".safetensors", ".pt", ".pth")
# What training scripts of timm and torchvision write holds the weights under one of these names.
_WITHIN = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrappers for several GPUs, and torch.compile, put before names.
_WRAPPERS = ("module.", "_orig_mod.")


def read_weights(place: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Args:
        place: a path or URI. A name that ends in .safetensors is read as such, others as what
            torch.save has written: the state of a network, or a checkpoint of timm's or
            torchvision's training scripts that has one in it.

    Raises:
        UserError: there is no such file, or it is damaged, or it holds more than tensors, or none.
    """
    data = bytes_of(place)
    if data is None:
        raise UserError("there is no such file: give the path or URI of one")
    return tensors_of(place, data)


def bytes_of(place: str) -> bytes | None:
    """The content of the file at a path or URI; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    if "://" in place:
        folder, _, name = place.rpartition("/")
    else:
        path = Path(place).expanduser().absolute()
        folder, name = str(path.parent), path.name
    return Folder(folder).read_bytes(name)


def tensors_of(name: str, data: bytes) -> dict[str, Tensor]:
    """What a file of this name and content holds.

    Raises:
        UserError: as `read_weights`.
    """
    remedy = "give what torch.save(network.state_dict(), FILE) or safetensors has written"
    if not data:
        raise UserError(f"the file is empty: {remedy}")
    held: Any
    try:
        if name.endswith(".safetensors"):
            from safetensors.torch import load

            held = load(data)
        else:
            # timm and torchvision write the options of a training script beside the weights.
            plain = torch.serialization.safe_globals([argparse.Namespace])
            with warnings.catch_warnings(), plain:
                # Of the file's age, and of tensors that are refused below.
                warnings.simplefilter("ignore", UserWarning)
                held = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise UserError("safetensors is not installed: pip install 'conr_ray[export]'") from None
    except pickle.UnpicklingError:
        # What torch says of it names a way to run its code.
        raise UserError(
            f"it is damaged, or holds more than tensors, such as code: {remedy}"
        ) from None
    # Both libraries raise errors of many kinds.
    except Exception as error:
        raise UserError(f"it cannot be read ({one_line(error)}): {remedy}") from None
    held = _within(held)
    if not isinstance(held, Mapping) or not held:
        raise UserError(f"it holds no tensors by name: {remedy}")
    for key, value in held.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{short(str(key))} in it is no tensor: {remedy}")
    return _unwrapped(held)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values, in hexadecimal: the same wherever they are."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {list(tensor.shape)} ".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _within(held: Any) -> Any:
    """The state of a network inside a checkpoint of a training script; others as they are."""
    if isinstance(held, Mapping):
        for name in _WITHIN:
            inner = held.get(name)
            if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
                return inner
    return held


def _unwrapped(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a wrapper has put before every name."""
    kept = {name: t for name, t in named.items() if name != "n_averaged"}
    for prefix in _WRAPPERS:
        if kept and all(name.startswith(prefix) for name in kept):
            kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    return kept
