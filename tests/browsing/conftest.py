"""Runs of real digits, browsed."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from starlette.testclient import TestClient

import conr_ray.curate
from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.server import Server
from conr_ray.browsing.session import Session
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import run_here, tiny_config

TOKEN = "a-token-of-tests"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config = tiny_config()
    RunDirectory(folder).write_config(config)
    run_here(config, folder)
    return folder


@pytest.fixture
def run(digits: Path, tmp_path: Path) -> Path:
    """A copy of it, without edits."""
    return Path(shutil.copytree(digits, tmp_path / "run"))


@pytest.fixture
def session(run: Path) -> Iterator[Session]:
    with Session(open_collection(str(run))) as opened:
        yield opened


def client_of(session: Session, client: str = "127.0.0.1", host: str = "127.0.0.1:1") -> TestClient:
    app = Server(session).app(TOKEN)
    return TestClient(app, base_url=f"http://{host}", client=(client, 5))


@pytest.fixture
def page(session: Session) -> TestClient:
    """The pages, for who has opened them with the token."""
    found = client_of(session)
    assert found.get(f"/?token={TOKEN}").status_code == 200
    return found


COPIES = {0: (300, 301), 1: (302,)}
"""Rows of digits, and those of their copies."""


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def curated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a curated run of 300 digits, three copies, and a blank picture."""
    folder = tmp_path_factory.mktemp("curated")
    pixels = list((load_digits().images[:300] * 15.9).astype(np.uint8))
    pixels += [pixels[row] for row, copies in COPIES.items() for _ in copies]
    pixels.append(np.full((8, 8), 90, np.uint8))
    pq.write_table(pa.table({"image": [png(one) for one in pixels]}), folder / "digits.parquet")
    fields = {"data__source": "parquet", "data__path": str(folder / "digits.parquet")}
    config = tiny_config(**fields, data__limit=None, data__stored_size=None)
    RunDirectory(folder / "run").claim(config, resume=False)
    run_here(config, folder / "run")
    conr_ray.curate.main(["--run", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def curated(curated_run: Path, tmp_path: Path) -> Path:
    """A copy of it, without edits."""
    return Path(shutil.copytree(curated_run, tmp_path / "run"))
