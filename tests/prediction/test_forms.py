"""New images in archives, lists and arrays, by every command that takes images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import conr_ray.report
from conr_ray.curation.pictures import pictures_at
from conr_ray.errors import RunFailed
from conr_ray.prediction.by_row import ByRow
from conr_ray.prediction.samples import SampleForm
from conr_ray.prediction.sources import new_samples
from conr_ray.prediction.table import Labels
from tests.data.faulty_servers import web_server
from tests.prediction.conftest import about, digits, encoded, predict, rows_of

COUNT = 30


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, str]:
    """The same digits in each form."""
    folder = tmp_path / "forms" / "images"
    folder.mkdir(parents=True)
    pixels = digits()[:COUNT]
    names = [f"{number:03d}.png" for number in range(COUNT)]
    with zipfile.ZipFile(folder.parent / "x.zip", "w") as archive:
        for name, image in zip(names, pixels, strict=True):
            (folder / name).write_bytes(encoded(image))
            archive.writestr(f"{'ab'[int(name[2]) % 2]}/{name}", encoded(image))
    table = pa.table({"file": [f"images/{name}" for name in names], "label": ["x", "y"] * 15})
    pq.write_table(table, folder.parent / "x.parquet")
    np.save(folder.parent / "x.npy", pixels)
    others = {name: str(folder.parent / f"x.{name}") for name in ("zip", "parquet", "npy")}
    return {"folder": str(folder), **others}


@pytest.mark.parametrize("form", ["zip", "parquet", "npy"])
def test_clusters_are_those_of_the_folder_and_the_page_shows_them(
    form: str, forms: dict[str, str], folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    predict(folder_run[0], forms["folder"], tmp_path / "folder")
    predict(folder_run[0], forms[form], tmp_path / "out")
    here, there = rows_of(tmp_path / "folder"), rows_of(tmp_path / "out")
    if form == "npy":
        assert [row["row"] for row in there] == list(range(COUNT))
    elif form == "parquet":
        assert [row["path"] for row in there] == [f"images/{row['path']}" for row in here]
    else:
        # Sorted by path, those of the folder a come first.
        there.sort(key=lambda row: row["path"].rpartition("/")[2])
    assert [row["cluster"] for row in there] == [row["cluster"] for row in here]
    told = about(tmp_path / "out")["what"]
    assert told == {"zip": "archive", "parquet": "list", "npy": "numpy"}[form]
    conr_ray.report.main([str(tmp_path / "out")])
    assert (tmp_path / "out/report.html").read_text().count("<img ") >= COUNT
    # A second time nothing is left to do.
    files = sorted((tmp_path / "out/predictions").iterdir())
    predict(folder_run[0], forms[form], tmp_path / "out")
    assert sorted((tmp_path / "out/predictions").iterdir()) == files


def test_what_cannot_be_read_is_listed(
    forms: dict[str, str], folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    Path(forms["folder"], "003.png").write_bytes(b"no image")
    Path(forms["folder"], "004.png").unlink()
    with pytest.raises(RunFailed, match=r"2 of 30 images could not be read"):
        predict(folder_run[0], forms["parquet"], tmp_path / "out")
    errors = pq.read_table(tmp_path / "out/errors.parquet").to_pylist()
    assert {row["path"] for row in errors} == {"images/003.png", "images/004.png"}


def test_a_folder_of_a_web_server_has_the_clusters_of_the_folder(
    forms: dict[str, str], folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    predict(folder_run[0], forms["folder"], tmp_path / "here")
    with web_server(Path(forms["folder"])) as url:
        predict(folder_run[0], url, tmp_path / "there")
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "there")
    for name in ("path", "cluster", "distance"):
        assert [row[name] for row in there] == [row[name] for row in here]


@pytest.mark.parametrize("form", ["zip", "parquet", "npy"])
def test_labels_and_pictures_are_found_by_the_keys_of_a_table(
    form: str, forms: dict[str, str]
) -> None:
    samples = new_samples(SampleForm((3, 8, 8), 8), forms[form], "image")
    assert isinstance(samples, ByRow)
    config = samples.config.model_copy(update={"label_column": "label"})
    keys = pa.concat_tables(samples.pieces()).select(samples.keys)[::-1]
    labels = Labels(forms[form], "image", "label", by_row=config).of(keys)
    expected: dict[str, Any] = {
        "zip": ["b"] * 15 + ["a"] * 15,
        "parquet": ["y", "x"] * 15,
        "npy": None,
    }
    assert expected[form] == (None if labels is None else labels.to_pylist())
    pictures = pictures_at(forms[form], "image", keys)
    opened = [one() for _, some in pictures.opened() for one in some]
    backwards = list(range(COUNT))[::-1]
    # Of the archive, the odd ones are in the folder b.
    order = sorted(backwards, key=lambda row: row % 2 == 0) if form == "zip" else backwards
    for picture, row in zip(opened, order, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), digits()[row])
