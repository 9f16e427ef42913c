from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conr_ray.config import load_preset, preset_names
from conr_ray.data.pictures import as_picture
from conr_ray.data.prepared import prepared_data
from conr_ray.data.store import default_cache_dir, open_data
from conr_ray.errors import UserError
from conr_ray.searching.known_data import KnownData, known_data
from conr_ray.searching.space import SearchSpace

PUBLISHED = {
    "cifar10": (60_000, 10),
    "cifar100": (60_000, 100),
    "cifar10_fast": (60_000, 10),
    "cifar10_released": (60_000, 10),
    "cifar20": (60_000, 20),
    "digits": (1_797, 10),
    "fashion_mnist": (70_000, 10),
    "imagenet10": (13_000, 10),
    "imagenet_dogs": (19_500, 15),
    "stl10": (13_000, 10),
}


@pytest.fixture(autouse=True)
def _nothing_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def known(preset: str, **fixed: Any) -> KnownData:
    data = {f"data.{name}": value for name, value in fixed.items()}
    fields = {"neighborhood.k": {"int": [5, 10]}}
    tree = {"preset": preset, "fixed": data, "search": fields}
    return known_data(SearchSpace.model_validate(tree))


def test_every_preset_has_published_numbers() -> None:
    # Of one's own pictures nothing is published.
    assert set(PUBLISHED) == set(preset_names()) - {"photos"}
    for preset, counts in PUBLISHED.items():
        found = known(preset)
        assert (found.num_rows, found.num_classes) == counts, preset
        assert found.fingerprint is None
        assert found.source.startswith("as published")


@pytest.mark.parametrize(
    ("preset", "fixed", "counts"),
    [
        ("cifar10", {"splits": ["test"]}, (10_000, 10)),
        ("cifar10", {"label_column": None}, (60_000, None)),
        ("cifar10", {"name": "mnist"}, (70_000, 10)),
        ("stl10", {"splits": None}, (113_000, 10)),
        ("stl10", {"splits": ["unlabeled"]}, (100_000, None)),
        ("digits", {"limit": 300}, (300, 10)),
        # As published for CIFAR-10-LT, of the training images.
        ("cifar10", {"splits": ["train"], "imbalance": 100}, (12_406, 10)),
        ("cifar10", {"splits": ["train"], "imbalance": 10}, (20_431, 10)),
    ],
)
def test_settings_of_the_data_count(
    preset: str, fixed: dict[str, Any], counts: tuple[int, int | None]
) -> None:
    found = known(preset, **fixed)
    assert (found.num_rows, found.num_classes) == counts


@pytest.mark.parametrize("limit", [None, 500])
def test_prepared_images_tell_it_themselves(limit: int | None) -> None:
    config = load_preset("digits", {"data.limit": limit}).data
    assert prepared_data(config) is None
    images = open_data(config)
    assert (images.num_rows, images.row_shape[0]) == (limit or 1_797, 1)
    expected = (images.num_rows, (1, 8, 8), 10, images.fingerprint, "as prepared by an earlier run")
    assert known("digits", limit=limit) == KnownData(*expected)
    # Of another size other pixels are made.
    assert known("digits", limit=limit, stored_size=16).fingerprint is None


def test_copies_of_other_versions_are_passed_over() -> None:
    config = load_preset("digits").data
    images = open_data(config)
    [path] = default_cache_dir().glob("*/meta.json")
    for number, changed in enumerate(('{"version": 9}', path.read_text().replace("num_", "n_"))):
        folder = path.parents[1] / f"other{number}"
        folder.mkdir()
        (folder / "meta.json").write_text(changed)
    found = prepared_data(config)
    assert found is not None and found.fingerprint == images.fingerprint


def test_a_file_of_ones_own_is_counted_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    png = as_picture(np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8))
    pq.write_table(pa.table({"image": [png] * 7 + [b"no image"], "label": [0, 1] * 4}), path)
    settings = {"source": "parquet", "name": None, "path": str(path)}
    expected = KnownData(8, (3, 8, 8), 2, None, f"as in {path}")
    assert known("cifar10", **settings) == expected
    assert known("cifar10", **settings, label_column=None).num_classes is None
    assert known("cifar10", **settings, imbalance=4).num_rows == 5


@pytest.mark.parametrize(
    ("preset", "fixed", "message"),
    [
        ("cifar10", {"label_column": None, "imbalance": 9}, "data.imbalance=9: the images have no"),
        ("digits", {"limit": 1_798}, "data.limit=1798: there are 1797 images"),
        ("cifar10", {"name": "cifar11"}, "data.name=cifar11: no such data set"),
        ("cifar10", {"splits": ["val"]}, "data.splits=val: there is no split val"),
        ("imagenet10", {"classes": ["n02056570"]}, "data.path=data/imagenet/train: no such folder"),
    ],
)
def test_what_cannot_be_is_refused(preset: str, fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        known(preset, **fixed)
