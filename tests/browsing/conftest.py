"""A run of real digits, browsed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from conr_ray.browsing.collection import open_collection
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
