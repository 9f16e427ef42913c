"""Predictions that are browsed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.session import Session
from conr_ray.errors import UserError
from tests.browsing.conftest import TOKEN, client_of
from tests.reporting.test_predictions import made_photos, made_predictions, rows_of


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    names = made_photos(tmp_path / "photos", 40)
    paths = [str(tmp_path / "photos" / name) for name in names]
    (tmp_path / "photos" / names[7]).write_bytes(b"no picture")
    out = made_predictions(tmp_path / "out", rows_of(paths), tmp_path / "photos")
    with Session(open_collection(str(out))) as session:
        assert names[3].rpartition("/")[2] in session.collection.name(3)
        page = client_of(session)
        assert page.get(f"/?token={TOKEN}").status_code == 200
        assert page.get("/thumb/any/3").content[:2] == b"\xff\xd8"
        assert b"no picture" in page.get("/thumb/any/7").content
        # Without embeddings the rest works, and what does not says why.
        assert "predict with --embeddings --all" in page.get("/image/3").text
        assert "predict with --embeddings --all" in page.get("/map").text
        with pytest.raises(UserError, match="predict with --embeddings --all"):
            session.split(0)
        assert "moved 2 images" in session.move([3, 4], 0)


def test_rows_of_parquet_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=30 * 4).astype(np.float32)
    columns = {
        "file": ["a.parquet"] * 20 + ["b.parquet"] * 10,
        "row": [*range(20), *range(10)],
        "cluster": pa.array(np.arange(30) % 3),
        "boundary_ratio": rng.uniform(size=30).astype(np.float32),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), 4),
    }
    out = made_predictions(tmp_path / "out", columns, f"{tmp_path}/x#image", "parquet")
    with Session(open_collection(str(out))) as session:
        assert session.collection.name(25) == "row 5 of b.parquet"
        rows = flat.reshape(-1, 4) / np.linalg.norm(flat.reshape(-1, 4), axis=1, keepdims=True)
        assert np.allclose(session.collection.embeddings_nd, rows, atol=1e-6)
        session.split(1)
        halves = [one.size for one in session.clusters if one.number in (1, 3)]
        assert sum(halves) == 10
        assert len(session.positions()[0]) == 30
