from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from conr_ray.method.batch_norm import synchronize_batch_norm
from conr_ray.method.collectives import rank
from tests.gloo_workers import run_workers

CPU = torch.device("cpu")
# Rows of each worker, on purpose not those of `share`.
SPLITS = {2: [[1, 6], [4, 3]], 3: [[1, 2, 4], [5, 1, 1]]}


def _module(dims: int, dtype: torch.dtype) -> nn.Module:
    norm = nn.BatchNorm1d(4, momentum=0.3) if dims == 2 else nn.BatchNorm2d(4, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Sequential(norm), nn.Tanh()).to(dtype)


def _batches(dims: int, dtype: torch.dtype) -> list[Tensor]:
    shape = (7, 4) if dims == 2 else (7, 4, 3, 5)
    # Two steps; means far from 0 cost a naive variance all its digits.
    return [(torch.randn(shape) * 2 + 30).to(dtype) for _ in range(2)]


def _train(module: nn.Module, batches: list[Tensor], rows: slice) -> dict[str, Tensor]:
    """Two training steps and an evaluation, each a sum of weighted outputs; what came of it."""
    found: dict[str, Tensor] = {}
    for step, batch in enumerate(batches):
        inputs = batch[rows].clone().requires_grad_()
        outputs = module(inputs)
        weights = torch.linspace(-1, 2, batch.numel(), dtype=batch.dtype).view_as(batch)
        (outputs * weights[rows]).sum().backward()
        assert inputs.grad is not None
        found[f"output {step}"], found[f"input gradient {step}"] = outputs.detach(), inputs.grad
    gradients = {f"sum of {name}": p.grad for name, p in module.named_parameters()}
    found |= {name: gradient for name, gradient in gradients.items() if gradient is not None}
    found |= {name: value.clone() for name, value in module.named_buffers()}
    module.eval()
    found["output in evaluation"] = module(batches[0][rows]).detach()
    found |= {f"after {name}": value for name, value in module.named_buffers()}
    return found


def _train_share(
    modules: list[nn.Module], batches: list[list[Tensor]], sizes: list[int]
) -> list[dict[str, Tensor]]:
    start = sum(sizes[: rank()])
    rows = slice(start, start + sizes[rank()])
    return [
        _train(synchronize_batch_norm(module, CPU), inputs, rows)
        for module, inputs in zip(modules, batches, strict=True)
    ]


@pytest.mark.parametrize(
    ("num_workers", "sizes"), [(n, sizes) for n, splits in SPLITS.items() for sizes in splits]
)
def test_workers_normalise_like_torch_on_the_joined_batch(
    num_workers: int, sizes: list[int]
) -> None:
    kinds = [(dims, dtype) for dims in (2, 4) for dtype in (torch.float64, torch.float32)]
    modules = [_module(*kind) for kind in kinds]
    batches = [_batches(*kind) for kind in kinds]
    by_worker = run_workers(_train_share, num_workers, modules, batches, sizes)
    for number, (module, inputs) in enumerate(zip(modules, batches, strict=True)):
        expected = _train(module, inputs, slice(None))
        tolerance = {"rtol": 1e-9, "atol": 1e-9}
        if inputs[0].dtype == torch.float32:
            tolerance = {"rtol": 1e-4, "atol": 1e-4}
        parts = [found[number] for found in by_worker]
        assert len(expected) == 2 * 2 + 2 + 3 + 1 + 3
        for name, value in expected.items():
            shares = [part[name] for part in parts]
            if "put" in name:
                torch.testing.assert_close(torch.cat(shares), value, **tolerance)
            elif name.startswith("sum of"):
                torch.testing.assert_close(torch.stack(shares).sum(0), value, **tolerance)
            else:
                for share in shares:
                    torch.testing.assert_close(share, value, **tolerance)
                    assert torch.equal(share, shares[0])


def _normalise_mixed(module: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    norm = synchronize_batch_norm(module, CPU)
    local = inputs[[slice(0, 2), slice(2, 7)][rank()]].requires_grad_()
    outputs = norm(local)
    outputs.float().square().sum().backward()
    assert local.grad is not None
    return outputs.detach(), local.grad, norm.get_parameter("weight").detach()


def test_bfloat16_rows_are_normalised_with_float32_statistics() -> None:
    norm, inputs = nn.BatchNorm1d(4), (torch.randn(7, 4) + 3).bfloat16()
    found = run_workers(_normalise_mixed, 2, norm, inputs)
    whole = inputs.clone().requires_grad_()
    expected = norm(whole)
    assert expected.dtype == torch.bfloat16
    for number, (outputs, gradient, weight) in enumerate(found):
        assert (outputs.dtype, gradient.dtype) == (torch.bfloat16, torch.bfloat16)
        assert weight.dtype == torch.float32
        rows = [slice(0, 2), slice(2, 7)][number]
        torch.testing.assert_close(outputs, expected[rows].detach(), rtol=1e-2, atol=1e-2)


def _parameters_kept() -> tuple[bool, str, str]:
    inner = nn.BatchNorm1d(3)
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(inner, nn.ReLU()))
    before = dict(module.named_parameters()) | dict(module.named_buffers())
    same = synchronize_batch_norm(module, CPU)
    after = dict(same.named_parameters()) | dict(same.named_buffers())
    kept = same is module and before.keys() == after.keys()
    kept = kept and all(before[name] is after[name] for name in before)
    alone = synchronize_batch_norm(nn.BatchNorm1d(3), CPU)
    try:
        alone(torch.ones(3))
    except ValueError as error:
        return kept, type(module[1][0]).__name__, str(error)
    return kept, type(module[1][0]).__name__, "accepted"


def test_conversion_keeps_parameters_buffers_and_names() -> None:
    for kept, kind, refusal in run_workers(_parameters_kept, 2):
        assert kept
        assert kind == "_GlobalBatchNorm"
        assert "2 dimensions or more, got 1" in refusal


def test_one_process_keeps_the_batch_normalisation_of_torch() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    assert synchronize_batch_norm(module, CPU) is module
    assert type(module[0]) is nn.BatchNorm1d
