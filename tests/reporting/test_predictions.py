"""The page of a folder of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import conr_ray.report
from conr_ray.errors import UserError
from conr_ray.reporting.predictions_data import read_predictions
from conr_ray.storage.files import Folder
from tests.reporting.pages import Page

CLUSTERS = 4


def made_photos(folder: Path, count: int) -> list[str]:
    """Names of photographs, one of them no image."""
    rng = np.random.default_rng(0)
    names = [f"{'a b' if i % 2 else 'ü'}/{i:03d}#{'=' if i == 3 else ''}.jpg" for i in range(count)]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((150, 200, 3), rng.integers(0, 255, 3), np.uint8)
        pixels[40:90, 20 * (number % CLUSTERS) :] = 255 - pixels[0, 0]
        Image.fromarray(pixels).save(path)
    return names


def made_predictions(
    out: Path,
    columns: dict[str, Any],
    images: object,
    what: str = "folder",
    parts: int = 3,
    **told: Any,
) -> Path:
    """A folder as `conr_ray.predict` leaves it."""
    table = pa.table(columns)
    (out / "predictions").mkdir(parents=True)
    for part, rows in enumerate(np.array_split(np.arange(table.num_rows), parts)):
        place = out / f"predictions/part-{part:06d}.parquet"
        pq.write_table(table.take(pa.array(rows)), place)
    state = {
        "format": 1,
        "run": "s3://user:kept-secret@bucket/runs/mine",
        "epochs": 60,
        "state": "ab12",
        "num_clusters": CLUSTERS,
        "confident_ratio": 0.7,
        "what": what,
        "images": str(images),
        "embeddings": False,
        "complete": True,
        **told,
    }
    (out / "prediction.json").write_text(json.dumps(state))
    return out


def rows_of(names: list[str], before: list[int | None] | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    ratios = rng.uniform(0.1, 1.1, len(names)).astype(np.float32)
    return {
        "path": names,
        "cluster": pa.array([i % CLUSTERS for i in range(len(names))], pa.int64()),
        "boundary_ratio": ratios,
        "confident": ratios <= 0.7,
        "previous_cluster": pa.array(before or [None] * len(names), pa.int64()),
    }


def report(out: Path) -> Page:
    conr_ray.report.main([str(out)])
    return Page((out / "report.html").read_text())


def test_the_page_shows_examples_with_names_sizes_and_what_could_not_be_read(
    tmp_path: Path,
) -> None:
    names = made_photos(tmp_path / "my photos", 60)
    rows = rows_of(names)
    out = made_predictions(tmp_path / "out", rows, tmp_path / "my photos")
    broken = {"path": ["<b>.jpg", "c.jpg"], "reason": ["it is cut off", "no image\nat all"]}
    pq.write_table(pa.table(broken), out / "errors.parquet")
    page = report(out)
    assert page.sections == ["clusters", "unreadable", "prediction"]
    assert "my photos: clusters" in page.text and "by the run mine after 60 epochs" in page.text
    share = np.mean(rows["confident"])
    assert f"{share:.1%}" in page.text and "images 60" in page.text and "unreadable 2" in page.text
    assert "<b>.jpg it is cut off" in page.text and "no image\\nat all" in page.text
    assert "kept-secret" not in (out / "report.html").read_text()
    images = page.all("img")
    assert len(images) == 10 * CLUSTERS
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in images)
    order = np.argsort(rows["boundary_ratio"])
    surest = next(names[i] for i in order if i % CLUSTERS == 2)
    unsure = next(names[i] for i in order[::-1] if i % CLUSTERS == 2)
    alts = [one["alt"] for one in images]
    assert f"surest image 1 of cluster 2: {surest}" in alts
    assert f"least sure image 1 of cluster 2: {unsure}" in alts
    links = [one["href"] for one in page.all("a") if not one["href"].startswith("#")]
    assert len(links) == len(images)
    assert all(link.startswith("./../my%20photos/") and "#" not in link for link in links)


def test_what_moved_is_told_apart_from_what_is_only_numbered_anew(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(40)]
    same = [i % CLUSTERS for i in range(40)]
    still = made_predictions(tmp_path / "still", rows_of(names, [*same]), tmp_path / "gone")
    page = report(still)
    assert "0 of 40 images that were there before" in page.text and "New numbers" not in page.text
    assert "the images cannot be reached from here" in page.text and not page.all("img")
    # Two clusters have each other's number, one image is in another cluster, two are new.
    before: list[int | None] = [{0: 1, 1: 0}.get(cluster, cluster) for cluster in same]
    before[2], before[38], before[39] = 3, None, None
    moved = made_predictions(tmp_path / "moved", rows_of(names, before), tmp_path / "gone")
    found = read_predictions(Folder(moved)).moves
    assert found is not None and found.known == 38
    assert found.matched == {0: 1, 1: 0, 2: 2, 3: 3} and dict(found.counts) == {(3, 2): 1}
    assert [image.path for image in found.examples] == ["2.png"]
    page = report(moved)
    assert "1 of 38 images that were there before" in page.text
    assert "have other numbers than before" in page.text and "2.png 3 2" in page.text


def test_rows_of_a_prepared_data_set_have_pictures_and_those_of_files_names(tmp_path: Path) -> None:
    from conr_ray.config import load_preset
    from conr_ray.data.store import open_data

    open_data(load_preset("digits").data)
    rows = rows_of([""] * 50)
    del rows["path"], rows["previous_cluster"]
    out = made_predictions(tmp_path / "a", rows | {"row": range(50)}, "digits", "dataset digits")
    page = report(out)
    assert len(page.all("img")) == 10 * CLUSTERS and "moved" not in page.sections
    assert any("cluster 1: row " in one["alt"] for one in page.all("img"))
    rows |= {"row": range(50), "file": ["x.parquet"] * 50}
    rows["confident"] = pa.nulls(50, pa.bool_())
    page = report(made_predictions(tmp_path / "b", rows, "/none", "parquet", complete=False))
    assert (
        " of x.parquet" in page.text and "confident" not in page.text.split("Prediction")[0][:400]
    )
    assert "the prediction is not complete" in page.text


def test_damaged_parts_are_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    out = made_predictions(tmp_path / "out", rows_of([f"{i}.png" for i in range(30)]), "/none")
    (out / "predictions/part-000001.parquet").write_bytes(b"no")
    page = report(out)
    assert "part-000001.parquet is damaged" in page.text and "images 20" in page.text
    for part in out.glob("predictions/*"):
        part.unlink()
    assert "no image has a cluster yet" in report(out).text
    with pytest.raises(UserError, match="no effect on predictions"):
        conr_ray.report.main([str(out), "--baseline", str(out)])
    (out / "prediction.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"format=2: this version reads 1: use the version"):
        report(out)
