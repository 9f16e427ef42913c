"""Files of weights from which a run cannot start: each is one line, and none runs code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet34

from conr_ray.engine.initial_weights import InitialWeights, check_initial_weights
from conr_ray.errors import UserError
from tests.engine.test_initial_weights import RGB, resnet_config


def _saved(tensors: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(tensors, file)


def _with(name: str, value: Any) -> Callable[[Path], None]:
    return _saved({**resnet18(weights=None).state_dict(), name: value})


class _Code:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("w.pt", lambda f: None, "there is no such file: give one, or the folder of a run"),
    "empty": ("w.pt", lambda f: f.write_bytes(b""), "the file is empty: give what torch.save"),
    "empty safetensors": ("w.safetensors", lambda f: f.write_bytes(b""), "the file is empty"),
    "text": ("w.pth", lambda f: f.write_bytes(b"weights"), "it is damaged, or holds more than"),
    "code": ("w.pt", lambda f: f.write_bytes(pickle.dumps(_Code())), "it is damaged, or holds mo"),
    "code in torch's file": (
        "w.pt",
        _saved({"a": _Code()}),
        "it is damaged, or holds more than te",
    ),
    "network": ("w.pt", _saved(torch.nn.Linear(2, 2)), "it is damaged, or holds more than tensors"),
    "list": ("w.pt", _saved([torch.ones(2)]), "it holds no tensors by name: give what torch.save"),
    "checkpoint": (
        "w.pt",
        _saved({"epoch": 3, "model": {}}),
        "epoch in it is no tensor: give what",
    ),
    "NaN": (
        "w.pt",
        _with("bn1.weight", torch.full((64,), float("nan"))),
        "bn1.weight holds NaN or",
    ),
    "integers": (
        "w.pt",
        _with("bn1.weight", torch.ones(64, dtype=torch.int64)),
        "bn1.weight holds n",
    ),
    "sparse": (
        "w.pt",
        _with("bn1.bias", torch.ones(64).to_sparse()),
        "bn1.bias holds no floats but",
    ),
    "other shape": (
        "w.pt",
        _with("bn1.bias", torch.ones(65)),
        "bn1.bias is 65, not 64: give weights",
    ),
    "unexpected": (
        "w.pt",
        _with("bn9.bias", torch.ones(1)),
        "bn9.bias is unexpected: give weights",
    ),
    "another depth": (
        "w.pt",
        _saved(resnet34(weights=None).state_dict()),
        "is unexpected and 75 more: set model.backbone=resnet34",
    ),
    "no run": (
        "run",
        lambda f: f.mkdir(),
        "is not a run: give a run that this version reads, or a",
    ),
    "another suffix": ("w.bin", lambda f: f.write_bytes(b"x"), "w.bin"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_or_does_not_fit_is_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write, message = BAD[case]
    write(tmp_path / name)
    config = resnet_config(model__init=str(tmp_path / name))
    with pytest.raises(UserError) as caught:
        check_initial_weights(config, RGB)
    told = str(caught.value)
    assert told.startswith("model.init=/") and message in told and "\n" not in told
    assert "weights_only" not in told and capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_cut_anywhere_is_one_line(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole{suffix}"
    tensors = {"0.weight": torch.ones(4, 4), "1.bias": torch.ones(7)}
    save_file(tensors, whole) if suffix == ".safetensors" else torch.save(tensors, whole)
    data = whole.read_bytes()
    assert set(InitialWeights.read(str(whole)).tensors) == {"backbone.0.weight", "backbone.1.bias"}
    for length in range(0, len(data) - 1, max(1, len(data) // 60)):
        (tmp_path / f"cut{suffix}").write_bytes(data[:length])
        with pytest.raises(
            UserError, match=r"^model\.init=.*: (it cannot be read|it is damaged|the file is empty)"
        ):
            InitialWeights.read(str(tmp_path / f"cut{suffix}"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__stem": "cifar"},
            "conv1.weight is 64x3x7x7, not 64x3x3x3: set model.stem=imagenet",
        ),
        ({"model__backbone": "resnet34"}, "is missing and 75 more: set model.backbone=resnet18"),
        (
            {"model__backbone": "convnet", "model__stem": "cifar"},
            "set model.backbone=resnet18 and model.stem=imagenet",
        ),
    ],
)
def test_the_remedy_names_the_fields_that_fit(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError) as caught:
        check_initial_weights(resnet_config(model__init=f"{tmp_path}/w.pt", **changes), RGB)
    assert str(caught.value).endswith(message)
    # Grey images have another first layer: no field helps.
    with pytest.raises(UserError, match="the samples are 1x32x32"):
        check_initial_weights(resnet_config(model__init=f"{tmp_path}/w.pt"), (1, 32, 32))
