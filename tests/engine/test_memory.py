"""What a run without memory says; on the host by asking for more than any machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import OutOfMemory
from conr_ray.method.frameworks import framework_class
from tests.tiny_runs import run_here, tiny_config

# More rows of 64 bytes than an address has bits for.
ABSURD = 20_000_000_000_000


def test_a_bank_beyond_the_hosts_memory_is_told_in_one_line(tmp_path: Path) -> None:
    config = tiny_config(bank__size=ABSURD)
    with pytest.raises(OutOfMemory) as info:
        run_here(config, tmp_path)
    told = str(info.value)
    gib = ABSURD * 16 * 4 / 2**30
    assert told.startswith("out of memory on the host: ")
    assert "GiB asked for, while the run is made: " in told
    assert told.endswith(
        f": lower bank.size={ABSURD} (about {gib:,.1f} GiB), or lower model.head_hidden_dim=32 or "
        "model.embedding_dim=16, or choose a smaller model.backbone"
    )
    assert "\n" not in told
    with pytest.raises(OutOfMemory, match="out of memory on the host"):
        RunDirectory(tmp_path).raise_failure()


def test_a_queue_beyond_the_hosts_memory_is_named(tmp_path: Path) -> None:
    config = tiny_config(model__framework="moco", moco__queue_size=ABSURD)
    with pytest.raises(OutOfMemory, match=rf"made: lower moco\.queue_size={ABSURD} \(about "):
        run_here(config, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_device_without_memory_is_told_with_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    kind = framework_class("byol")
    usual = kind.after_step

    def after_step(self: Any, outputs: Any, step: Any) -> Any:
        if step.epoch == 3:
            raise error
        return usual(self, outputs, step)

    monkeypatch.setattr(kind, "after_step", after_step)
    with pytest.raises(OutOfMemory) as info:
        run_here(tiny_config(), tmp_path)
    assert str(info.value) == (
        "out of memory on cpu: after 3 epochs, group stage: "
        "lower optim.batch_size=64 or views.size=8"
    )
    assert info.value.__cause__ is error
    assert RunDirectory(tmp_path).has_failed()
    assert RunDirectory(tmp_path).checkpoint_epochs()[-1] == 3
