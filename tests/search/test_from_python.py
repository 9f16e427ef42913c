"""`conr_ray.search`: its trials are the command's, and it refuses what cannot work at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import ray
import yaml
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits

import conr_ray
import conr_ray.tune
from conr_ray import Clusterer, SearchResult, UserError, search
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space_file import load_space
from conr_ray.storage.files import Folder
from tests.tiny_runs import SHORT, VECTORS, as_settings, without_times
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
K1 = "neighborhood.k1"
SPACE: dict[str, Any] = {"preset": "digits", "trials": 2, "search": {K1: {"int": [5, 20]}}}
EVALUATED = {**SHORT, "evaluation__every": 1}
DIGITS = load_digits()


@pytest.fixture(scope="module")
def callers_ray() -> Iterator[str]:
    """A Ray that this process had before it searched; the id of its job."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().get_job_id()
    ray.shutdown()


@pytest.fixture(scope="module")
def page(callers_ray: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What the example of the page leaves, with fewer epochs and trials, and where it ran."""
    folder = tmp_path_factory.mktemp("page")
    text = (ROOT / "docs" / "python.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "search(" in b)
    # One trial at a time, so that early stopping compares the same trials each time.
    short = 'folder="runs/mine", max_concurrent=1, **EVALUATED'
    block, count = re.subn('folder="runs/mine"', short, block)
    assert count == 2
    block = block.replace('"trials": 8', '"trials": 2').replace("trials=16", "trials=3")
    numpys = {**EVALUATED, "optim__lr": np.float64(0.1), "model__widths": np.array([8, 8])}
    scope = {"load_digits": load_digits, "images": DIGITS.images, "EVALUATED": numpys}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(block, scope)
        yield SimpleNamespace(folder=folder, **scope)


@pytest.mark.slow
def test_the_trials_are_those_of_the_command(page: Any) -> None:
    (page.folder / "space.yaml").write_text(yaml.safe_dump(page.space))
    dotted = {name.replace("__", "."): value for name, value in EVALUATED.items()}
    fields = as_settings({**dotted, "optim.lr": 0.1})
    where = ["--name", "command", "--max-concurrent", "1"]
    conr_ray.tune.main(["--space", str(page.folder / "space.yaml"), *where, *fields])
    command = SearchResult(page.folder / "runs" / "command")

    def told(result: SearchResult) -> tuple[Any, ...]:
        names = [n for n in result.trials if n != "trial_id" and not n.endswith("time_s")]
        runs = [
            RunDirectory(f"{result.folder}/trials/{name}") for name in result.trials["trial_id"]
        ]
        rows = [without_times(run.metric_rows()) for run in runs]
        assigned = [run.read_table("assignments.parquet").to_pydict() for run in runs]
        return result.trials[names].to_dict("list"), rows, assigned

    assert repr(told(command)) == repr(told(page.found))
    np.testing.assert_array_equal(command.best.labels_, page.found.best.labels_)


@pytest.mark.slow
def test_a_search_goes_on_from_python(page: Any, callers_ray: str) -> None:
    first, more = page.found.trials, page.more.trials
    assert len(first) == 2 and len(more) == 3
    # Which are not beaten depends on the others.
    kept = more[more["trial_id"].isin(first["trial_id"])].drop(columns="pareto")
    assert kept.to_dict("list") == first.drop(columns="pareto").to_dict("list")
    assert set(more["number"]) == {0, 1, 2}
    # The caller's Ray is there as before.
    assert ray.is_initialized() and ray.get_runtime_context().get_job_id() == callers_ray


@pytest.mark.slow
def test_the_result_has_all_that_was_found(page: Any) -> None:
    more = page.more
    assert isinstance(more.study, optuna.Study) and len(more.study.trials) == 3
    assert more.study.best_value == more.trials["nmi"].iloc[0] == more.trials["nmi"].max()
    assert more.report() == f"{page.folder}/runs/mine/report.html"
    assert "<html" in (page.folder / "runs/mine/report.html").read_text()[:200]
    best = more.best
    assert isinstance(best, Clusterer)
    np.testing.assert_array_equal(best.predict(DIGITS.images), best.labels_)
    assert best.history_["nmi"].iloc[-1] == more.study.best_value
    # Its settings are those of the trial: trained on its own it is the same.
    assert best.get_params()["neighborhood__k1"] == more.study.best_params[K1]
    again = clone(best).set_params(verbose=False).fit(DIGITS.images, DIGITS.target)
    assert again.history_["loss"].iloc[-1] == pytest.approx(best.history_["loss"].iloc[-1], 1e-3)
    assert f"trial {more.study.best_trial.number} is the best of 3" in repr(more)
    shown = more._repr_html_()
    assert shown.count("<tr") == 4 and f"<th>{K1}</th>" in shown


@pytest.mark.slow
def test_a_folder_with_a_search_is_not_searched_again(page: Any) -> None:
    folder = page.folder / "runs" / "mine"
    known = dict(folder=folder, optim__lr=0.1, **EVALUATED)
    kept = (folder / "samples.parquet").read_bytes()
    same = search(page.space, DIGITS.images, labels=DIGITS.target, resume=True, trials=3, **known)
    assert same.trials.to_dict("list") == page.more.trials.to_dict("list")
    with pytest.raises(UserError, match="this search: give resume=True, or choose another one"):
        search(page.space, DIGITS.images, labels=DIGITS.target, **known)
    with pytest.raises(UserError, match=r"^folder: .*: choose another one$"):
        search(page.space, DIGITS.images[::-1], labels=DIGITS.target, resume=True, **known)
    with pytest.raises(UserError, match=r"another search \(fixed differs\)"):
        search(page.space, resume=True, **{**known, "optim__lr": 1e-3})
    assert (folder / "samples.parquet").read_bytes() == kept


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"space": {**SPACE, "search": {"neighborhood.k11": {"int": [1, 2]}}}}, "did you mean"),
    ({"space": {**SPACE, "sercah": 1}}, "space: sercah: no such key"),
    ({"space": {**SPACE, "fixed": {K1: 3}}}, f"^{K1} is both fixed"),
    ({"space": {**SPACE, "search": {K1: {"choice": range(3)}}}}, "of type range: give"),
    ({"space": {"search": SPACE["search"]}}, "^space: preset: missing: name the preset to vary"),
    ({"space": "nowhere.yaml"}, "^space nowhere.yaml: No such file"),
    ({"space": 3}, "^space=3: give the path of a space file, or a mapping"),
    ({"preset": "digit"}, "did you mean digits?"),
    ({"schedule__epoch": 3}, "did you mean"),
    ({"model__init": "nowhere.pt"}, r"^model\.init=/.*/nowhere\.pt: there is no such file"),
    ({"trials": 0}, "^trials=0: give 1 or more"),
    ({"trials": 2.5}, "^trials=2.5: give a whole number, 1 or more"),
    ({"workers": "two"}, "^workers=two: give a whole number, 1 or more"),
    ({"max_concurrent": 0}, "^max_concurrent=0: give 1 or more"),
    ({"hang_limit": -1}, "^hang_limit=-1: give 0 or more"),
    ({"workers": 99}, "^workers=99 is not between 1 and 15"),
    ({"address": "ray://here:1"}, "^address=ray://here:1: a search runs on the cluster"),
    ({"resume": True}, "holds no search to resume"),
    ({"resume": True, "folder": None}, "^resume=True needs folder"),
    ({"retry_failed": True}, "^retry_failed=True needs resume=True"),
    ({"images": None, "labels": [1, 2]}, "^labels: they are of images"),
    ({"labels": [1, 2]}, "^labels: 2 for 60 samples: give one each"),
    ({"images": VECTORS.tolist()[0]}, "^images of type list: give arrays"),
    ({"images": [["a"]]}, "^images of type list: give arrays"),
    ({"images": np.where(VECTORS > 7, np.nan, VECTORS)}, "^images: row 1 holds NaN"),
    ({"images": "nowhere.parquet"}, "^images=nowhere.parquet: "),
    ({"images": VECTORS[:5]}, "^5 samples: give 10 or more"),
    ({"space": {**SPACE, "metric": "nmi"}}, "^metric=nmi needs labels"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    arguments = {
        "space": SPACE,
        "images": VECTORS,
        "folder": tmp_path / "new",
        **EVALUATED,
        **changes,
    }
    with pytest.raises(UserError, match=told) as refused:
        search(**arguments)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^folder: .*file/new"):
        search(SPACE, VECTORS, folder=tmp_path / "file" / "new", **EVALUATED)
    with pytest.raises(UserError, match=r"^trunks: .* is not a writable folder"):
        search(SPACE, VECTORS, folder=tmp_path / "new", trunks=tmp_path / "file", **EVALUATED)
    with pytest.raises(UserError, match="holds no search: give the folder of one"):
        SearchResult(tmp_path / "nothing")


@pytest.mark.parametrize("file", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=str)
def test_a_mapping_is_read_as_its_file(file: Path) -> None:
    tree = yaml.safe_load(file.read_text())
    assert load_space(tree) == load_space(file)


@pytest.mark.long
def test_a_search_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    arguments = f"{SPACE!r}, folder='found', trials=TRIALS, **{EVALUATED!r}"
    code = f"from conr_ray import search; print(len(search({arguments}, resume=RESUME).trials))"
    start = [sys.executable, "-u", "-c"]
    options: dict[str, Any] = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE}
    options["env"] = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = code.replace("TRIALS", "50").replace("RESUME", "False")
    with subprocess.Popen([*start, first], **options, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("trial 1/50 complete"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=HANG_S)
    assert told.rstrip().endswith(
        f"KeyboardInterrupt: to go on, search again with folder='{tmp_path}/found', resume=True"
    )
    ended = len(SearchResult(tmp_path / "found").trials)
    assert 1 <= ended < 50
    again = code.replace("TRIALS", str(ended + 1)).replace("RESUME", "True")
    done = subprocess.run([*start, again], **options, timeout=HANG_S)
    assert done.stdout.splitlines()[-1] == str(ended + 1)


@pytest.mark.long
def test_a_script_searches_a_folder_into_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    """Without a guard for its main module, and on a Ray of its own."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(DIGITS.images[:60]):
        picture = Image.fromarray(np.round(image * 255 / 16).astype(np.uint8))
        picture.save(tmp_path / "photos" / f"{number:02}.png")
    script = f"""
        import ray
        from conr_ray import search
        place = dict(folder="{s3_bucket}/found", verbose=False, **{EVALUATED!r})
        found = search({SPACE!r}, "photos", **place)
        assert not ray.is_initialized()
        more = search({SPACE!r}, resume=True, trials=3, **place)
        assert len(found.trials) == 2 and len(more.trials) == 3
        print(more.folder, len(more.best.predict("photos")), more.best.score("photos"))
        vectors = search({SPACE!r}, more.best.transform("photos"), verbose=False, **{EVALUATED!r})
        assert len(vectors.best.labels_) == 60
        print(vectors.folder)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    bucket, local = done.stdout.splitlines()
    assert bucket.startswith(f"{s3_bucket}/found 60 ")
    assert Path(local).parent == tmp_path / "runs" and Path(local).name.startswith("search-")
    assert SearchDirectory(Folder(local)).read_space() is not None
