from __future__ import annotations

import logging
from pathlib import Path

import pytest

from conr_ray.engine.observer import Observers
from conr_ray.tracking.wandb_run import WandbSettings, open_wandb, wandb_mode
from tests.tiny_runs import run_here, tiny_config
from tests.tracking import offline_file


def settings(folder: Path) -> WandbSettings:
    plain = WandbSettings("offline")
    return plain.for_run("0003-abcd", name="a trial", group="a search", folder=str(folder))


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.slow
def test_an_offline_run_holds_every_epoch_once_with_config_and_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
    config = tiny_config()
    rows = run_here(config, tmp_path / "run", open_wandb(settings(tmp_path), config))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-0003-abcd.wandb")
    logged = offline_file.history(file)
    assert [row["epoch"] for row in logged] == [0, 1, 2, 3]
    for row, own in zip(logged, rows, strict=True):
        assert {name: row[name] for name in own} == dict(own)
    run = offline_file.run(file)
    assert (run.run_id, run.display_name, run.run_group) == ("0003-abcd", "a trial", "a search")
    assert run.project == "conr_ray"
    stored = offline_file.config(file)
    assert stored["neighborhood"] == {"kind": "contextual", "k1": 10, "k2": 2, "k": 10}
    kept = [p for p in tmp_path.glob("wandb/**/*") if p.is_file()]
    assert not any(b"0123456789abcdef0123456789abcdef" in p.read_bytes() for p in kept)


def test_a_failure_of_wandb_is_told_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Broken:
        def define_metric(self, *args: object, **options: object) -> None: ...

        def log(self, row: object) -> None:
            raise OSError("the disk is full")

        finish = log

    monkeypatch.setattr(wandb, "init", lambda **options: Broken())
    config = tiny_config()
    with caplog.at_level(logging.WARNING):
        rows = run_here(config, tmp_path, open_wandb(settings(tmp_path), config))
    assert len(rows) == 4
    told = [record.message for record in caplog.records if "W&B" in record.message]
    assert told == ["W&B fails, the run goes on without: the disk is full"]


def test_a_wandb_that_does_not_start_is_told_and_replaced_by_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**options: object) -> None:
        raise wandb.errors.UsageError("no such project")

    monkeypatch.setattr(wandb, "init", refuse)
    with caplog.at_level(logging.WARNING):
        observer = open_wandb(settings(tmp_path), tiny_config())
    assert isinstance(observer, Observers)
    assert "no such project" in caplog.text


@pytest.mark.usefixtures("_no_key")
@pytest.mark.parametrize(
    ("environment", "asked", "mode", "told"),
    [
        ({}, "auto", "off", True),
        ({"WANDB_MODE": "offline"}, "auto", "offline", False),
        ({"WANDB_MODE": "disabled"}, "auto", "off", False),
        ({"WANDB_API_KEY": "k" * 40}, "auto", "online", False),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "auto", "offline", False),
        ({"WANDB_API_KEY": "k" * 40}, "off", "off", False),
    ],
)
def test_the_mode_follows_key_environment_and_config(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    asked: str,
    mode: str,
    told: bool,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, note = wandb_mode(tiny_config(tracking__wandb=asked).tracking)
    assert found == mode
    assert (note is not None) == told


@pytest.mark.usefixtures("_no_key")
@pytest.mark.parametrize(
    ("host", "url", "mode"),
    [
        ("api.wandb.ai", None, "online"),
        ("api.forge.coreweave.com", None, "online"),
        ("api.wandb.ai", "http://own:8080", "off"),
        ("own:8080", "http://own:8080", "online"),
        ("own", "https://own", "online"),
        ("own", None, "off"),
    ],
)
def test_a_key_is_found_where_a_login_leaves_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, url: str | None, mode: str
) -> None:
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    monkeypatch.delenv("NETRC")
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert wandb_mode(tiny_config().tracking)[0] == mode
