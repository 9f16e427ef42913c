"""A second device for tests without one: its tensors say they are there and compute on the CPU.

    with second_device() as device:
        rows = torch.rand(4, 3).to(device)
        with device_waits() as found:
            rows.sum().item()
    assert found.total() == 1

As with a GPU, operations on tensors of both devices raise (0-dim tensors of the CPU may take part,
and tensors of the CPU may index), `numpy()` raises, and the host waits where it reads a value, or
a shape that depends on values, and where memory that is not pinned is copied. Random numbers are
those of the CPU. Not covered: sparse tensors, streams, collectives, and threads of autograd.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CPU = torch.device("cpu")
_NAME = "second"
# Their results, or the shapes of them, depend on values.
_READING = {
    *(
        "_local_scalar_dense",
        "equal",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "bincount",
        "histc",
    ),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "isin"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPYING = {"_to_copy", "copy_", "_foreach_copy_"}
# Their results are the same tensors with other shapes, which a wrapper could not follow.
_RESHAPING = {"resize_", "set_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_"}

# Waits so far, by operation and the place in the package that asked for it.
_found: Counter[str] = Counter()


class _SecondTensor(Tensor):
    """A tensor on the second device; `on_host` holds its values."""

    on_host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_host: Tensor) -> _SecondTensor:
        assert type(on_host) is Tensor and on_host.layout == torch.strided
        made = Tensor._make_wrapper_subclass(
            cls,
            on_host.size(),
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
            device=torch.device(_NAME, 0),
        )
        made.on_host = on_host
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        _wait("tolist")
        return self.on_host.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of the second device has no array: copy it to the CPU first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        _wait("pickle")
        return self.on_host.__reduce_ex__(protocol)

    def __repr__(self, **kwargs: Any) -> str:
        return f"second device: {self.on_host!r}"


class _Factories(TorchDispatchMode):
    """Sends operations that make tensors on the second device there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    own = [x for x in tensors if isinstance(x, _SecondTensor)]
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    to_second = target is not None and target.type == _NAME
    if not own and not to_second:
        return func(*args, **kwargs)
    _count(name, args, kwargs, crossing=bool(own) != (to_second or target is None))
    _check(name, args, tensors)
    on_host = tree_map(lambda x: x.on_host if isinstance(x, _SecondTensor) else x, (args, kwargs))
    result = func(*on_host[0], **{**on_host[1], **({"device": CPU} if to_second else {})})
    if target is not None and not to_second:
        return result
    writes = func._schema.is_mutable
    if writes:
        # The operation returns what it has written, if anything: the caller's own tensors.
        outs = {id(x.on_host): x for x in own}
        return tree_map(lambda x: outs.get(id(x), x), result)
    return tree_map(lambda x: _SecondTensor(x) if isinstance(x, Tensor) else x, result)


def _check(name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Refuse what a GPU refuses."""
    if name in _RESHAPING:
        raise NotImplementedError(f"{name} on the second device")
    foreign = [x for x in tensors if not isinstance(x, _SecondTensor) and x.dim() > 0]
    if foreign and name not in _COPYING:
        if name in _INDEXING and isinstance(args[0], _SecondTensor):
            indices = {id(x) for x in args[1] if x is not None}
            foreign = [x for x in foreign if id(x) not in indices]
        if foreign:
            shapes = [tuple(x.shape) for x in foreign]
            raise RuntimeError(f"{name}: tensors of two devices, {shapes} of the CPU: {_place()}")


def _count(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, crossing: bool) -> None:
    """Record what waits for the device."""
    unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
    if name == "copy_":
        crossing = isinstance(args[0], _SecondTensor) != isinstance(args[1], _SecondTensor)
    if name in _READING or unsized:
        _wait(name)
    elif name in ("_to_copy", "copy_") and crossing:
        _wait("copy")
    elif name in _INDEXING:
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            _wait("index by a mask")
        if any(not isinstance(x, _SecondTensor) for x in indices):
            _wait("index from the CPU")
        if len(args) > 2 and not isinstance(args[2], _SecondTensor):
            _wait("value from the CPU")


def _wait(name: str) -> None:
    _found[f"{name} at {_place()}"] += 1


def _place() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/conr_ray/" in file:
            return f"{file.rpartition('/conr_ray/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


@contextmanager
def device_waits() -> Iterator[Counter[str]]:
    """Counts what waits for the second device, by operation and place, while it is open."""
    before, found = Counter(_found), Counter[str]()
    yield found
    found.update(_found - before)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The second device, which is there while this is open."""
    _register()
    load = torch.load

    def load_there(*args: Any, **kwargs: Any) -> Any:
        location = kwargs.get("map_location")
        if location is None or torch.device(location).type != _NAME:
            return load(*args, **kwargs)
        state = load(*args, **{**kwargs, "map_location": "cpu"})
        return tree_map(lambda x: x.to(_NAME) if isinstance(x, Tensor) else x, state)

    with (
        pytest.MonkeyPatch.context() as patch,
        torch.autograd.set_multithreading_enabled(False),
        _Factories(),
    ):
        patch.setattr(torch, "load", load_there)
        # So that `torch.tensor(..., device=...)` copies in the sight of `_Factories`.
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield torch.device(_NAME, 0)
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def _register() -> None:
    """Make torch know the device, once in a process."""
    if not hasattr(torch, _NAME):
        _setup_privateuseone_for_python_backend(_NAME, _Backend())


class _Backend:
    """What torch asks the module of a device."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are those of the CPU."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]
