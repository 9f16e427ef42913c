"""Whatever a config, a space, a setting or a file of data or of a run says: a result, or a line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conr_ray.config import all_field_names, from_yaml, load_preset, parse_overrides
from conr_ray.errors import UserError
from conr_ray.searching.space_file import load_space
from tests.fuzzed import BOMB, WORDS, changed, survive, survive_all
from tests.fuzzed_files import KINDS, image_files
from tests.waiting import HANG_S

DIGITS = load_preset("digits")
CONFIGS = [
    DIGITS.to_yaml(),
    "data: {source: folder, path: photos, classes: [2024, a b]}\nviews: {sizes: [[0, 16]]}\n",
    "data: {source: vectors, path: a.parquet}\nmodel: {backbone: mlp, widths: [8, 8]}\n",
    "data: {source: digits}\nviews: {crop_scale: &b [0.5, 1], crop_ratio: *b}\n",
    "model: {framework: moco}\nmoco: {queue_size: 64}\ndata: {source: digits}\noptim: {lr: 1e-3}\n",
]
SPACES = [
    """\
preset: digits
metric: nmi
trials: 8
fixed: {schedule.epochs: 60, data.limit: 500}
search:
  neighborhood.k1: {int: [5, 40], log: true}
  neighborhood.k2: {int: [1, neighborhood.k1]}
  boundary.initial_fraction: {float: [0.6, 1.0], step: 0.05}
  schedule.group_start: {choice: [$preset, never]}
""",
    """\
preset: digits
metric: [nmi, train_time_s]
sampler: grid
search: {views.crop_scale: {choice: [[0.5, 1.0], $preset]}, data.limit: {choice: [null, 500]}}
first: [{data.limit: null}]
""",
    """\
preset: digits
trials: 4
scheduler: {kind: pbt, grace_epochs: 40, interval_epochs: 10}
search: {optim.lr: {float: [1e-3, 1e-1], log: true}, byol.momentum: {float: [0.9, 0.999]}}
first: [{optim.lr: 1e-2, byol.momentum: 0.99}]
""",
    """\
preset: digits
search: {schedule.group_start: {int: [10, 30], step: 10}, seed: {int: [0, 9]}}
fixed: {schedule.epochs: 60}
scheduler: {kind: hyperband}
""",
]
SETTINGS = [f"{name}={value}" for name in all_field_names() for value in (1, 0.5, "a", "[1, 2]")]

Read = Callable[[str], Any]


def read_config(text: str) -> None:
    config = from_yaml(text, "config.yaml")
    assert from_yaml(config.to_yaml(), "itself") == config


def read_setting(text: str) -> None:
    load_preset("digits", parse_overrides([text]))


@pytest.fixture
def readers(tmp_path: Path) -> dict[str, tuple[Read, list[str]]]:
    """How each kind of text is read, and examples to change."""

    def read_space(text: str) -> None:
        file = tmp_path / "space.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        load_space(file)

    readers: dict[str, tuple[Read, list[str]]] = {
        "config": (read_config, CONFIGS),
        "space": (read_space, SPACES),
        "setting": (read_setting, SETTINGS),
    }
    # What a process needs once, such as imports, is not counted.
    for read, texts in readers.values():
        for text in texts[: len(CONFIGS)]:
            with contextlib.suppress(UserError):
                read(text)
    return readers


def test_the_examples_can_be_read(readers: dict[str, tuple[Read, list[str]]]) -> None:
    for kind in ("config", "space"):
        read, texts = readers[kind]
        assert [survive(read, text) for text in texts] == [None] * len(texts)


@pytest.mark.parametrize(("kind", "count"), [("config", 60), ("space", 20), ("setting", 60)])
def test_changed_texts_are_read_or_refused_in_a_line(
    readers: dict[str, tuple[Read, list[str]]], kind: str, count: int
) -> None:
    read, texts = readers[kind]
    taken, refused = survive_all(read, texts, seed=0, count=count, change=changed)
    assert taken + refused == count and refused > count // 4


@pytest.mark.long
@pytest.mark.parametrize("kind", ["config", "space", "setting"])
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_changed_texts_are_read_or_refused_in_a_line(
    readers: dict[str, tuple[Read, list[str]]], kind: str, seed: int
) -> None:
    read, texts = readers[kind]
    taken, refused = survive_all(read, texts, seed=seed, count=4000, change=changed)
    assert taken > 20 and refused > 1000


def test_every_odd_word_as_a_whole_text(readers: dict[str, tuple[Read, list[str]]]) -> None:
    for read in (readers["config"][0], readers["space"][0]):
        for word in (*WORDS, BOMB, "[" * 100_000, "a: " * 100_000, "x" * 2**21, "- a\n" * 300_000):
            assert survive(read, word) is not None


def test_every_odd_word_for_fields_of_every_kind(
    readers: dict[str, tuple[Read, list[str]]],
) -> None:
    read, _ = readers["setting"]
    for name in ("seed", "optim.lr", "data.path", "data.classes", "data.limit", "data.download"):
        for word in WORDS:
            survive(read, f"{name}={word}")


# A file is refused, or what it holds is taken; of what is made anew or was kept twice, nothing is.
COUNTS = {
    "image": (60, 20),
    "parquet": (60, 20),
    "table": (60, 20),
    "cache": (20, 0),
    "checkpoint": (20, 0),
    "unsummed_checkpoint": (10, 0),
    "run": (20, 2),
    "journal": (30, 2),
    "unsummed_journal": (30, 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused_in_a_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is on the disk after a loss of power is not of interest here.
    monkeypatch.setattr(os, "fsync", lambda file: None)
    (tmp_path / "files").mkdir()
    count, fewest_refused = COUNTS[kind]
    taken, refused = KINDS[kind](tmp_path / "files").run(0, count)
    assert taken + refused == count and refused >= fewest_refused


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_files_are_read_or_refused_within_limits(kind: str, tmp_path: Path) -> None:
    # In a process of its own, to which the system gives no more memory than it may have.
    command = [sys.executable, "-m", "tests.fuzzed_files", kind, "1", "3000"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert result.returncode == 0, result.stderr[-5000:]


def test_the_files_to_change_are_of_all_kinds() -> None:
    kinds = {name[3:] for name in image_files()}
    assert kinds == {"PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"}
