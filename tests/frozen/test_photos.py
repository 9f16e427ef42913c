"""The preset `photos` on a few pictures, as files and in memory."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import conr_ray.train
import conr_ray.tune
from conr_ray import Clusterer
from conr_ray.config import load_preset
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.estimating.settings import for_few

ROOT = Path(__file__).parents[2]
NUM_EACH = 20
SMALL = ["--set", "views.size=64", "--set", "data.stored_size=64"]


def _parts() -> list[tuple[str, Image.Image]]:
    """Parts of a photograph of a palace and one of a flower; several sizes, grey and colour."""
    random = np.random.default_rng(0)
    found = []
    for name, photo in zip(("palace", "flower"), load_sample_images().images, strict=True):
        for index in range(NUM_EACH):
            side, top, left = random.integers((180, 0, 100), (300, 120, 330)).tolist()
            part = Image.fromarray(photo[top : top + side, left : left + side + 20 * (index % 3)])
            found.append((name, part.convert("L") if index % 5 == 0 else part))
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, (name, part) in enumerate(_parts()):
        (folder / name).mkdir(exist_ok=True)
        part.save(folder / name / f"{index}.{'jpg' if index % 2 else 'png'}")
    return folder


def _train(photos: Path, storage: Path, *more: str) -> None:
    where = ["--storage", str(storage), "--name", "run", "--local"]
    what = ["--preset", "photos", "--set", f"data.path={photos}"]
    conr_ray.train.main([*what, "--set", "clustering.num_clusters=2", *SMALL, *where, *more])


def test_few_pictures_are_clustered_with_the_preset_as_it_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(photos, tmp_path)
    out = capsys.readouterr().out
    told = "fitted to 40 samples: optim.batch_size=20, neighborhood.k1=10, neighborhood.k=4, "
    assert told + "optim.lr=12.8, schedule.epochs=200" in out
    directory = RunDirectory(tmp_path / "run")
    config, rows = directory.read_config(), directory.metric_rows()
    assert config is not None and config.neighborhood.k1 == 10 and config.evaluation.every == 50
    assert len(rows) == 200 and float(rows[-1]["acc"] or 0) > 0.9
    # The same command goes on with the same run.
    _train(photos, tmp_path, "--resume")
    assert directory.metric_rows() == rows
    with pytest.raises(UserError, match=r"holds another run \(optim.batch_size: 20 -> 16"):
        _train(photos, tmp_path, "--resume", "--set", "optim.batch_size=16")


def test_what_is_set_is_not_fitted(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^neighborhood.k1=50 exceeds the 40 images: lower it or"):
        _train(photos, tmp_path, "--set", "neighborhood.k1=50")


@pytest.mark.parametrize(
    ("num_rows", "batch", "k1", "k", "lr", "epochs"),
    [(10, 10, 2, 2, 25.6, 400), (200, 100, 50, 20, 2.56, 200), (600, 256, 50, 20, 1, 200)],
)
def test_fewer_samples_make_as_many_steps_of_equal_length(
    num_rows: int, batch: int, k1: int, k: int, lr: float, epochs: int
) -> None:
    found = for_few(load_preset("photos"), num_rows, ())
    assert (found["optim.batch_size"], found["neighborhood.k1"]) == (batch, k1)
    assert (found["neighborhood.k"], found["optim.lr"]) == (k, pytest.approx(lr))
    assert found["schedule.epochs"] == epochs == 20 * found["schedule.warmup_epochs"]


def test_many_samples_leave_the_preset_as_it_is() -> None:
    preset = load_preset("photos")
    found = for_few(preset, 10_000, ())
    assert found["schedule.epochs"] == 20 and found["optim.lr"] == preset.optim.lr


def test_a_search_is_fitted_too(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("preset: photos\ntrials: 2\nsearch: {heads.balance: {float: [1.2, 4.0]}}\n")
    set_path = ["--set", f"data.path={photos}", "--set", "clustering.num_clusters=2"]
    where = ["--storage", str(tmp_path), "--name", "search"]
    conr_ray.tune.main(["--space", str(space), *set_path, *where, "--plan"])
    out = capsys.readouterr().out
    assert "fitted to 40 samples: optim.batch_size=20" in out and "without trunks 400" in out


def test_pictures_in_memory_have_the_size_of_the_presets_network() -> None:
    pictures = [part.convert("RGB") for _, part in _parts()]
    clusterer = Clusterer(2, preset="photos", verbose=False, views__size=64, schedule__epochs=60)
    labels = clusterer.fit_predict(pictures)
    assert clusterer.n_features_in_ == 3 * 64 * 64
    right = (labels == np.repeat([0, 1], NUM_EACH)).mean()
    assert max(right, 1 - right) > 0.9


def test_vectors_take_the_preset_without_its_network() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 16))
    vectors[30:] += 1.5
    clusterer = Clusterer(2, preset="photos", verbose=False, schedule__epochs=40)
    labels = clusterer.fit_predict(vectors)
    right = (labels == np.repeat([0, 1], 30)).mean()
    assert max(right, 1 - right) > 0.9


def test_the_example_writes_a_folder_of_pictures(tmp_path: Path) -> None:
    encoded = []
    for _, part in _parts()[:8]:
        buffer = BytesIO()
        part.save(buffer, "png")
        encoded.append(buffer.getvalue())
    splits = ["train", "test"] * 4
    table = pa.table({"image": encoded, "label": [0, 9] * 4, "split": splits})
    pq.write_table(table, tmp_path / "table.parquet")
    command = [sys.executable, str(ROOT / "examples" / "photo_folder.py"), str(tmp_path / "photos")]
    command += ["--data", str(tmp_path / "table.parquet"), "--count", "3"]
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.endswith("photos: 3 pictures\n")
    names = [str(file.relative_to(tmp_path / "photos")) for file in tmp_path.rglob("*.png")]
    assert sorted(names) == ["truck/00000.png", "truck/00001.png", "truck/00002.png"]
