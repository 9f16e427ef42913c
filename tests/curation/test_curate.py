"""The command, on tiles of real photographs and on a real run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

import conr_ray.curate
from conr_ray.errors import UserError
from tests.reporting.pages import Page
from tests.tiny_runs import run_here, tiny_config

TILE = 80


def tiles(count: int) -> list[Image.Image]:
    """Squares of two photographs that do not overlap."""
    found = []
    for photo in load_sample_images().images:
        for top in range(0, photo.shape[0] - TILE, TILE):
            for left in range(0, photo.shape[1] - TILE, TILE):
                tile = photo[top : top + TILE, left : left + TILE]
                # Eight tiles of sky are all but blank, and would be found as such.
                if tile.mean(2).std() > 4:
                    found.append(Image.fromarray(tile))
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[place] for place in chosen]


def vector_of(picture: Image.Image) -> np.ndarray[Any, Any]:
    """Its colours, coarsely: a poor model that still knows its neighbours."""
    return np.asarray(picture.convert("RGB").resize((6, 6)), np.float32).ravel() - 128


def changed(picture: Image.Image, way: int) -> Image.Image:
    """A copy."""
    if way == 0:
        return picture.crop((6, 4, 6 + 70, 4 + 70))
    if way == 1:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=50)
        return Image.open(buffer)
    if way == 2:
        return ImageEnhance.Brightness(picture).enhance(0.75)
    return picture.resize((40, 40))


def made(folder: Path) -> tuple[list[str], list[np.ndarray[Any, Any]]]:
    """A folder of 40 tiles and 8 copies, of the first 8."""
    pictures = tiles(40)
    pictures += [changed(picture, way % 4) for way, picture in enumerate(pictures[:8])]
    names = [f"{place:02d} ü#.png" for place in range(len(pictures))]
    folder.mkdir(parents=True)
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name, "PNG")
    return names, [vector_of(picture) for picture in pictures]


def write(place: Path, vectors: list[Any], **columns: Any) -> Path:
    kind = pa.list_(pa.float32())
    pq.write_table(pa.table({"embedding": pa.array(vectors, kind), **columns}), place)
    return place


def curate(*arguments: object) -> None:
    conr_ray.curate.main([str(argument) for argument in arguments])


def of_kind(out: Path, kind: str) -> list[dict[str, Any]]:
    rows = pq.read_table(out / "curation.parquet").to_pylist()
    return [row for row in rows if row["kind"] == kind]


def test_copies_blank_and_broken_pictures_of_a_folder_are_found_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, vectors = made(tmp_path / "my photos")
    Image.new("RGB", (50, 50), (200, 10, 10)).save(tmp_path / "my photos/red.png")
    (tmp_path / "my photos/cut.png").write_bytes(
        (tmp_path / "my photos" / names[3]).read_bytes()[:300]
    )
    names += ["red.png", "cut.png", "gone.png", "../outside.png", "nan.png"]
    vectors += [vectors[20] + 9, vectors[30] - 9, vectors[35] + 9, vectors[36] + 9]
    vectors.append(np.full_like(vectors[0], np.nan))
    table = write(tmp_path / "v.parquet", vectors, path=names)
    curate("--vectors", table, "--images", tmp_path / "my photos", "--out", tmp_path / "out")
    copies = of_kind(tmp_path / "out", "duplicate")
    pairs = {
        tuple(sorted(r["index"] for r in copies if r["group"] == g)) for g in range(len(copies))
    }
    assert {(row, 40 + row) for row in range(8)} <= pairs
    of_planted = [row for row in copies if row["index"] < 8 or 40 <= row["index"] < 48]
    # The one with more pixels; a crop or a smaller copy has fewer.
    keep = {row["index"]: row["keep"] for row in of_planted}
    assert all(keep[row] and not keep[40 + row] for row in (0, 3, 4, 7))
    assert all(0.9 <= row["precision"] <= 1 and row["score"] > 0.93 for row in of_planted)
    assert [row["path"] for row in of_kind(tmp_path / "out", "blank")] == ["red.png"]
    broken = {row["path"]: row["reason"] for row in of_kind(tmp_path / "out", "broken")}
    assert set(broken) == {"cut.png", "gone.png", "../outside.png", "nan.png"}
    assert broken["nan.png"] == "has a non-finite number"
    assert "outside the folder" in broken["../outside.png"]
    page = Page((tmp_path / "out/curation.html").read_text())
    assert page.sections == ["duplicate", "outlier", "blank", "broken", "notes"]
    alts = [image["alt"] for image in page.all("img")]
    assert any(alt.startswith("40 ü#.png, copy in group") for alt in alts)
    assert any("my%20photos" in link["href"] for link in page.all("a"))
    assert "Clusters are not known" in page.text
    assert "1 blank, 4 broken" in capsys.readouterr().out


def test_pictures_of_parquet_are_found_by_row_and_vectors_alone_say_what_they_lack(
    tmp_path: Path,
) -> None:
    names, vectors = made(tmp_path / "photos")
    files = [(tmp_path / "photos" / name).read_bytes() for name in names]
    pq.write_table(pa.table({"picture": files}), tmp_path / "i.parquet", row_group_size=7)
    # In another order than the pictures, and without some of them.
    rows = np.random.default_rng(1).permutation(len(names))
    rows = rows[~np.isin(rows, (30, 31))]
    table = write(tmp_path / "v.parquet", [vectors[row] for row in rows], row=rows)
    pictures = ("--images", tmp_path / "i.parquet", "--image-column", "picture")
    curate("--vectors", table, *pictures, "--out", tmp_path / "a")
    copies = of_kind(tmp_path / "a", "duplicate")
    groups = [{r["row"] for r in copies if r["group"] == g} for g in range(len(copies))]
    assert all({row, 40 + row} in groups for row in range(8))
    curate("--vectors", table, "--out", tmp_path / "b")
    page = Page((tmp_path / "b/curation.html").read_text())
    assert "less sure" in page.text and not page.all("img")


def test_a_run_is_curated_and_without_its_data_the_samples_of_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conr_ray.engine.run_directory import RunDirectory

    digits = pq.read_table(_digits(tmp_path / "digits.parquet"))
    fields = {"data__source": "parquet", "data__path": str(tmp_path / "digits.parquet")}
    config = tiny_config(**fields, data__limit=None, data__stored_size=None)
    run = tmp_path / "run"
    RunDirectory(run).claim(config, resume=False)
    run_here(config, run)
    curate("--run", run)
    copies = of_kind(run, "duplicate")
    last = digits.num_rows - 1
    group = next(row["group"] for row in copies if row["sample_id"] == last)
    assert {0, last} <= {row["sample_id"] for row in copies if row["group"] == group}
    page = Page((run / "curation.html").read_text())
    assert "wrong-member" in page.sections and page.all("img")
    (tmp_path / "digits.parquet").unlink()
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "other"))
    curate("--run", run, "--out", tmp_path / "alone")
    page = Page((tmp_path / "alone/curation.html").read_text())
    assert "samples cannot be opened" in page.text and "of its snapshot" in page.text
    assert not page.all("img")
    moved = tmp_path / "moved.parquet"
    pq.write_table(digits, moved)
    curate("--run", run, "--data", moved, "--out", tmp_path / "again")
    assert of_kind(tmp_path / "again", "duplicate") == copies


def _digits(place: Path) -> Path:
    """300 digits as PNG files; the last is the first again."""
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[:300] * 15.9).astype(np.uint8)
    pixels[-1] = pixels[0]
    files = []
    for one in pixels:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "PNG")
        files.append(buffer.getvalue())
    pq.write_table(pa.table({"image": files}), place)
    return place


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        ([], "has 0 rows"),
        ([[1.0, 2.0], [2.0, 1.0]], "has 2 rows"),
        ([[1.0, 2.0]] * 20, "all vectors are equal"),
        ([[np.nan, 2.0]] * 20, r"no row has a vector \(row 0 has a non-finite number\)"),
        ([[0.0, 0.0]] * 20, "has length 0"),
    ],
)
def test_vectors_of_which_nothing_can_be_told_are_refused(
    tmp_path: Path, vectors: list[list[float]], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        curate("--vectors", write(tmp_path / "v.parquet", vectors), "--out", tmp_path / "out")
    assert not (tmp_path / "out/curation.parquet").exists()


def test_pictures_that_are_not_there_and_options_without_effect_are_refused(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4)).tolist()
    names = [f"{place}.png" for place in range(20)]
    table = write(tmp_path / "v.parquet", vectors, path=names)
    with pytest.raises(UserError, match="no picture can be read"):
        curate("--vectors", table, "--images", tmp_path, "--out", tmp_path / "out")
    bare = write(tmp_path / "s.parquet", vectors, sample_id=range(20))
    with pytest.raises(UserError, match="neither a column path nor row"):
        curate("--vectors", bare, "--images", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="no such column"):
        curate("--vectors", table, "--column", "vector", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--images has no effect with --run"):
        curate("--run", tmp_path, "--images", tmp_path)
    with pytest.raises(UserError, match="give one of --run"):
        curate()
    with pytest.raises(UserError, match="holds no run"):
        curate("--run", tmp_path)
