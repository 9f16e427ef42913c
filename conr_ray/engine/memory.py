"""What to lower when a run has no memory left, on its device or on the host."""

from __future__ import annotations

import re

import torch

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.errors import OutOfMemory
from conr_ray.method.collectives import share, world_size

# What torch says where it has no class for it: about the host, sizes beyond 64 bits, libraries.
_WORDS = ("can't allocate memory", "not enough memory", "size calculation overflowed")
_WORDS_OF_LIBRARIES = ("out of memory", "ALLOC_FAILED")
_GIB = 2**30
# The moment of an error before the first step.
NOT_MADE = "while the run is made"
# Rows of a batch that an estimate is given for.
_ROWS = 64
# What takes less is not worth lowering.
_LEAST_GIB = 0.05


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = (*_WORDS, *_WORDS_OF_LIBRARIES)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def out_of_memory(
    error: BaseException, config: RunConfig, data: DataSet, device: torch.device, moment: str
) -> OutOfMemory:
    """The error for users, with the settings to lower and what each of them takes.

    Args:
        error: of the allocation.
        config: of the run.
        data: training data.
        device: of this worker.
        moment: how far the run is, in words.
    """
    on_host = isinstance(error, MemoryError) or any(word in str(error) for word in _WORDS)
    place, used_gib = "the host", None
    if not on_host:
        place = str(device)
        if device.type == "cuda":
            place = f"cuda:{torch.cuda.current_device()}"
            used_gib = torch.cuda.max_memory_allocated(device) / _GIB
    held = _held_gib(config, data, on_host=on_host or device.type == "cpu")
    batch = f"lower optim.batch_size={config.optim.batch_size}"
    if not config.trains_on_vectors:
        side = config.views.size
        batch += " or views.size" + ("" if side is None else f"={side}")
    if moment == NOT_MADE:
        model = config.model
        batch = f"lower model.head_hidden_dim={model.head_hidden_dim} or model.embedding_dim="
        batch += f"{model.embedding_dim}, or choose a smaller model.backbone"
    figures = _asked(error)
    if used_gib is not None:
        figures = f"{used_gib:,.1f} GiB in use, "
        local = share(config.optim.batch_size)
        row_gib = max(0.0, used_gib - sum(held.values())) / (local.stop - local.start)
        batch += f" (about {row_gib * _ROWS:.1f} GiB per {_ROWS} rows)"
    sizes = [f"{what} (about {gib:,.1f} GiB)" for what, gib in held.items() if gib >= _LEAST_GIB]
    remedies = ", or ".join([*sizes, batch])
    return OutOfMemory(f"out of memory on {place}: {figures}{moment}: {remedies}")


def _asked(error: BaseException) -> str:
    """How much was asked for, if the error says so."""
    found = re.search(r"(\d+) bytes", str(error))
    return f"{int(found[1]) / _GIB:,.1f} GiB asked for, " if found else ""


def _held_gib(config: RunConfig, data: DataSet, *, on_host: bool) -> dict[str, float]:
    """Memory of what a worker holds all the time, by what frees it, the largest first."""
    width, bank = config.model.embedding_dim, config.bank
    bank_bytes = bank.size * width * (2 if bank.dtype == "bf16" else 4)
    queue_size = getattr(config.framework, "queue_size", 0)
    held = {
        f"lower bank.size={bank.size}": bank_bytes / (world_size() if bank.sharded else 1),
        f"lower {config.model.framework}.queue_size={queue_size}": 4 * queue_size * width,
    }
    if config.data.placement == "device" and not on_host and not data.is_streamed:
        held["set data.placement=host"] = data.rows.nbytes
    return {what: held[what] / _GIB for what in sorted(held, key=lambda what: -held[what])}
