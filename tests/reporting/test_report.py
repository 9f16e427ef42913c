from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import conr_ray.report
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from tests.reporting.made_searches import FRACTION, K1_K2, SEEDS, make_search
from tests.reporting.pages import Page


def report(*arguments: object) -> Page:
    """The page that the command writes."""
    words = [str(word) for word in arguments]
    conr_ray.report.main(words)
    out = words[words.index("--out") + 1] if "--out" in words else f"{words[0]}/report.html"
    return Page(Path(out).read_text())


def test_the_page_of_a_search_has_all_its_parts(tmp_path: Path) -> None:
    states = ("complete",) * 6 + ("stopped", "failed")
    make_search(tmp_path / "mine", states)
    page = report(tmp_path / "mine")
    assert page.sections == ["trials", "curves", "fields", "effects", "scores", "cost", "space"]
    assert page.all("html", lang="en") and page.all("main") and page.all("nav")
    assert len(page.all("h1")) == 1 and "mine" in page.text
    assert "6 complete, 1 stopped, 1 failed" in page.text
    assert "no luck 7" in page.text
    assert "Spearman's rank correlation is 1.00" in page.text
    assert "neighborhood.k1" in page.text
    # Nothing is fetched: no element names another file.
    assert not page.all("link")
    assert all(not one.get("src", "data:").startswith("http") for _, one in page.elements)
    assert not [one for tag, one in page.elements if tag == "script" and "src" in one]
    # Each chart says in words what it shows.
    charts = page.all("div", role="img")
    captions = {one["id"] for one in page.all("figcaption") if "id" in one}
    assert charts and {one["aria-labelledby"] for one in charts} == captions
    assert len(page.charts) == len(charts)
    assert not page.all("meta", http_equiv="refresh")


def test_headings_are_in_order(tmp_path: Path, finished_run: Path) -> None:
    make_search(tmp_path / "mine")
    for page in (report(tmp_path / "mine"), report(finished_run, "--out", tmp_path / "r.html")):
        levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_of_a_run_has_curves_and_figures(finished_run: Path, tmp_path: Path) -> None:
    page = report(finished_run, "--out", tmp_path / "run.html")
    assert page.sections == ["clusters", "curves", "figures", "config"]
    assert "ACC" in page.text and "group_start: 2" in page.text
    images = page.all("img")
    assert len(images) >= 10 + 10 * 20
    assert all(
        one["alt"] and one["src"].startswith("data:image/png;base64,iVBOR") for one in images
    )
    assert any("not among the Euclidean ones" in one["alt"] for one in images)
    assert any("of another class" in one["alt"] for one in images)
    assert "accuracy of" in page.text and "hard positives" in page.text
    assert (finished_run / "snapshot" / "map.parquet").exists()
    clusters, classes = next(views for views in page.charts if len(views) == 2)
    assert len(clusters["figure"]["data"]) == 10 and len(classes["figure"]["data"]) == 10


def test_what_users_named_cannot_become_markup(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>run</b>"
    shutil.copytree(finished_run, folder)
    summary = json.loads((folder / "snapshot/summary.json").read_text())
    odd = ["<script>alert(1)</script>", "</script>", "$\\LaTeX$", "a\n\x00\ud800", "x" * 300]
    summary["class_names"] = [*odd, *summary["class_names"][len(odd) :]]
    (folder / "snapshot/summary.json").write_text(json.dumps(summary))
    page = report(folder, "--out", tmp_path / "run.html")
    html = (tmp_path / "run.html").read_text()
    assert "<script>alert" not in html and "<b>run" not in html
    assert "<script>alert(1)</script>" in page.text
    assert "$\\LaTeX$" in page.text and "a\\n\\x00\\ud800" in page.text
    # A chart shows tags that it knows as such: there they are letters too.
    assert any("&lt;script&gt;alert(1)" in json.dumps(views) for views in page.charts)
    assert not any("<script" in json.dumps(views) for views in page.charts)


def test_trial_values_cannot_become_markup(tmp_path: Path) -> None:
    evil = '</script><img src=x onerror="alert(1)">'
    fields = {"data.label_column": {"choice": [evil, "other"]}}
    make_search(tmp_path / "mine", fields=fields, first=[{"data.label_column": evil}])
    page = report(tmp_path / "mine")
    assert evil in page.text
    assert not page.all("img")


def test_passwords_in_uris_are_not_shown(tmp_path: Path) -> None:
    uri = "s3://me:pa55w0rd@bucket/images.parquet"
    fields = {"data.path": {"choice": [uri, "s3://bucket/b"]}, **FRACTION}
    first = [{"data.path": uri}]
    make_search(tmp_path / "mine", fields=fields, first=first, preset="cifar10", start=12)
    report(tmp_path / "mine")
    html = (tmp_path / "mine/report.html").read_text()
    assert "pa55w0rd" not in html
    assert "s3://bucket/images.parquet" in html


def test_without_labels_scores_take_the_place_of_acc(tmp_path: Path, finished_run: Path) -> None:
    make_search(tmp_path / "mine", metric="label_free", labelled=False)
    page = report(tmp_path / "mine")
    assert "scores" not in page.sections and "ACC" not in page.text
    assert "best label-free score" in page.text

    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "snapshot/confusion.parquet").unlink()
    for name, columns in (("samples", ["label"]), ("neighbors", ["right", "hard"])):
        file = folder / f"snapshot/{name}.parquet"
        table = pq.read_table(file)
        for column in columns:
            place = table.column_names.index(column)
            empty = pa.nulls(len(table), table.schema.field(column).type)
            table = table.set_column(place, column, empty)
        pq.write_table(table, file)
    rows = [
        {n: v for n, v in row.items() if n not in ("acc", "nmi", "ari", "neighbor_purity")}
        for row in RunDirectory(folder).metric_rows()
    ]
    RunDirectory(folder).write_metrics(rows)
    page = report(folder)
    assert "Sizes of clusters" in page.text and "Confusion" not in page.text
    assert "label-free score" in page.text
    assert not [one for one in page.all("span") if "wrong" in one.get("class", "")]


def test_several_metrics_show_their_pareto_set(tmp_path: Path) -> None:
    make_search(tmp_path / "mine", metric=["nmi", "train_time_s", "ari"])
    page = report(tmp_path / "mine")
    assert "pareto" in page.sections
    assert "trials are in the Pareto set" in page.text


def test_methods_are_compared_where_they_are_searched(tmp_path: Path) -> None:
    fields = {"schedule.group_start": {"choice": [12, "never"]}, **SEEDS}
    first = [{"schedule.group_start": 12}]
    make_search(tmp_path / "a", ("complete",) * 7, fields=fields, sampler="grid", first=first)
    page = report(tmp_path / "a")
    assert "methods" in page.sections
    assert "CoNR 0." in page.text and "Framework alone 0." in page.text


def test_fields_of_the_same_word_are_told_apart(tmp_path: Path) -> None:
    fields = {
        "optim.momentum": {"float": [0.8, 0.95]},
        "byol.momentum": {"float": [0.9, 0.99]},
        "optim.lr": {"float": [0.01, 0.2]},
    }
    make_search(tmp_path / "mine", fields=fields)
    page = report(tmp_path / "mine")
    assert "optim.momentum byol.momentum learning rate" in page.text
    (bars,) = [
        trace
        for views in page.charts
        for trace in views[0]["figure"]["data"]
        if trace["type"] == "bar" and len(trace["y"]) == 3
    ]
    assert set(bars["y"]) == {"optim.momentum", "byol.momentum", "learning rate"}


def test_a_field_without_an_importance_is_told(tmp_path: Path) -> None:
    # The range of k2 depends on k1.
    make_search(tmp_path / "mine", ("complete",) * 12, fields={**K1_K2, **FRACTION})
    assert "Not available for k2" in report(tmp_path / "mine").text


def test_an_empty_search_has_a_page(tmp_path: Path) -> None:
    make_search(tmp_path / "mine", ())
    page = report(tmp_path / "mine")
    assert page.sections == ["trials", "space"]
    assert "no trial has started yet" in page.text


@pytest.mark.parametrize("states", [("running",), ("failed",) * 3, ("stopped", "failed")])
def test_searches_without_a_complete_trial_have_a_page(
    tmp_path: Path, states: tuple[str, ...]
) -> None:
    make_search(tmp_path / "mine", states)
    page = report(tmp_path / "mine")
    assert page.sections[0] == "trials" and page.sections[-1] == "space"


@pytest.mark.parametrize(
    "file", ["samples.parquet", "neighbors.parquet", "pictures.parquet", "summary.json"]
)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_damaged_snapshot_costs_its_figures_only(
    finished_run: Path, tmp_path: Path, file: str, damage: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    if damage == "missing":
        (folder / "snapshot" / file).unlink()
    else:
        (folder / "snapshot" / file).write_bytes(b"{ no")
    page = report(folder)
    assert not page.all("img")
    assert "snapshot" in page.text and len(page.charts) >= 3


def test_a_damaged_table_of_metrics_costs_the_curves_only(
    finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "metrics.parquet").write_bytes(b"no")
    page = report(folder)
    assert "metrics.parquet is damaged" in page.text
    assert page.all("img")


def test_a_table_of_another_version_costs_one_figure(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    file = folder / "snapshot/examples.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["kind"]), file)
    page = report(folder)
    assert "cannot draw the examples" in page.text
    assert len(page.all("img")) == 10 * 21


def test_a_run_stands_beside_its_baseline(
    finished_run: Path, byol_run: Path, tmp_path: Path
) -> None:
    page = report(finished_run, "--baseline", byol_run, "--out", tmp_path / "run.html")
    assert "baseline-curves" in page.sections
    assert "schedule.group_start 2 never" in page.text


def test_a_folder_that_is_neither_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        report(tmp_path / "none")
    with pytest.raises(UserError, match="neither a run"):
        report(tmp_path)
    make_search(tmp_path / "mine", ())
    with pytest.raises(UserError, match=f"such as {tmp_path}/mine"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "give one of"),
        ("a --compare b c", "give one of"),
        ("--compare a b --baseline c", "--baseline has no effect with --compare"),
        ("--compare a b --figures c", "leave out --compare"),
        ("a --figures b --out c", "--out has no effect with --figures"),
        ("a --search b", "--search has no effect with DIR"),
        ("--wandb me/digits", "a search with --search"),
        ("--wandb me --search first", "ENTITY/PROJECT"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        conr_ray.report.main(arguments.split())


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    make_search(tmp_path / "mine", ())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output file"):
        report(tmp_path / "mine", "--out", tmp_path / "file" / "report.html")


def test_the_report_of_a_search_in_a_bucket_lies_in_it(s3_bucket: str, tmp_path: Path) -> None:
    make_search(tmp_path / "mine")
    target = RunDirectory(f"{s3_bucket}/mine")
    for path in (tmp_path / "mine").rglob("*"):
        name = str(path.relative_to(tmp_path / "mine"))
        if path.suffix == ".parquet":
            target.write_table(name, pq.read_table(path))
        elif path.is_file() and not name.startswith("study.journal"):
            target.write_text(name, path.read_text())
    lines = (tmp_path / "mine/study.journal").read_text().splitlines()
    target.write_text("study.journal/000000000000.json", f"[{','.join(lines)}]")
    conr_ray.report.main([target.uri])
    page = Page(target.read_text("report.html") or "")
    assert "6 complete" in page.text and K1_K2.keys() <= set(page.text.replace(":", " ").split())
