"""A profile accounts for all the time of a run, once."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch

from conr_ray.engine import profile
from conr_ray.engine.profile import Profile, read_profile
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.method.phases import Clock, phase
from tests.engine.test_loop import StopAfter
from tests.tiny_runs import run_here, tiny_config

CPU = torch.device("cpu")
STEP = {"views", "online", "loss", "backward", "optimiser"}


def test_the_time_of_a_phase_is_without_that_of_the_phases_inside() -> None:
    clock = Clock(CPU)
    with clock.running(), phase("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with phase("inner"):
                time.sleep(0.05)
    assert clock.calls == {("outer", "outer"): 1, ("outer", "inner"): 2}
    assert 0.02 <= clock.seconds["outer", "outer"] < 0.1
    assert clock.seconds["outer", "inner"] >= 0.1


def test_without_a_clock_or_after_it_nothing_is_kept() -> None:
    clock = Clock(CPU)
    with clock.running():
        pass
    with phase("outer"):
        pass
    assert not clock.seconds


def test_an_error_inside_a_phase_ends_it() -> None:
    clock = Clock(CPU)
    with clock.running():
        for _ in range(2):
            with pytest.raises(KeyError), phase("outer"), phase("inner"):
                raise KeyError
    assert set(clock.seconds) == {("outer", "outer"), ("outer", "inner")}


def test_a_profiled_run_tells_what_each_stage_spent_its_time_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traces take time of epochs that belongs to no phase.
    monkeypatch.setattr(profile, "_TRACED", range(1000, 1001))
    config = tiny_config(schedule__epochs=6, schedule__group_start=3)
    directory = RunDirectory(tmp_path)
    rows = run_here(config, tmp_path, Profile(directory, CPU))
    times = read_profile(directory)
    assert list(times) == ["instance", "group"]
    for stage, phases in (("instance", {"target"}), ("group", {"target", "neighbours"})):
        # The first of the stage's three epochs is left out; 300 samples are 4 batches of 64.
        assert times[stage].steps == 2 * 4
        assert set(times[stage].seconds) == {"other", "evaluation", "checkpoint", *STEP, *phases}
        epochs = [row for row in rows if row["stage"] == stage][1:]
        told = sum(float(row["epoch_time_s"] or 0) for row in epochs)
        # Checkpoints do not count toward an epoch's time.
        spent = sum(s for name, s in times[stage].seconds.items() if name != "checkpoint")
        assert spent == pytest.approx(told, rel=0.1)


def test_steps_of_each_stage_are_traced(tmp_path: Path) -> None:
    config = tiny_config(schedule__epochs=4, schedule__group_start=2)
    run_here(config, tmp_path, Profile(RunDirectory(tmp_path), CPU))
    for stage, inside in (("instance", "target"), ("group", "neighbours")):
        file = tmp_path / f"profile/{stage}.trace.json.gz"
        trace = json.loads(gzip.decompress(file.read_bytes()))
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("backward") >= 3 and inside in names


def test_a_finished_run_keeps_its_profile(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    run_here(tiny_config(), tmp_path, Profile(directory, CPU))
    times = read_profile(directory)
    run_here(tiny_config(), tmp_path, Profile(directory, CPU))
    assert read_profile(directory) == times and times


def test_the_profile_of_a_run_that_is_interrupted_is_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)

    class Both(StopAfter):
        def __init__(self) -> None:
            super().__init__(2)
            self.profile = Profile(directory, CPU)

        def epoch(self, row: dict[str, float | int | str | None]) -> None:
            self.profile.epoch(row)
            super().epoch(row)

        def end(self, error: BaseException | None) -> None:
            self.profile.end(error)
            super().end(error)

    with pytest.raises(KeyboardInterrupt):
        run_here(tiny_config(), tmp_path, Both())
    assert set(read_profile(directory)) == {"instance", "group"}
    # No clock is left running.
    run_here(tiny_config(), tmp_path / "next")
    assert set(read_profile(RunDirectory(tmp_path / "next"))) == set()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "\xff",
        '{"group": 3}',
        '{"group": {"steps": 0, "seconds": {"views": 1}}}',
        '{"group": {"steps": 2, "seconds": {"views": NaN}}}',
        '{"group": {"steps": 2, "seconds": {"lunch": 1}}}',
    ],
)
def test_a_damaged_profile_is_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/phases.json").write_bytes(text.encode("latin-1"))
    if text == "[]":
        assert read_profile(RunDirectory(tmp_path)) == {}
        return
    with pytest.raises(UserError, match=r"profile/phases\.json is damaged \(.*\): delete it"):
        read_profile(RunDirectory(tmp_path))


def test_a_damaged_profile_is_written_anew_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/phases.json").write_text("{")
    run_here(tiny_config(schedule__epochs=3), tmp_path, Profile(RunDirectory(tmp_path), CPU))
    assert set(read_profile(RunDirectory(tmp_path))) == {"instance", "group"}
    [told] = [line for line in capsys.readouterr().err.splitlines() if "phases.json" in line]
    assert told.endswith("): written anew")
