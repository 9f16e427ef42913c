"""`predict` in one process: what it tells of images, and what it does with those of all kinds."""

from __future__ import annotations

import os
import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import conr_ray.predict
import conr_ray.report
from conr_ray import TrainedRun
from conr_ray.data.decoding import conformed
from conr_ray.data.store import open_data
from conr_ray.errors import RunFailed, UserError
from tests.data.conftest import OfficialFiles
from tests.prediction.conftest import (
    NUM_IMAGES,
    about,
    digits,
    encoded,
    parquet,
    predict,
    rows_of,
    train,
)
from tests.tiny_runs import on_vectors, tiny_config

FOLDER_COLUMNS = [
    *("path", "size", "mtime_ns", "previous_cluster"),
    *("cluster", "distance", "other_distance", "boundary_ratio", "confident"),
]


def _same_as_the_run(run: str, out: Path, key: str) -> None:
    """Each sample of the run has its cluster, and its boundary ratio but for rounding."""
    told = pq.read_table(f"{run}/assignments.parquet").to_pylist()
    rows = rows_of(out)
    by_key = {row[key]: row for row in rows}
    assert len(by_key) == len(rows) == len(told) and len({row["cluster"] for row in told}) > 1
    name = "path" if key == "path" else "sample_id"
    found = [by_key[row[name]] for row in told]
    assert [row["cluster"] for row in found] == [row["cluster"] for row in told]
    ratios = [[row["boundary_ratio"] for row in some] for some in (found, told)]
    np.testing.assert_allclose(*ratios, rtol=1e-3)
    assert 0 < sum(row["confident"] for row in found) <= len(rows)


def test_the_images_of_its_folder_have_the_clusters_of_the_run(
    folder_run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = folder_run
    predict(run, str(images), tmp_path, "--embeddings")
    _same_as_the_run(run, tmp_path, "path")
    assert f"{NUM_IMAGES} images in " in (told := capsys.readouterr().out)
    assert f"confident, 0 unreadable: {tmp_path}" in told
    rows = rows_of(tmp_path)
    assert list(rows[0]) == [*FOLDER_COLUMNS, "embedding"]
    assert all(row["previous_cluster"] is None for row in rows)
    lengths = np.linalg.norm([row["embedding"] for row in rows], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert not (tmp_path / "errors.parquet").exists()
    told_about = about(tmp_path)
    assert told_about["complete"] and told_about["epochs"] == 3 and told_about["num_clusters"] == 10
    assert told_about["run"] == run and told_about["what"] == "folder"
    # Its page shows and names the images.
    conr_ray.report.main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") > 50 and "<title>images: clusters" in page


@pytest.mark.parametrize("kind", ["encoded", "raw", "hugging_face"])
def test_the_rows_of_its_parquet_file_have_the_clusters_of_the_run(
    kind: str, tmp_path: Path
) -> None:
    pixels = digits()
    if kind == "raw":
        file = parquet(tmp_path / "x.parquet", [p.tobytes() for p in pixels], shape="8,8")
    else:
        file = parquet(tmp_path / "x.parquet", [encoded(p) for p in pixels])
    if kind == "hugging_face":
        images = pq.read_table(file).column("image").combine_chunks()
        paths = pa.nulls(len(images), pa.string())
        struct = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
        pq.write_table(pa.table({"image": struct}), file, row_group_size=50)
    run = train(tmp_path / "run", data__source="parquet", data__path=file)
    predict(run, file, tmp_path / "out")
    _same_as_the_run(run, tmp_path / "out", "row")


def test_vectors_have_the_clusters_of_the_run_and_broken_ones_a_reason(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((NUM_IMAGES, 12)).astype(np.float32)
    changes = on_vectors(tmp_path / "vectors.parquet", vectors)
    run = train(tmp_path / "run", **changes, clustering__num_clusters=3)
    predict(run, str(tmp_path / "vectors.parquet"), tmp_path / "out")
    _same_as_the_run(run, tmp_path / "out", "row")
    odd: list[Any] = vectors.tolist()
    odd[3][5], odd[7], odd[9] = float("nan"), None, [1.0, 2.0]
    pq.write_table(pa.table({"other": odd}), tmp_path / "odd.parquet")
    with pytest.raises(RunFailed, match=r"3 of 120 vectors could not be read \(the first: has a"):
        predict(run, str(tmp_path / "odd.parquet"), tmp_path / "odd", "--column", "other")
    errors = pq.read_table(tmp_path / "odd/errors.parquet").to_pylist()
    assert [tuple(error.values()) for error in errors] == [
        (3, "has a non-finite number"),
        (7, "has no vector, others have 12"),
        (9, "has 2 numbers, others have 12"),
    ]
    whole, rest = rows_of(tmp_path / "out"), rows_of(tmp_path / "odd")
    wanted = [row["cluster"] for row in whole if row["row"] not in (3, 7, 9)]
    assert [row["cluster"] for row in rest] == wanted
    with pytest.raises(UserError, match="no Parquet files; the run takes vectors: name a Parquet"):
        (tmp_path / "empty").mkdir()
        predict(run, str(tmp_path / "empty"), tmp_path / "other")


def test_a_data_set_has_the_clusters_of_the_run(tmp_path: Path) -> None:
    run = train(tmp_path / "run", data__limit=200)
    arguments = ["--run", run, "--dataset", "digits", "--out", f"{tmp_path}/out", "--local"]
    conr_ray.predict.main([*arguments, "--set", "data.limit=200"])
    _same_as_the_run(run, tmp_path / "out", "row")
    conr_ray.report.main([str(tmp_path / "out")])
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<img ") > 50 and "<title>digits: clusters" in page
    # Fewer are others.
    with pytest.raises(UserError, match="predictions of another images"):
        conr_ray.predict.main([*arguments, "--set", "data.limit=100"])


def test_a_data_set_in_torchvisions_own_files_has_the_clusters_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 1, 28, 28), np.uint8)
    OfficialFiles(tmp_path, monkeypatch).mnist(
        "FashionMNIST", pixels, [i % 10 for i in range(NUM_IMAGES)], test=30
    )
    of_torchvision = {"source": "torchvision", "name": "fashion_mnist", "download": True}
    fields = {f"data__{name}": value for name, value in of_torchvision.items()}
    run = train(tmp_path / "run", data__path=str(tmp_path), **fields)
    words = ["--run", run, "--dataset", "fashion_mnist", "--set", f"data.path={tmp_path}"]
    conr_ray.predict.main([*words, "--out", f"{tmp_path}/out", "--local"])
    _same_as_the_run(run, tmp_path / "out", "row")
    # The test split alone.
    words += ["--set", "data.splits=[test]", "--out", f"{tmp_path}/test", "--local"]
    conr_ray.predict.main(words)
    told = [row["cluster"] for row in rows_of(tmp_path / "out")]
    assert [row["cluster"] for row in rows_of(tmp_path / "test")] == told[-30:]


def test_fashion_images_have_the_clusters_of_the_run(shared_data: Path, tmp_path: Path) -> None:
    file = str(shared_data / "fashion_mnist.parquet")
    small = pq.ParquetFile(file).read_row_group(0).slice(0, 300)
    pq.write_table(small, tmp_path / "fashion.parquet")
    file = str(tmp_path / "fashion.parquet")
    run = train(tmp_path / "run", data__source="parquet", data__path=file)
    predict(run, file, tmp_path / "out")
    _same_as_the_run(run, tmp_path / "out", "row")


def test_images_of_other_sizes_and_colours_are_stored_as_the_run_would(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 17, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for name, kind in (("a.png", "PNG"), ("b.bmp", "BMP")):
        (tmp_path / "images" / name).write_bytes(encoded(pixels, kind))
    (tmp_path / "images/c.png").write_bytes(encoded(pixels[:3, :3, 0]))
    predict(folder_run[0], str(tmp_path / "images"), tmp_path / "out")
    run = TrainedRun.load(folder_run[0])
    images = [Image.fromarray(p) for p in (pixels, pixels, pixels[:3, :3, 0])]
    stored = np.stack([conformed(image, (1, 8, 8), None) for image in images])
    placement = run.place(stored)
    rows = rows_of(tmp_path / "out")
    assert [row["cluster"] for row in rows] == placement.clusters_n.tolist()
    np.testing.assert_allclose([r["distance"] for r in rows], placement.distances_n, rtol=1e-4)


def test_images_that_cannot_be_read_are_told_and_tried_again(
    folder_run: tuple[str, Path], copied: Path, tmp_path: Path
) -> None:
    files = sorted(copied.iterdir())
    whole = files[5].read_bytes()
    files[5].write_bytes(whole[:40])
    files[6].write_bytes(b"no picture")
    (copied / "notes.txt").write_text("no image by its ending")
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"2 of 40 images could not be read .*errors\.parquet"):
            predict(folder_run[0], str(copied), out)
        errors = pq.read_table(out / "errors.parquet").to_pylist()
        assert [error["path"] for error in errors] == [files[5].name, files[6].name]
        assert errors[1]["reason"] == "unknown image format"
        assert len(rows_of(out)) == 38
    files[5].write_bytes(whole)
    files[6].unlink()
    predict(folder_run[0], str(copied), out)
    assert len(rows_of(out)) == 39 and not (out / "errors.parquet").exists()
    shutil.rmtree(copied)
    copied.mkdir()
    (copied / "x.png").write_bytes(b"")
    with pytest.raises(RunFailed, match="1 of 1 images could not be read"):
        predict(folder_run[0], str(copied), tmp_path / "none")
    (copied / "x.png").unlink()
    with pytest.raises(UserError, match=r"--images .*/images: no images; name a folder"):
        predict(folder_run[0], str(copied), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_new_and_changed_images_alone_are_predicted(
    folder_run: tuple[str, Path], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = folder_run[0], tmp_path / "out"
    predict(run, str(copied), out)
    first = rows_of(out)
    files = sorted(copied.iterdir())
    parts = {file: file.stat().st_mtime_ns for file in (out / "predictions").iterdir()}
    # Changed without its size, new, and gone.
    pixels = 255 - np.asarray(Image.open(files[0]))
    files[0].write_bytes(encoded(pixels))
    os.utime(files[0], ns=(1, 1))
    (copied / "new.png").write_bytes(encoded(pixels.T))
    files[1].unlink()
    capsys.readouterr()
    predict(run, str(copied), out)
    assert "41 images in" in (told := capsys.readouterr().out) and ", 2 predicted now," in told
    second = rows_of(out)
    assert len(second) == 41
    assert second[1:40] == first[1:]
    assert second[0]["previous_cluster"] == first[0]["cluster"] and second[0]["mtime_ns"] == 1
    assert second[40]["path"] == "new.png" and second[40]["previous_cluster"] is None
    # Nothing is written anew where nothing has changed.
    predict(run, str(copied), out)
    assert rows_of(out) == second and len(parts) == 1
    predict(run, str(copied), out, "--all")
    third = rows_of(out)
    # What is gone has no place among all.
    assert [row["path"] for row in third] == [r["path"] for r in second if r is not second[1]]
    assert all(row["previous_cluster"] == row["cluster"] for row in third)


def test_the_output_of_another_run_state_or_process_is_refused(
    folder_run: tuple[str, Path], copied: Path, tmp_path: Path
) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    shutil.copytree(folder_run[0], run)
    predict(run, str(copied), out)
    before = rows_of(out)
    with pytest.raises(UserError, match=r"holds predictions of another run .*: choose another"):
        predict(folder_run[0], str(copied), out)
    with pytest.raises(UserError, match="holds predictions of another images"):
        predict(run, str(folder_run[1]), out)
    with pytest.raises(UserError, match="holds predictions without embeddings: add --all"):
        predict(run, str(copied), out, "--embeddings")
    shutil.rmtree(run)
    train(
        Path(run),
        data__source="folder",
        data__path=str(copied),
        schedule__epochs=4,
        optim__batch_size=32,
    )
    with pytest.raises(UserError, match="of this run after 3 epochs: add --all to predict all"):
        predict(run, str(copied), out)
    assert rows_of(out) == before
    predict(run, str(copied), out, "--all", "--embeddings")
    _same_as_the_run(run, out, "path")
    after = rows_of(out)
    assert [row["previous_cluster"] for row in after] == [row["cluster"] for row in before]
    assert about(out)["epochs"] == 4 and "first_part" not in about(out)


def test_a_folder_of_parquet_files_is_read_and_broken_ones_are_told(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    images = [encoded(pixels) for pixels in digits()]
    (tmp_path / "files").mkdir()
    parquet(tmp_path / "files/a.parquet", images[:70])
    parquet(tmp_path / "files/b.parquet", [*images[70:80], None, b"x"])
    (tmp_path / "files/c.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(RunFailed, match="3 of 83 images could not be read"):
        predict(folder_run[0], str(tmp_path / "files"), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    keys = [("a.parquet", row) for row in range(70)] + [("b.parquet", row) for row in range(10)]
    assert [(row["file"], row["row"]) for row in rows] == keys
    run = TrainedRun.load(folder_run[0])
    assert [row["cluster"] for row in rows] == run.assign(digits()[:80, None])[0].tolist()
    # Its page shows them.
    conr_ray.report.main([str(tmp_path / "out")])
    page = (tmp_path / "out/report.html").read_text()
    shown = re.findall(r'base64,([^"]+)" alt="[^"]* row (\d+) of (.)\.parquet"', page)
    assert len(shown) > 50 and {file for _, _, file in shown} == {"a", "b"}
    for picture, row, file in shown:
        with Image.open(BytesIO(b64decode(picture))) as image:
            wanted = digits()[int(row) + 70 * (file == "b")]
            np.testing.assert_array_equal(np.asarray(image), wanted)
    errors = pq.read_table(tmp_path / "out/errors.parquet").to_pylist()
    places = [(error["file"], error["row"]) for error in errors]
    assert places == [("b.parquet", 10), ("b.parquet", 11), ("c.parquet", None)]
    # A file that has grown is read again, another one is not.
    parquet(tmp_path / "files/b.parquet", images[70:])
    (tmp_path / "files/c.parquet").unlink()
    predict(folder_run[0], str(tmp_path / "files"), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["cluster"] for row in rows] == run.assign(digits()[:, None])[0].tolist()
    known = [row["previous_cluster"] for row in rows]
    assert known == [None] * 70 + [row["cluster"] for row in rows[70:80]] + [None] * 40


def test_a_bucket_is_read_and_written_and_what_is_denied_is_a_line(
    folder_run: tuple[str, Path], s3_bucket: str, copied: Path, tmp_path: Path
) -> None:
    from pyarrow import fs

    fs.copy_files(str(copied), f"{s3_bucket}/images")
    fs.copy_files(folder_run[0], f"{s3_bucket}/run")
    for _ in range(2):
        predict(f"{s3_bucket}/run", f"{s3_bucket}/images", f"{s3_bucket}/out")
    fs.copy_files(f"{s3_bucket}/out", str(tmp_path / "out"))
    predict(folder_run[0], str(copied), tmp_path / "here")
    for name in ("path", "cluster", "distance"):
        here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "out")
        assert [row[name] for row in there] == [row[name] for row in here]
    file = parquet(tmp_path / "x.parquet", [encoded(pixels) for pixels in digits()])
    fs.copy_files(file, f"{s3_bucket}/x.parquet")
    predict(folder_run[0], f"{s3_bucket}/x.parquet", tmp_path / "rows")
    assert len(rows_of(tmp_path / "rows")) == NUM_IMAGES
    with pytest.raises(UserError, match=r"--images s3://no-such-bucket/x: "):
        predict(folder_run[0], "s3://no-such-bucket/x", tmp_path / "no")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "--images nowhere: there is nothing; name a folder of images"),
        (["--images", "{file}", "--column", "x"], "--column x: .* has no such column; choose from"),
        (["--dataset", "digit"], "digits"),
        (["--images", "x", "--set", "data.limit=3"], "--set changes the data of --dataset"),
        (["--images", "x", "--clusters", "1"], "--clusters: 1 is no number of clusters: give 2"),
        (["--images", "x", "--clusters", "-3"], "--clusters: -3 is no number of clusters: give"),
        (["--images", "x", "--workers", "2"], "--local predicts without Ray: leave out --workers"),
    ],
)
def test_bad_input_is_a_line(
    folder_run: tuple[str, Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    file = parquet(tmp_path / "x.parquet", [b""])
    words = [word.replace("{file}", file) for word in arguments]
    with pytest.raises(UserError, match=message):
        conr_ray.predict.main(
            ["--run", folder_run[0], "--local", "--out", f"{tmp_path}/out", *words]
        )
    assert not (tmp_path / "out").exists()


def test_the_decoded_copy_of_a_larger_data_set_is_brought_to_the_form_of_the_run(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    settings = ["--set", "data.stored_size=16", "--set", "data.limit=50"]
    arguments = ["--run", folder_run[0], "--dataset", "digits", "--local", *settings]
    conr_ray.predict.main([*arguments, "--out", str(tmp_path)])
    larger = open_data(tiny_config(data__stored_size=16, data__limit=50).data).rows
    stored = [conformed(Image.fromarray(image[0]), (1, 8, 8), None) for image in larger]
    wanted = TrainedRun.load(folder_run[0]).assign(np.stack(stored))[0].tolist()
    assert [row["cluster"] for row in rows_of(tmp_path)] == wanted
