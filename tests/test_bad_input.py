"""Bad input through the commands: one line, status 2, nothing written, and Ray never started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from PIL import Image

import conr_ray.train
import conr_ray.tune
from conr_ray.command_line import run_command
from conr_ray.config import load_preset, parse_overrides, preset_names
from conr_ray.cores import usable_cores
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.scaling.resources import WorkerResources, crowded, local_gpus
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space_file import load_space
from conr_ray.storage.files import Folder
from tests.waiting import HANG_S

Refuse = Callable[..., str]
DIGITS_SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
SEARCH = {"neighborhood.k1": {"int": [5, 20]}}


def png(size: int = 8) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(size).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small Parquet files, most of them bad, by name."""
    folder, good = tmp_path_factory.mktemp("files"), [png()] * 200
    columns: dict[str, dict[str, Any]] = {
        "labelled": {"image": good, "label": list(range(4)) * 50},
        "unlabelled": {"image": good},
        "unlabelled_by_value": {"image": good, "label": [-1] * 200},
        "broken_image": {"image": [*good[:137], png()[:40], *good[138:]]},
        "no_image": {"image": [*good[:3], b"text", *good[4:]]},
        "other_column": {"picture": good},
        "no_rows": {"image": pa.array([], pa.binary())},
    }
    for name, content in columns.items():
        pq.write_table(pa.table(content), folder / f"{name}.parquet")
    (folder / "corrupt.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    whole = (folder / "labelled.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    names = [*columns, "corrupt", "cut", "absent"]
    return {name: str(folder / f"{name}.parquet") for name in names}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def refuse(
    storage: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refuse:
    """`refuse(module, arguments...)`: the message of a command that leaves with status 2."""
    monkeypatch.setenv("CONR_RAY_CACHE", str(cache))
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def no_ray(*args: object, **options: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "init", no_ray)

    def run(module: Any, *arguments: str) -> str:
        before = sorted(storage.rglob("*"))
        command = [module.__name__, "--storage", str(storage), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            run_command(module.main)
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert sorted(storage.rglob("*")) == before and (before or not storage.exists())
        assert not ray.is_initialized()
        return err.removeprefix("error: ").removesuffix("\n")

    return run


def of_parquet(path: str, **more: Any) -> list[str]:
    settings = {"data.source": "parquet", "data.path": path, **more}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def space_file(folder: Path, tree: Any) -> list[str]:
    (folder / "space.yaml").write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return ["--space", str(folder / "space.yaml")]


# train: arguments and config


@pytest.mark.parametrize("local", [False, True], ids=["ray", "local"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset digts", "preset digts: no such preset; did you mean digits?"),
        ("", "one of --preset, --config and --check is required; see --help"),
        ("--preset digits --config x.yaml", "argument --config: not allowed with argument --pres"),
        (
            "--preset digits --epochs 3",
            "unrecognized arguments: --epochs 3; a config field is set by --set schedule.epochs=3",
        ),
        (
            "--preset digits --batch-size=64",
            "unrecognized arguments: --batch-size=64; a config field is set by --set optim.batch",
        ),
        (
            "--preset digits --size 9",
            "unrecognized arguments: --size 9; a config field is set by --set views.size=9 or",
        ),
        ("--preset digits --work 2", "unrecognized arguments: --work 2; did you mean --workers?"),
        ("--preset digits --xyzzy 2", "unrecognized arguments: --xyzzy 2; see --help"),
        ("--preset digits --set preset=digits", "preset: no such field of a run's config; a con"),
        (
            "--preset digits --set schedule.epochs=3 --set schedule.warmup_epochs=4",
            "schedule.warmup_epochs=4 exceeds schedule.epochs=3: set schedule.warmup_epochs to 3 o",
        ),
        (
            "--preset digits --set schedule.epochs=3 --set schedule.group_start=3",
            "schedule.group_start=3 is not before the end at schedule.epochs=3: lower it",
        ),
        (
            "--preset digits --gpus-per-worker 99",
            "gpus_per_worker=99: 1 worker needs 99 GPUs, this machine has ",
        ),
        ("--preset digits --set optim.lr", "--set optim.lr: write field=value, for example optim"),
        ("--preset digits --set optm.lr=1", "optm.lr: no such field; did you mean optim.lr?"),
        ("--preset digits --set epochs=9", "epochs: no such field; did you mean schedule.epochs?"),
        (
            "--preset digits --set neighborhood.k1=2 --set neighborhood.k2=3",
            "neighborhood.k2=3 exceeds neighborhood.k1=2: lower k2 or raise k1",
        ),
        (
            "--preset digits --set neighborhood.k=129",
            "neighborhood.k=129 exceeds the neighbour pool of 128 rows: lower it, or raise optim.b",
        ),
        (
            "--preset digits --set optim.batch_size=2000",
            "optim.batch_size=2000 exceeds the 1797 images: lower it or add images",
        ),
        (
            "--preset digits --set clustering.num_clusters=1798",
            "clustering.num_clusters=1798 exceeds the 1797 images: lower it or add images",
        ),
        ("--preset digits --set data.limit=1798", "data.limit=1798: there are 1797 images; lower"),
        (
            "--preset digits --set data.stored_size=50000",
            "data.stored_size=50000: input should be less than or equal to 4096",
        ),
        ("--preset digits --set data.splits=[test]", "data.splits=test: data.source=digits does "),
        (
            "--preset cifar10 --set data.download=false --set data.path=/nowhere",
            "data.path=/nowhere: cifar10 is missing (no data_batch_1); set data.download=true",
        ),
        ("--config /nowhere/config.yaml", "--config /nowhere/config.yaml: No such file or direc"),
        ("--preset digits --init /no/w.pt", "model.init=/no/w.pt: there is no such file: give one"),
        ("--preset digits --init /no", "model.init=/no: /no is not a run: give a run that this"),
        ("--preset digits --init a --set model.init=b", "--init sets model.init: leave out --set"),
        ("--preset digits --resume", "--resume needs --name, the run or search to resume"),
        ("--preset digits --name a/b", "--name a/b: give a single folder name, without / or"),
        ("--preset digits --name ..", "--name ..: give a single folder name, without / or leadin"),
    ],
)
def test_train_refuses(refuse: Refuse, arguments: str, message: str, local: bool) -> None:
    words = [*arguments.split(), *(["--local"] if local else [])]
    assert refuse(conr_ray.train, *words).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Port 1 is one that nobody listens at.
        ("--address 127.0.0.1:1", "address=127.0.0.1:1: no Ray cluster there: "),
        ("--address=ray://127.0.0.1:1", "address=ray://127.0.0.1:1: no Ray cluster there: "),
        ("--autoscaling", "autoscaling needs a cluster: give its address"),
        ("--cpus-per-worker 0", "cpus_per_worker=0: give 1 or more"),
        ("--gpus-per-worker -1", "gpus_per_worker=-1: give 0 or more"),
        ("--hang-limit=-1", "argument --hang-limit: -1 is no number of seconds: give 0 or more"),
        ("--hang-limit nan", "argument --hang-limit: nan is no number of seconds: give 0 or more"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_at_once(
    refuse: Refuse, arguments: str, message: str
) -> None:
    space = ["--space", str(DIGITS_SPACE)]
    assert refuse(conr_ray.tune, *space, *arguments.split()).startswith(message)
    assert refuse(conr_ray.train, "--preset", "digits", *arguments.split()).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--autoscaling", "autoscaling needs a cluster: give its address"),
        ("--gpus-per-worker 99", "gpus_per_worker=99: 1 worker needs 99 GPUs, this machine has "),
        ("--workers 65", "--workers 65 is not between 1 and 64"),
        ("--set data.limit=1798", "data.limit=1798: there are 1797 images"),
        ("--set data.limit=100", "optim.batch_size=128 exceeds the 100 images"),
    ],
)
def test_a_plan_refuses_what_a_search_would(refuse: Refuse, arguments: str, message: str) -> None:
    words = ["--space", str(DIGITS_SPACE), "--plan", *arguments.split()]
    assert refuse(conr_ray.tune, *words).startswith(message)


@pytest.mark.parametrize(
    "arguments", ["--preset digits --address auto", "--check"], ids=["address", "check"]
)
def test_local_is_without_a_cluster(refuse: Refuse, arguments: str) -> None:
    message = "--local trains without Ray: leave out --address and --check"
    assert refuse(conr_ray.train, "--local", *arguments.split()) == message


def test_local_has_no_locks_in_a_bucket(refuse: Refuse, s3_bucket: str) -> None:
    command = f"--preset digits --local --trunks {s3_bucket}/trunks --storage {s3_bucket}"
    message = "--local cannot lock --trunks in a bucket: leave out --local"
    assert refuse(conr_ray.train, *command.split()) == message


@pytest.mark.parametrize("workers", ["0", "-1", "65"])
def test_train_refuses_a_number_of_workers(refuse: Refuse, workers: str) -> None:
    message = refuse(conr_ray.train, "--preset", "digits", "--workers", workers)
    assert message.startswith(f"--workers {workers} is not between 1 and 64, half of optim.batch_s")


def test_train_refuses_workers_that_would_split_a_group_of_batch_normalisation(
    refuse: Refuse,
) -> None:
    options = ("--preset", "digits", "--workers", "3", "--set", "model.norm_batch=32")
    assert refuse(conr_ray.train, *options) == (
        "--workers 3 would split rows that model.norm_batch=32 takes together: use 1, 2 or 4, or "
        "leave model.norm_batch unset"
    )


def test_workers_are_a_number(refuse: Refuse) -> None:
    message = refuse(conr_ray.train, "--preset", "digits", "--workers", "two")
    assert message == "argument --workers: invalid int value: 'two'; see --help"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: [", "not YAML"),
        ("optim: 3", "optim=3: a section, not a value"),
        (
            "preset: digits\noptim: {lr: 0.1}",
            "give --preset NAME instead, with --set for what diff",
        ),
        ("search: {seed: {int: [0, 9]}}", "a search space: give it to conr_ray.tune --space"),
        ("neighbourhood: {k1: 3}", "neighbourhood: no such field; did you mean neighborhood?"),
        ("", "config.yaml: is empty: restore it, or write it anew"),
        ("data: {}", "data.name is not set: data.source=torchvision needs a name such as cifar10"),
    ],
)
def test_train_refuses_a_config_file(
    refuse: Refuse, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert message in refuse(conr_ray.train, "--config", str(tmp_path / "config.yaml"))


# Data


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "data.path={path}: no such file; name a Parquet file"),
        ("corrupt", "data.path={path}: not a Parquet file ("),
        ("cut", "data.path={path}: not a Parquet file ("),
        ("broken_image", "data.path={path}: row 137 cannot be decoded ("),
        ("no_image", "data.path={path}: row 3 cannot be decoded (unknown image format); remove "),
        ("other_column", "data.image_column=image: {path} has no such column; choose from pictur"),
        ("no_rows", "data.path={path}: no rows; name a file with rows"),
    ],
)
def test_train_refuses_bad_data(
    refuse: Refuse, files: dict[str, str], name: str, message: str
) -> None:
    told = refuse(conr_ray.train, "--preset", "digits", *of_parquet(files[name]))
    assert told.startswith(message.format(path=files[name]))


def test_names_of_files_and_columns_cannot_write_lines_or_to_a_terminal(
    refuse: Refuse, tmp_path: Path
) -> None:
    name = "a\n\x1b[31merror: \u202e.png"
    (tmp_path / name).write_bytes(b"text")
    settings = {"data.source": "folder", "data.path": str(tmp_path)}
    words = [word for field in settings.items() for word in ("--set", "=".join(field))]
    told = refuse(conr_ray.train, "--preset", "digits", *words)
    assert told.isprintable()
    assert f"data.path={tmp_path}: row 0 (a\\u000a\\u001b[31merror: \\u202e.png) cannot be" in told
    pq.write_table(pa.table({"a\nb\x07": [1]}), tmp_path / "f.parquet")
    told = refuse(conr_ray.train, "--preset", "digits", *of_parquet(str(tmp_path / "f.parquet")))
    assert told.isprintable() and "choose from a\\nb\\x07" in told


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clustering.num_clusters": 201}, "clustering.num_clusters=201 exceeds the 200 images"),
        ({"optim.batch_size": 201}, "optim.batch_size=201 exceeds the 200 images: lower it or ad"),
        ({"data.label_column": "class"}, "data.label_column=class: there is no such column; choo"),
    ],
)
def test_train_refuses_settings_that_do_not_fit_the_data(
    refuse: Refuse, files: dict[str, str], fields: dict[str, Any], message: str
) -> None:
    settings = of_parquet(files["labelled"], **fields)
    assert refuse(conr_ray.train, "--preset", "digits", *settings).startswith(message)


@pytest.mark.parametrize("name", ["unlabelled", "unlabelled_by_value"])
def test_without_labels_the_number_of_clusters_must_be_set(
    refuse: Refuse, files: dict[str, str], name: str
) -> None:
    settings = of_parquet(files[name], **{"clustering.num_clusters": "null"})
    told = refuse(conr_ray.train, "--preset", "digits", *settings)
    assert told == "clustering.num_clusters is not set and the images have no labels: set it"


# Directories that hold something


@pytest.fixture
def claimed(storage: Path) -> Path:
    """A stopped run of digits."""
    directory = RunDirectory(storage / "first")
    directory.claim(load_preset("digits"), resume=False)
    return storage / "first"


def test_an_existing_run_is_not_overwritten(refuse: Refuse, claimed: Path) -> None:
    told = refuse(conr_ray.train, "--preset", "digits", "--name", "first")
    assert told == f"{claimed} holds this run: add --resume, or choose another --name"


def test_another_run_is_not_resumed(refuse: Refuse, claimed: Path) -> None:
    arguments = ["--preset", "digits", "--name", "first", "--resume", "--set", "neighborhood.k=9"]
    told = refuse(conr_ray.train, *arguments)
    expected = f"{claimed} holds another run (neighborhood.k: 10 -> 9): choose another --name"
    assert told == expected


def test_a_run_that_another_command_trains_keeps_its_epochs(refuse: Refuse, claimed: Path) -> None:
    arguments = ["--local", "--name", "first", "--resume", "--set", "schedule.epochs=99"]
    with RunDirectory(claimed).held():
        told = refuse(conr_ray.train, "--preset", "digits", *arguments)
    assert told == f"{claimed}: another process trains this run: stop it first"
    assert RunDirectory(claimed).read_config() == load_preset("digits")


def test_train_refuses_to_resume_what_is_not_there(refuse: Refuse, claimed: Path) -> None:
    refuse(conr_ray.train, "--preset", "digits", "--name", "frist", "--resume")


def test_tune_refuses_to_resume_what_is_not_there(refuse: Refuse, storage: Path) -> None:
    told = refuse(conr_ray.tune, "--space", str(DIGITS_SPACE), "--name", "frist", "--resume")
    assert told == f"{storage}/frist holds no search to resume: check the folder and name"


def test_another_search_is_not_resumed(refuse: Refuse, storage: Path, tmp_path: Path) -> None:
    arguments = space_file(tmp_path, {"preset": "digits", "metric": "acc", "search": SEARCH})
    directory = SearchDirectory(Folder(storage / "first"))
    directory.claim(load_space(arguments[1]), resume=False)
    told = refuse(conr_ray.tune, *arguments, "--name", "first")
    assert told == f"{directory.uri} holds this search: add --resume, or choose another --name"
    for more in ([], ["--resume"]):
        words = [*arguments, "--name", "first", "--set", "seed=1", *more]
        told = refuse(conr_ray.tune, *words)
        expected = f"{directory.uri} holds another search (fixed differs): choose another --name"
        assert told == expected


def test_a_search_of_another_preset_is_not_resumed(
    refuse: Refuse, storage: Path, files: dict[str, str], tmp_path: Path
) -> None:
    space = space_file(tmp_path, {"preset": "digits", "metric": "acc", "search": SEARCH})
    fields = of_parquet(files["labelled"], **{"optim.batch_size": 64})
    arguments = [*space, *fields, "--name", "first", "--resume"]
    directory = SearchDirectory(Folder(storage / "first"))
    directory.claim(load_space(space[1], parse_overrides(fields[1::2])), resume=False)
    told = refuse(conr_ray.tune, *arguments, "--preset", "fashion_mnist")
    expected = f"{directory.uri} holds another search (preset differs): choose another --name"
    assert told == expected


@pytest.mark.parametrize(
    ("text", "message"), [("optim: 3", "optim=3: a section, not a value"), ("[", "not YAML")]
)
def test_a_damaged_config_of_an_old_run_is_told(
    refuse: Refuse, claimed: Path, text: str, message: str
) -> None:
    (claimed / "config.yaml").write_text(text)
    arguments = ["--preset", "digits", "--name", "first", "--resume"]
    assert message in refuse(conr_ray.train, *arguments)


@pytest.mark.parametrize("storage_text", ["{file}", "foo://bucket"])
def test_a_storage_that_cannot_be_written_is_told(
    refuse: Refuse, tmp_path: Path, storage_text: str
) -> None:
    (tmp_path / "file").write_text("")
    text = storage_text.format(file=tmp_path / "file")
    told = refuse(conr_ray.train, "--preset", "digits", "--storage", text)
    assert told.startswith(f"--storage: {text}")


# tune


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("preset: [", "not YAML: "),
        ("- preset", "a space is a mapping with preset and search"),
        ({"preset": "digits", "search": SEARCH, "trails": 3}, "trails: no such key"),
        (
            {"preset": "digits", "search": SEARCH, "fixed": {"neighborhood.k1": 5}},
            "neighborhood.k1 is both fixed (5) and searched: drop one of the two",
        ),
        ({"preset": "digts", "search": SEARCH}, "preset digts: no such preset; did you mean digi"),
        (
            {"preset": "digits", "search": {"neighborhood.k": {"int": [5, 500]}}},
            "the space has points that cannot run: neighborhood.k=500 exceeds the neighbour pool",
        ),
        (
            {"preset": "digits", "search": SEARCH, "fixed": {"optim.batch_size": 2000}},
            "optim.batch_size=2000 exceeds the 1797 images: lower it or add images",
        ),
        (
            {"preset": "digits", "search": {"optim.batch_size": {"choice": [128, 4096]}}},
            "the space has points that cannot run: optim.batch_size=4096 exceeds the 1797 images",
        ),
        (
            {"preset": "digits", "search": {"model.init": {"choice": [None, "/no/w.pt"]}}},
            "the space has points that cannot run: model.init=/no/w.pt: there is no such file",
        ),
        (
            {"preset": "digits", "search": {"model.init": {"choice": [None, "w.pt"]}}},
            "model.init=w.pt: trials have other working folders: give an absolute path",
        ),
        (
            {"preset": "digits", "search": SEARCH, "fixed": {"model.init": "/no/w.pt"}},
            "model.init=/no/w.pt: there is no such file",
        ),
        (
            {"preset": "digits", "search": SEARCH, "fixed": {"clustering.ids_of": "/no/run"}},
            "clustering.ids_of=/no/run: there are no clusters (no assignments.parquet): give the",
        ),
    ],
)
def test_tune_refuses_a_space(refuse: Refuse, tmp_path: Path, tree: Any, message: str) -> None:
    assert message in refuse(conr_ray.tune, *space_file(tmp_path, tree))


def test_tune_refuses_clusters_of_other_samples(refuse: Refuse, tmp_path: Path) -> None:
    table = pa.table({"sample_id": [10**6], "cluster": [0]})
    pq.write_table(table, tmp_path / "assignments.parquet")
    tree = {
        "preset": "digits",
        "search": SEARCH,
        "fixed": {"clustering.ids_of": str(tmp_path)},
    }
    said = refuse(conr_ray.tune, *space_file(tmp_path, tree))
    assert "no sample is in both: its first sample_id is 1000000, here it is 0" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --space; see --help"),
        ("--space /nowhere.yaml", "space /nowhere.yaml: No such file or directory; see search"),
        ("--space {space} --set seeed=1", "seeed: no such field; did you mean seed?"),
        ("--space {space} --set neighborhood.k1=5", "neighborhood.k1 is both fixed (5) and searc"),
        ("--space {space} --preset digts", "preset digts: no such preset; did you mean digits?"),
        ("--space {space} --max-concurrent 0", "--max-concurrent 0: give 1 or more"),
        ("--space {space} --gpus-per-worker -1", "gpus_per_worker=-1: give 0 or more"),
        ("--space {space} --study nonsense://x", "the study database cannot be read: "),
        ("--space {space} --trunks ftp://x/y", "--trunks: ftp://x/y cannot be opened: "),
        ("--space {space} --trunks /proc/x", "--trunks: /proc"),
        (
            "--space {space} --trunks {space}",
            "--trunks: {space}: {space} is not a writable folder",
        ),
        ("--space {space} --workers 0", "--workers 0: give 1 or more"),
        ("--space {space} --workers 65", "--workers 65 is not between 1 and 64, half of optim.ba"),
        ("--space {space} --resume", "--resume needs --name, the run or search to resume"),
        ("--space {space} --name a/b", "--name a/b: give a single folder name, without / or"),
    ],
)
def test_tune_refuses(refuse: Refuse, arguments: str, message: str) -> None:
    words = arguments.format(space=DIGITS_SPACE).split()
    assert refuse(conr_ray.tune, *words).startswith(message.format(space=DIGITS_SPACE))


def test_a_study_in_a_database_is_not_forgotten(refuse: Refuse, storage: Path) -> None:
    arguments = ["--space", str(DIGITS_SPACE), "--name", "first", "--resume"]
    directory = SearchDirectory(Folder(storage / "first"))
    directory.claim(load_space(DIGITS_SPACE), resume=False)
    (Path(directory.uri) / "trials").mkdir()
    told = refuse(conr_ray.tune, *arguments)
    assert told == f"{directory.uri}: its study is in a database: give the study's URL"
    (Path(directory.uri) / "study.journal").touch()
    told = refuse(conr_ray.tune, *arguments, "--study", "sqlite:///nowhere.db")
    assert told.startswith(f"the study of this search is {directory.uri}/study.journal")


def test_a_study_of_the_same_name_is_not_taken_over(
    refuse: Refuse, storage: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    space = load_space(DIGITS_SPACE)
    SearchDirectory(Folder(tmp_path / "elsewhere" / "first"), url).open_study(space)
    arguments = ["--space", str(DIGITS_SPACE), "--name", "first", "--study", url]
    told = refuse(conr_ray.tune, *arguments)
    assert told == "the study database has a search called first already: choose another name"
    # Nothing that is refused leaves a study behind.
    refuse(conr_ray.tune, *arguments, "--name", "second", "--trunks", "ftp://x/y")
    assert optuna.get_all_study_names(url) == ["first"]


@pytest.mark.parametrize("trials", ["0", "-1"])
def test_tune_refuses_a_number_of_trials(refuse: Refuse, trials: str) -> None:
    arguments = ["--space", str(DIGITS_SPACE), "--trials", trials]
    assert f"--trials {trials}" in refuse(conr_ray.tune, *arguments)


@pytest.mark.parametrize("metric", ["nmi", "acc", "ari", "neighbor_purity"])
def test_a_metric_of_labels_needs_labels(
    refuse: Refuse, files: dict[str, str], tmp_path: Path, metric: str
) -> None:
    fixed = {"data.source": "parquet", "data.path": files["unlabelled"]}
    tree = {"preset": "digits", "metric": metric, "fixed": fixed, "search": SEARCH}
    told = refuse(conr_ray.tune, *space_file(tmp_path, tree))
    expected = f"metric={metric} needs labels and the data have none: set metric: "
    assert told == expected + "neighbor_consistency"


# The processes themselves


@pytest.mark.slow
def test_processes_leave_with_status_2_and_one_line(tmp_path: Path, cache: Path) -> None:
    environment = {**os.environ, "CONR_RAY_CACHE": str(cache)}
    commands = {
        "train": ["--preset", "digits", "--set", "neighborhood.k=500"],
        "tune": ["--space", str(tmp_path / "absent.yaml")],
    }
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"conr_ray.{name}", "--storage", str(tmp_path / "runs"), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, words in commands.items()
    }
    for process in processes.values():
        out, err = process.communicate(timeout=HANG_S)
        assert (process.returncode, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# What is said beforehand


def test_more_workers_than_cores_are_told_of_in_a_line() -> None:
    cores = usable_cores()
    assert crowded(WorkerResources(cores, 1)) is None
    told = crowded(WorkerResources(32 * cores, 1))
    assert told is not None and told.startswith(f"{32 * cores} x 1 cores are asked for, this mach")


@pytest.mark.parametrize("command", ["train", "tune"])
def test_help_lists_the_presets(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = {"train": conr_ray.train, "tune": conr_ray.tune}[command]
    with pytest.raises(SystemExit):
        module.main(["--help"])
    listed = capsys.readouterr().out.partition("\npresets:\n")[2]
    names = [line.split()[0] for line in listed.splitlines() if line[2:3].strip()]
    assert names == preset_names()


def test_a_gpu_that_is_not_there_is_refused_before_torch_is_loaded() -> None:
    code = (
        "import sys, conr_ray.train as t\n"
        "try: t.main(['--preset', 'digits', '--gpus-per-worker', '99'])\n"
        "except ValueError as e: print(e, sorted({'torch', 'ray'} & {*sys.modules}))"
    )
    if local_gpus():
        pytest.skip("only torch knows how many GPUs there are")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith(" a cluster that has them []\n"), done.stderr
