"""What `conr_ray.curate` has found, on the pages of a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import conr_ray.curate
from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.session import Session
from conr_ray.edits.log import JUNK
from conr_ray.errors import UserError
from tests.browsing.conftest import TOKEN, client_of, png
from tests.browsing.test_server import said


def groups(session: Session) -> list[list[int]]:
    found = session.found("duplicate")
    return [[one.row for one in found if one.group == g] for g in {one.group for one in found}]


def test_copies_are_junk_in_one_step_but_for_those_to_keep(curated: Path) -> None:
    rows = pq.read_table(curated / "curation.parquet").to_pylist()
    of_copies = [row for row in rows if row["kind"] == "duplicate"]
    kept = {row["index"] for row in of_copies if row["keep"]}
    with Session(open_collection(str(curated))) as session:
        assert {0, 300, 301} in map(set, groups(session))
        assert {one.row for one in session.found("duplicate") if one.keep} == kept
        page = client_of(session)
        text = page.get(f"/?token={TOKEN}").text
        assert '"/found/duplicate"' in text and '"/found/wrong-member"' in text
        text = page.get("/found/duplicate").text
        assert text.count('class="keep"') == len(kept)
        spare = {row["index"] for row in of_copies} - kept
        assert f"Mark all {len(spare)} copies as junk" in text
        answer = page.post("/edit", data={"do": "junk_found", "kind": "duplicate"})
        assert f"moved {len(spare)} images to junk" in said(answer.text)
        assert set(session.members(JUNK, 0, 999).tolist()) == spare
        assert "Nothing is left" in page.get("/found/duplicate").text
        assert len(session.log.steps) == 1
        session.undo()
        assert len(session.found("duplicate")) == len(of_copies)
    assert pq.read_table(curated / "edits.parquet").num_rows == 2


def test_the_next_is_kept_where_the_one_to_keep_is_junk(curated: Path) -> None:
    with Session(open_collection(str(curated))) as session:
        first = next(one for one in session.found("duplicate") if one.row in (0, 300, 301))
        session.move([first.row], JUNK)
        left = [one for one in session.found("duplicate") if one.group == first.group]
        assert len(left) == 2 and [one.keep for one in left] == [True, False]
        session.move([left[0].row], JUNK)
        assert all(one.group != first.group for one in session.found("duplicate"))
        session.junk_found("duplicate")
        assert session.cluster_of(left[1].row) != JUNK


def test_wrong_members_are_gone_when_they_are_where_their_context_is(curated: Path) -> None:
    rows = pq.read_table(curated / "curation.parquet").to_pylist()
    wanted = {row["index"]: row["group"] for row in rows if row["kind"] == "wrong member"}
    with Session(open_collection(str(curated))) as session:
        found = session.found("wrong member")
        assert {one.row: one.group for one in found} == wanted
        one = found[0]
        assert one.note.endswith(f"its context in cluster {one.group}")
        session.move([one.row], one.group)
        assert one.row not in {other.row for other in session.found("wrong member")}
        session.undo()
        # Where clusters are merged, what differs between them is no error any more.
        session.merge([session.cluster_of(one.row), one.group])
        assert one.row not in {other.row for other in session.found("wrong member")}


def test_blank_pictures_and_kinds_that_are_not_there(curated: Path) -> None:
    with Session(open_collection(str(curated))) as session:
        assert [one.row for one in session.found("blank")] == [303]
        page = client_of(session)
        page.get(f"/?token={TOKEN}")
        assert "Mark all 1 as junk" in page.get("/found/blank").text
        answer = page.get("/found/lost")
        assert answer.status_code == 404 and "nothing of this kind" in answer.text
        answer = page.post("/edit", data={"do": "junk_found", "kind": "broken"})
        assert "nothing of this kind" in said(answer.text)


def test_the_findings_of_another_folder_are_about_its_run(curated: Path, tmp_path: Path) -> None:
    conr_ray.curate.main(["--run", str(curated), "--out", str(tmp_path / "clean")])
    (curated / "curation.parquet").unlink()
    with Session(open_collection(str(tmp_path / "clean"))) as session:
        session.junk_found("blank")
    assert (curated / "edits.parquet").exists() and not (tmp_path / "clean/edits.parquet").exists()
    with Session(open_collection(str(curated))) as session:
        assert session.findings.kinds == {} and session.cluster_of(303) == JUNK
    shutil.rmtree(curated)
    with pytest.raises(UserError, match="is about the run"):
        open_collection(str(tmp_path / "clean"))


def test_findings_of_other_samples_are_refused(curated: Path) -> None:
    table = pq.read_table(curated / "curation.parquet")
    pq.write_table(table.drop_columns(["sample_id"]), curated / "curation.parquet")
    with pytest.raises(UserError, match="no findings about these samples"):
        Session(open_collection(str(curated)))


def test_vectors_with_pictures_of_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    pixels = [
        rng.integers(0, 256, (12, 12, 3), np.uint8).repeat(4, 0).repeat(4, 1) for _ in "x" * 40
    ]
    pixels[39] = pixels[5]
    names = [f"{place}.png" for place in range(41)]
    for name, one in zip(names, pixels, strict=False):
        (tmp_path / "photos" / name).write_bytes(png(one))
    (tmp_path / "photos/40.png").write_bytes(b"no picture")
    vectors = rng.normal(size=(41, 6)).astype(np.float32)
    vectors[39] = vectors[5]
    place = tmp_path / "v.parquet"
    pq.write_table(pa.table({"embedding": list(vectors), "path": names}), place)
    arguments = ["--vectors", str(place), "--images", str(tmp_path / "photos")]
    conr_ray.curate.main([*arguments, "--out", str(tmp_path / "clean")])
    with Session(open_collection(str(tmp_path / "clean"))) as session:
        assert [one.size for one in session.clusters] == [41]
        assert groups(session) == [[5, 39]] or groups(session) == [[39, 5]]
        assert [one.row for one in session.found("broken")] == [40]
        page = client_of(session)
        page.get(f"/?token={TOKEN}")
        text = page.get("/found/broken").text
        assert re.search(r'class="found">[^<]+<', text)
        assert page.get("/thumb/any/5").content[:2] == b"\xff\xd8"
        assert session.collection.name(5) == "5.png"
        assert session.neighbors(5, 3)["euclidean"][0] == 39
        assert "vectors of no run" in said(page.post("/search", content=png(pixels[0])).text)
        session.junk_found("duplicate")
        session.split(0)
    with Session(open_collection(str(tmp_path / "clean"))) as session:
        assert sum(one.size for one in session.clusters) == 41
        assert session.clusters[-1].number == JUNK and session.clusters[-1].size == 1
    pq.write_table(pa.table({"embedding": list(vectors[:30]), "path": names[:30]}), place)
    with pytest.raises(UserError, match="30 rows are where 41 were curated"):
        open_collection(str(tmp_path / "clean"))
