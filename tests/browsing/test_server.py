"""The pages of a browser: what they show, what a person does there, and who is refused."""

from __future__ import annotations

import io
import re
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.server import listening
from conr_ray.browsing.session import Session
from conr_ray.data.store import open_data
from conr_ray.edits.log import JUNK
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError
from tests.browsing.conftest import TOKEN, client_of
from tests.tiny_runs import tiny_config


def said(text: str) -> str:
    found = re.search(r'id="said"[^>]*>(.*?)</p>', text, re.S)
    assert found is not None
    return found[1]


def sizes(session: Session) -> dict[int, int]:
    return {one.number: one.size for one in session.clusters}


def test_clusters_are_those_of_the_run(page: TestClient, session: Session, run: Path) -> None:
    table = pq.read_table(run / "assignments.parquet")
    numbers, counts = np.unique(table["cluster"].to_numpy(), return_counts=True)
    assert sizes(session) == dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    largest = session.clusters[0]
    ratios = table["boundary_ratio"].to_numpy()
    inside = np.flatnonzero(table["cluster"].to_numpy() == largest.number)
    surest = session.members(largest.number, 0, 5)
    assert ratios[surest].tolist() == np.sort(ratios[inside])[:5].tolist()
    text = page.get("/").text
    assert f"cluster {largest.number}</a>" in text and f"{largest.size} images" in text
    thumb = page.get(re.findall(r'/thumb/[^"]+', text)[0])
    assert Image.open(io.BytesIO(thumb.content)).size == (8, 8)


def test_steps_are_kept_and_undone(page: TestClient, session: Session, run: Path) -> None:
    before = sizes(session)
    first, second, *_ = before
    rows = session.members(second, 0, 3).tolist()
    for fields, told in (
        ({"do": "rename", "cluster": first, "name": "<b>noughts"}, "&lt;b&gt;noughts"),
        ({"do": "move", "row": rows, "into": "new"}, "3 images are cluster 10 now"),
        ({"do": "merge", "cluster": [first, second]}, "put"),
        ({"do": "junk", "row": rows[:1]}, "moved 1 image to junk"),
    ):
        answer = page.post("/edit", data=fields)
        assert told in said(answer.text)
    after = sizes(session)
    assert after[10] == 2 and after[JUNK] == 1
    assert before[first] + before[second] - 3 in after.values()
    assert "&lt;b&gt;noughts" in page.get("/").text
    assert "noughts" in (run / "names.yaml").read_text()
    session.close()
    # Another browser, later, finds what this one has written.
    with Session(open_collection(str(run))) as again:
        assert sizes(again) == after
        for _ in range(4):
            again.undo()
        assert sizes(again) == before and again.names == {}
        with pytest.raises(UserError, match="there is no step to take back"):
            again.undo()


def test_a_cluster_is_split_by_its_embeddings(session: Session, run: Path) -> None:
    number, size = next(iter(sizes(session).items()))
    session.split(number)
    halves = sizes(session)
    assert halves[number] + halves[10] == size and 0 < halves[10] <= halves[number]
    embeddings = session.collection.embeddings_nd
    stays = embeddings[session.members(number, 0, size)].mean(0)
    goes = embeddings[session.members(10, 0, size)].mean(0)
    inside = embeddings[session.members(10, 0, size)]
    unit = [mean / np.linalg.norm(mean) for mean in (stays, goes)]
    assert (inside @ unit[1] >= inside @ unit[0]).all()
    # The run itself places new samples among the two.
    pictures = open_data(tiny_config().data).rows
    edited = TrainedRun.load(run, edits=True).place(pictures).clusters_n.numpy()
    plain = TrainedRun.load(run).place(pictures).clusters_n.numpy()
    assert (edited[edited != 10] == plain[edited != 10]).all()
    assert set(plain[edited == 10].tolist()) == {number}


def test_what_cannot_be_done_is_told(page: TestClient, session: Session) -> None:
    first, second, *_ = sizes(session)
    row = int(session.members(first, 0, 1)[0])
    page.post("/edit", data={"do": "rename", "cluster": first, "name": "one"})
    page.post("/edit", data={"do": "move", "row": row, "into": "new"})
    before = sizes(session)
    for fields, told in (
        ({"do": "rename", "cluster": second, "name": "One"}, "has this name already"),
        ({"do": "split", "cluster": 10}, "it has one image"),
        ({"do": "split"}, "0 clusters are chosen"),
        ({"do": "merge", "cluster": second}, "one cluster alone"),
        ({"do": "move", "into": second}, "choose some"),
        ({"do": "move", "row": 10**9}, "there is no such image"),
        ({"do": "move", "row": "x"}, "not a number"),
        ({"do": "merge", "cluster": [first, 77]}, "no cluster of this number"),
        ({"do": "format"}, "no such step"),
    ):
        answer = page.post("/edit", data=fields)
        assert told in said(answer.text) and 'class="error"' in answer.text
    assert sizes(session) == before


def test_neighbors_of_both_kinds(session: Session) -> None:
    embeddings = session.collection.embeddings_nd
    found = session.neighbors(7, 10)
    order = np.argsort(-(embeddings @ embeddings[7]), kind="stable")
    assert found["euclidean"].tolist() == order[order != 7][:10].tolist()
    # As the run's own table has them, of contexts in all data.
    assert len(set(found["contextual"].tolist())) == 10 and 7 not in found["contextual"]


def test_a_picture_finds_itself(page: TestClient, session: Session) -> None:
    picture = session.collection.pictures([7])[7]
    rows, _ = session.search(picture, 5)
    assert 7 in rows[:2]
    assert "images found" in said(page.post("/search", content=picture).text)
    answer = page.post("/search", content=b"no picture")
    assert answer.status_code == 400 and "cannot be read as an image" in said(answer.text)


def test_a_picture_that_cannot_be_made(page: TestClient, session: Session) -> None:
    # Of a row that no page has shown yet.
    row = int(session.members(session.clusters[0].number, 20, 1)[0])
    session.thumbnails._made = lambda rows: {}
    answer = page.get(f"/thumb/any/{row}")
    assert answer.status_code == 200 and b"no picture" in answer.content


@pytest.mark.parametrize(
    ("path", "told"),
    [("/cluster/77", "no cluster"), ("/cluster/x", "number"), ("/image/9999", "no")],
)
def test_pages_that_are_not_there(page: TestClient, path: str, told: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 404 and told in answer.text


def test_only_its_own_machine_with_the_token(session: Session) -> None:
    assert client_of(session).get("/").status_code == 403
    assert client_of(session).get("/?token=wrong").status_code == 403
    assert client_of(session).get(f"/?token={TOKEN}").status_code == 200
    assert client_of(session, client="192.168.1.7").get(f"/?token={TOKEN}").status_code == 403
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil:1", "192.168.1.7:1"):
        assert client_of(session, host=host).get(f"/?token={TOKEN}").status_code == 403
    for host in ("localhost:81", "127.0.0.1"):
        assert client_of(session, host=host).get(f"/?token={TOKEN}").status_code == 200


def test_forms_of_other_pages_are_refused(page: TestClient, session: Session) -> None:
    fields = {"do": "merge", "cluster": [0, 1]}
    for origin in ("https://evil.example", "http://127.0.0.1:2", "null"):
        answer = page.post("/edit", data=fields, headers={"origin": origin})
        assert answer.status_code == 403
    assert not session.log.steps
    assert page.post("/edit", data=fields, headers={"origin": "http://127.0.0.1:1"}).is_success
    assert len(session.log.steps) == 1


def test_it_leads_to_no_other_page(page: TestClient) -> None:
    for back in ("https://evil.example/", "//evil.example", "javascript:0", "/\\evil.example"):
        answer = page.post("/edit", data={"do": "undo", "back": back}, follow_redirects=False)
        place = answer.headers["location"]
        assert re.fullmatch(r"/\?said=\w+", place) or place.startswith("/%5C"), place


def test_two_browsers_on_one_run(session: Session, run: Path) -> None:
    with pytest.raises(UserError, match="another browser has it open"):
        Session(open_collection(str(run)))
    session.close()
    with Session(open_collection(str(run))):
        pass


def test_edits_of_another_run(session: Session, run: Path) -> None:
    session.merge([0, 1])
    session.close()
    table = pq.read_table(run / "assignments.parquet")
    other = np.roll(table["cluster"].to_numpy(), 1)
    at = table.column_names.index("cluster")
    pq.write_table(table.set_column(at, "cluster", [other]), run / "assignments.parquet")
    with pytest.raises(UserError, match="edits of another run"):
        Session(open_collection(str(run)))
    with pytest.raises(UserError, match="edits of another run"):
        TrainedRun.load(run, edits=True)
    TrainedRun.load(run)


def test_it_listens_on_the_loopback_alone() -> None:
    with listening(0) as opened:
        address, port = opened.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(UserError, match=f"--port {port}"):
            listening(port)
        mine = socket.gethostbyname(socket.gethostname())
        if not mine.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((mine, port), timeout=5)


def test_folders_of_neither(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds neither a run"):
        open_collection(str(tmp_path))
