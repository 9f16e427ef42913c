from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from conr_ray.method.batch_norm import (
    average_running_statistics,
    divide_batch_norm,
    synchronize_batch_norm,
)
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


# Groups of rows


class _ByLoop(nn.Module):
    """A batch normalisation of torch for each group, with the same parameters."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, rows: int) -> None:
        super().__init__()
        self.norm, self.rows = norm, rows

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return self.norm(inputs)
        outputs, statistics = [], []
        for start in range(0, len(inputs), self.rows):
            alone = copy.deepcopy(self.norm)
            alone.weight, alone.bias = self.norm.weight, self.norm.bias
            outputs.append(alone(inputs[start : start + self.rows]))
            statistics.append([alone.running_mean, alone.running_var])
        means, variances = zip(*statistics, strict=True)
        self.norm.running_mean = torch.stack(means).mean(0)
        self.norm.running_var = torch.stack(variances).mean(0)
        self.norm.num_batches_tracked += 1
        return torch.cat(outputs)


def _of_groups(dims: int, dtype: torch.dtype, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return _module(dims, dtype)


def _twelve(dims: int, dtype: torch.dtype) -> list[Tensor]:
    shape = (12, 4) if dims == 2 else (12, 4, 3, 5)
    return [(torch.randn(shape) * 2 + 30).to(dtype) for _ in range(2)]


def _train_in_groups(
    module: nn.Module, batches: list[Tensor], rows: int, workers: int
) -> dict[str, Tensor]:
    share = 12 // workers
    local = slice(rank() * share, (rank() + 1) * share)
    divided = divide_batch_norm(module, rows)
    found = _train(divided, batches, local)
    average_running_statistics(divided)
    return found | {f"at last {name}": value for name, value in divided.named_buffers()}


@pytest.mark.parametrize("rows", [2, 3, 12])
@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_groups_are_normalised_like_a_loop_over_them(
    rows: int, dims: int, dtype: torch.dtype
) -> None:
    batches = _twelve(dims, dtype)
    module, peer = (_of_groups(dims, dtype, 3) for _ in range(2))
    peer[0][0] = _ByLoop(peer[0][0], rows)  # type: ignore
    found = _train(divide_batch_norm(module, rows), batches, slice(None))
    expected = {
        name.replace("norm.", ""): v for name, v in _train(peer, batches, slice(None)).items()
    }
    assert found.keys() == expected.keys() and len(found) == 2 * 2 + 2 + 3 + 1 + 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    whole = _train(_of_groups(dims, dtype, 3), batches, slice(None))
    same = torch.allclose(found["output 0"], whole["output 0"], atol=1e-4)
    assert same == (rows == 12)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_groups_are_the_same_on_any_number_of_workers(workers: int) -> None:
    module, batches = _of_groups(4, torch.float64, 3), _twelve(4, torch.float64)
    expected = _train_in_groups(copy.deepcopy(module), batches, 3, 1)
    shares = run_workers(_train_in_groups, workers, module, batches, 3, workers)
    joined = [name for name in expected if name.startswith(("output 0", "output 1", "input"))]
    assert len(joined) == 4
    for name in joined:
        torch.testing.assert_close(torch.cat([part[name] for part in shares]), expected[name])
    for name in (name for name in expected if name.startswith("sum of")):
        torch.testing.assert_close(sum(part[name] for part in shares), expected[name])
    for name in (name for name in expected if name.startswith("at last")):
        torch.testing.assert_close(shares[0][name], expected[name])
        assert all(torch.equal(part[name], shares[0][name]) for part in shares)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_groups_of_bfloat16_rows_are_those_of_torch(layout: torch.memory_format) -> None:
    norm = nn.BatchNorm2d(8)
    ghost = divide_batch_norm(copy.deepcopy(norm), 3)
    inputs = (torch.randn(6, 8, 4, 4) + 3).contiguous(memory_format=layout)
    convolution = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        features = convolution(inputs)
        assert features.dtype == torch.bfloat16
        outputs = ghost(features)
        parts = [copy.deepcopy(norm)(part) for part in features.split(3)]
    assert torch.equal(outputs, torch.cat(parts)) and outputs.dtype == torch.bfloat16
    assert outputs.is_contiguous(memory_format=layout)
    assert ghost.get_buffer("running_mean").dtype == torch.float32


def test_groups_keep_the_names_of_a_checkpoint() -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3, affine=False)))
    divided = divide_batch_norm(copy.deepcopy(plain), 2)
    divided(torch.randn(4, 2))
    plain.load_state_dict(divided.state_dict())
    inputs = torch.randn(4, 2)
    assert torch.equal(plain.eval()(inputs), divided.eval()(inputs))
    assert int(plain.get_buffer("1.0.num_batches_tracked")) == 1
    divided.load_state_dict(plain.state_dict())
