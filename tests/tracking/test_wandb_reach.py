"""W&B is asked once by a command; where it does not answer, logging is offline."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_file import history
from conr_ray.tracking.wandb_observer import open_wandb
from conr_ray.tracking.wandb_reach import reached_settings
from conr_ray.tracking.wandb_settings import WandbSettings, base_url
from tests.reporting.wandb_server import WandbServer, wandb_server
from tests.tiny_runs import tiny_config
from tests.tracking import offline_file

TRACKING = tiny_config().tracking
RUN = "to upload later: wandb sync /runs/one/wandb/offline-run-*"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running


def of_run() -> tuple[str, str | None]:
    settings, told = reached_settings(TRACKING, "/runs/one", of_search=False)
    # Figures that nobody can look at now are not to cost much.
    assert settings.sparing == (told is not None)
    return settings.mode, told


def test_a_server_that_answers_is_asked_once(server: WandbServer) -> None:
    assert of_run() == ("online", None)
    assert len(server.questions) == 1


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_what_the_user_has_set_is_not_asked_about(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert of_run() == ({"disabled": "off"}.get(mode, mode), None)
    assert server.questions == []


def test_a_server_that_is_down_or_refuses_the_key_is_told(server: WandbServer) -> None:
    server.is_broken = True
    assert of_run() == ("offline", f"W&B: {server.url} answers 500: logging offline; {RUN}")
    server.is_broken, server.key_is_known = False, False
    refused = "refuses the key (run `wandb login --relogin`)"
    assert of_run() == ("offline", f"W&B: {server.url} {refused}: logging offline; {RUN}")


def test_a_port_without_a_server_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    told = f"W&B: {url} does not answer (Connection refused): logging offline; {RUN}"
    assert of_run() == ("offline", told)


def test_a_server_that_is_silent_is_waited_for_some_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.monotonic()
        mode, told = of_run()
        assert 2 < time.monotonic() - started < 15
    assert mode == "offline"
    assert told == f"W&B: {url} does not answer within 3 s: logging offline; {RUN}"


def test_the_line_names_all_that_there_is_to_upload(server: WandbServer) -> None:
    server.is_broken = True
    _, told = reached_settings(TRACKING, "/my runs/one", of_search=True)
    folders = "'/my runs/one'/wandb/offline-run-* '/my runs/one'/trials/*/wandb/offline-run-*"
    assert told is not None and told.endswith(f"to upload later: wandb sync {folders}")
    _, told = reached_settings(TRACKING, "s3://bucket/one", of_search=False)
    assert told is not None
    assert told.endswith("wandb sync ./wandb/offline-run-* in a copy of s3://bucket/one")


def test_the_server_is_that_of_wandbs_own_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert base_url() == "https://api.wandb.ai"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://own/\n")
    assert base_url() == "https://own"
    (tmp_path / "settings").write_text("no settings")
    assert base_url() == "https://api.wandb.ai"


@pytest.mark.slow
def test_a_server_that_has_gone_since_leaves_an_offline_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    settings = WandbSettings("online").for_run("0003-abcd", group="a", run_uri=str(tmp_path))
    observer = open_wandb(settings, tiny_config())
    observer.epoch({"epoch": 0, "loss": 1.0})
    observer.end(None)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-0003-abcd.wandb")
    offline_file.ended(file)
    assert [row["epoch"] for row in history(file)] == [0]


@pytest.mark.slow
def test_an_offline_run_in_a_bucket_is_there_to_be_uploaded(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    uri = f"{s3_bucket}/runs/one"
    settings = WandbSettings("offline").for_run("0003-abcd", group=None, run_uri=uri)
    observer = open_wandb(settings, tiny_config())
    observer.epoch({"epoch": 0, "loss": 1.0})
    observer.end(None)
    (here,) = Path(settings.folder).glob("wandb/offline-run-*/run-0003-abcd.wandb")
    offline_file.ended(here)
    name = here.relative_to(settings.folder).as_posix()
    assert Folder(uri).read_bytes(name) == here.read_bytes()
