"""`python -m conr_ray.embed`: a table of vectors for runs and for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import conr_ray.embed
from conr_ray.config import DataConfig
from conr_ray.data.store import open_data
from conr_ray.errors import RunFailed, UserError
from conr_ray.prediction import here
from conr_ray.prediction.table import ABOUT
from conr_ray.pretrained import load_pretrained
from tests.frozen.conftest import LITE, LITE_WEIGHTS

SIDE = 32
WORDS = ["--backbone", LITE, "--weights", LITE_WEIGHTS, "--size", str(SIDE)]


def embed(images: Path, out: Path, *options: str) -> None:
    """The command, in this process."""
    conr_ray.embed.main([*WORDS, "--images", str(images), "--out", str(out), "--local", *options])


def _pixels(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in two classes: 20 in colour, one grey, one with alpha."""
    pixels = _pixels(20)
    for row in range(20):
        file = tmp_path / f"images/{'ab'[row % 2]}/{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(file)
    Image.fromarray(pixels[0]).convert("L").save(tmp_path / "images/a/grey.png")
    Image.fromarray(pixels[0]).convert("RGBA").save(tmp_path / "images/a/with_alpha.png")
    return tmp_path / "images"


def _by_path(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in table.to_pylist()}


def test_a_folder_becomes_a_table_that_a_run_reads(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep/vectors.parquet"
    embed(folder, out)
    table = pq.read_table(out)
    assert table.column_names == ["path", "embedding", "label"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 1280)
    rows = _by_path(table)
    loaded = load_pretrained(LITE, LITE_WEIGHTS, SIDE)
    pixels = torch.from_numpy(_pixels(20)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = loaded.module(loaded.preparation.prepare(pixels)).numpy()
    for row in range(20):
        found = rows[f"{'ab'[row % 2]}/{row:02d}.png"]
        np.testing.assert_allclose(found["embedding"], expected[row], atol=1e-4)
        assert found["label"] == "ab"[row % 2]
    # Alpha is dropped, and grey is a colour.
    np.testing.assert_allclose(rows["a/with_alpha.png"]["embedding"], expected[0], atol=1e-4)
    assert np.abs(np.subtract(rows["a/grey.png"]["embedding"], expected[0])).max() > 0.1
    about = json.loads(table.schema.metadata[ABOUT])
    assert (about["name"], about["source"], about["digest"]) == (LITE, LITE_WEIGHTS, loaded.digest)
    assert about["preparation"]["size"] == SIDE and "licence" in about
    data = open_data(DataConfig(source="vectors", path=str(out)), tmp_path / "cache")
    assert data.row_shape == (1280,) and data.class_names == ("a", "b")
    assert [path.name for path in out.parent.iterdir()] == ["vectors.parquet"]


def test_rows_of_parquet_keep_their_labels(tmp_path: Path) -> None:
    def png(pixels: Any) -> bytes:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    images, labels = [png(one) for one in _pixels(9)], [3, 1, None, 0, 2, 2, 1, 0, 3]
    table = pa.table({"picture": pa.array(images, pa.binary()), "label": pa.array(labels)})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=4)
    out = tmp_path / "out.parquet"
    embed(tmp_path / "images.parquet", out, "--column", "picture")
    found = pq.read_table(out)
    assert found.column("row").to_pylist() == list(range(9))
    assert found.column("label").to_pylist() == labels
    embed(tmp_path / "images.parquet", tmp_path / "2.parquet", "--column", "picture", *_no_labels())
    assert pq.read_table(tmp_path / "2.parquet").column_names == ["row", "embedding"]


def test_parts_of_another_column_are_not_used_and_rows_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conr_ray.prediction.samples._BATCH_ROWS", 2)
    worked = here.worked_here

    def backwards(read: Any, pieces: Iterable[pa.Table], work: Any) -> Iterator[pa.Table]:
        for piece in pieces:
            yield from reversed(list(worked(read, [piece], work)))
        if cut:
            raise KeyboardInterrupt

    files = []
    for pixels in _pixels(6):
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    pq.write_table(pa.table({"one": files, "two": files[::-1]}), tmp_path / "images.parquet")
    out, cut = tmp_path / "out.parquet", True
    monkeypatch.setattr(here, "worked_here", backwards)
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path / "images.parquet", out, "--column", "one")
    cut = False
    embed(tmp_path / "images.parquet", out, "--column", "two")
    embed(tmp_path / "images.parquet", tmp_path / "other.parquet", "--column", "one")
    two, one = pq.read_table(out), pq.read_table(tmp_path / "other.parquet")
    assert two.column("row").to_pylist() == one.column("row").to_pylist() == list(range(6))
    found = [np.stack(t.column("embedding").to_pylist()) for t in (one, two)]
    np.testing.assert_allclose(found[0], found[1][::-1], atol=1e-4)


def _no_labels() -> tuple[str, str]:
    return "--label-column", "null"


def test_what_was_killed_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conr_ray.prediction.samples._BATCH_ROWS", 4)
    worked, done = here.worked_here, []

    def cut_short(
        read: Any, pieces: Iterable[pa.Table], work: Any, most: int = 3
    ) -> Iterator[pa.Table]:
        for number, rows in enumerate(worked(read, pieces, work)):
            if number == most:
                raise KeyboardInterrupt
            done.append(len(rows))
            yield rows

    out = tmp_path / "out.parquet"
    monkeypatch.setattr(here, "worked_here", cut_short)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        embed(folder, out)
    assert not out.exists() and done == [4, 4, 4]
    monkeypatch.setattr(here, "worked_here", lambda *args: cut_short(*args, most=99))
    done.clear()
    embed(folder, out)
    assert sum(done) == 22 - 12
    embed(folder, tmp_path / "at_once.parquet")
    assert _by_path(pq.read_table(out)) == _by_path(pq.read_table(tmp_path / "at_once.parquet"))
    assert not (tmp_path / "out.parquet.parts").exists()


def test_parts_of_another_backbone_are_not_used(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    embed(folder, out)
    parts = tmp_path / "other.parquet.parts"
    parts.mkdir()
    (parts / "about.json").write_text('{"name": "timm:other"}')
    (parts / "part-00000000-0123456789abcdef.parquet").write_bytes(b"")
    embed(folder, tmp_path / "other.parquet")
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "other.parquet"))


def test_what_cannot_be_read_is_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    (folder / "a/broken.png").write_bytes(b"no picture")
    out = tmp_path / "out.parquet"
    with pytest.raises(RunFailed, match=r"1 of 23 images .*unknown image format.*not in the table"):
        embed(folder, out)
    assert pq.read_table(out).num_rows == 22


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--backbone", "timm:tf_efficientnet_lite9"], "did you mean timm:tf_efficientnet_lite"),
        (["--weights", "package:no-such-thing"], "no package no-such-thing is installed"),
        (["--weights", "/no/such.pth"], "there is no such file"),
        (["--size", "0"], "--size 0: give 1 or more"),
        (["--workers", "2"], "--local embeds without Ray: leave out --workers"),
        (["--images", "/no/such/folder"], "--images /no/such/folder: there is nothing"),
    ],
)
def test_bad_arguments_are_told_in_a_line(
    folder: Path, tmp_path: Path, words: list[str], problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        embed(folder, tmp_path / "out.parquet", *words)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_there_is_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"out\.parquet: it exists: choose another, or remove it"):
        embed(folder, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "mine"


@pytest.mark.slow
def test_actors_of_ray_make_the_same_table(folder: Path, tmp_path: Path) -> None:
    embed(folder, tmp_path / "here.parquet")
    words = [*WORDS, "--images", str(folder), "--out", str(tmp_path / "ray.parquet")]
    conr_ray.embed.main([*words, "--workers", "2", "--cpus-per-worker", "1"])
    here_rows, there = (pq.read_table(tmp_path / f"{n}.parquet") for n in ("here", "ray"))
    assert here_rows.column("path").equals(there.column("path"))
    vectors = [np.stack(t.column("embedding").to_pylist()) for t in (here_rows, there)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)
