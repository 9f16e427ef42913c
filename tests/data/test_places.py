"""Object stores and web servers that drop, cut, stall and refuse: retried, told, never endless."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.sources import web
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError
from conr_ray.storage import patience
from tests.data.faulty_servers import StoreFaults, WebFaults, store_server, web_server
from tests.prediction.dropping import DroppingProxy

COUNT = 24


def png(number: int, side: int = 6) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again is asked soon, as often as ever; a silent server is left soon."""
    monkeypatch.setattr(patience, "WAITS_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(web, "SILENT_S", 0.5)
    web._web.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Numbered images, and a list of them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02d}.png").write_bytes(png(number))
    return folder


def listed(path: Path, urls: list[str]) -> str:
    path.write_text("url\n" + "".join(f"{url}\n" for url in urls))
    return str(path)


def opened(path: str, cache: Path, **fields: Any) -> DataSet:
    return open_data(DataConfig(source="auto", path=path, **fields), cache)


class TestWeb:
    def test_each_way_to_fail_is_retried_and_told(self, root: Path, tmp_path: Path) -> None:
        faults = WebFaults()
        faults.fail_first = {"00.png": 2, "01.png": 99}
        faults.cut_first = {"02.png": 2, "03.png": 99}
        faults.silent = {"04.png"}
        faults.moved = {"05.png": "/06.png", "07.png": "/07.png"}
        faults.refused = {"08.png": 404, "09.png": 403, "10.png": 410, "11.png": 429}
        (root / "12.png").write_text("<html>not found</html>")
        with web_server(root, faults) as url:
            urls = [f"{url}/{number:02d}.png" for number in range(COUNT)]
            # Port 9 of this machine answers nobody.
            urls += ["http://127.0.0.1:9/a.png", "http://127.0.0.1:9/b.png", "http:///x.png"]
            path = listed(tmp_path / "l.csv", urls)
            with pytest.raises(UserError) as told:
                opened(path, tmp_path / "cache")
            data = opened(path, tmp_path / "cache", on_error="skip")
        reasons = {one.row: one.reason for one in data.inventory.skipped}
        assert sorted(reasons) == [1, 3, 4, 7, 8, 9, 10, 11, 12, 24, 25, 26]
        assert all("\n" not in reason for reason in reasons.values())
        assert "HTTP status 500" in reasons[1] and "HTTP status 404" in reasons[8]
        assert "HTTP status 403" in reasons[9] and "HTTP status 429" in reasons[11]
        assert reasons[4] == "no answer within 0.5 s" and reasons[12] == "unknown image format"
        for number in (1, 8):
            assert f"row {number} ({urls[number]})" in str(told.value)
        # Four times in a reading; a grey set's headers would be read once more. What is gone or
        # forbidden is asked for once.
        assert faults.asked["01.png"] <= 4 * 4 and faults.asked["08.png"] <= 4
        expected = [png(n) for n in (0, 2, 6, 6)]
        for row, encoded in zip((0, 2, 5, 6), expected, strict=True):
            place = data.sample_ids.tolist().index(row)
            pixels = np.asarray(Image.open(io.BytesIO(encoded))).transpose(2, 0, 1)
            np.testing.assert_array_equal(data.rows[place], pixels)

    def test_a_server_that_is_away_is_waited_for_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Waits(tuple[float, ...]):
            times = 0

            def __iter__(self) -> Iterator[float]:
                Waits.times += 1
                return super().__iter__()

        monkeypatch.setattr(patience, "WAITS_S", Waits((0.01, 0.01)))
        web._away.clear()
        urls = [f"http://127.0.0.1:9/{number}.png" for number in range(40)]
        with pytest.raises(UserError, match=r"row 0 .* cannot be decoded .*127\.0\.0\.1:9"):
            opened(listed(tmp_path / "l.csv", urls), tmp_path / "cache")
        assert Waits.times == 1 and web._away == {"127.0.0.1:9"}

    def test_an_archive_goes_on_where_the_connection_was_lost(
        self, root: Path, tmp_path: Path
    ) -> None:
        import zipfile

        with zipfile.ZipFile(tmp_path / "images" / "a.zip", "w") as archive:
            for path in sorted(root.glob("*.png")):
                archive.write(path, path.name)
        faults = WebFaults()
        faults.cut_first = {"a.zip": 3}
        with web_server(root, faults) as url:
            data = opened(f"{url}/a.zip", tmp_path / "cache")
        assert data.num_rows == COUNT and faults.asked["a.zip"] > 3

    def test_a_list_from_the_web_names_no_files_of_this_machine(
        self, root: Path, tmp_path: Path
    ) -> None:
        names = ["00.png", str(root / "01.png"), (root / "02.png").as_uri(), "../images/03.png"]
        listed(root / "l.csv", names)
        with web_server(root) as url:
            data = opened(f"{url}/l.csv", tmp_path / "cache", on_error="skip")
        assert data.names == ["00.png"]
        assert {one.reason for one in data.inventory.skipped} == {"a list from elsewhere names it"}


@contextmanager
def bucket(faults: StoreFaults, monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[str]:
    """A bucket with the images, before anything goes wrong."""
    wrong, faults.expires_after = faults.expires_after, float("inf")
    with store_server(faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client, name = boto3.client("s3"), f"b-{secrets.token_hex(4)}"
        client.create_bucket(Bucket=name)
        for path in sorted(root.iterdir()):
            client.put_object(Bucket=name, Key=f"set/{path.name}", Body=path.read_bytes())
        faults.asked = faults.most_at_once = 0
        faults.expires_after = wrong
        yield f"s3://{name}"


class TestStore:
    def test_many_small_objects_are_asked_for_at_once_but_boundedly(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faults = StoreFaults()
        faults.slow_s = 0.3
        with bucket(faults, monkeypatch, root) as uri:
            data = opened(f"{uri}/set", tmp_path / "cache")
        assert data.num_rows == COUNT
        assert 4 < faults.most_at_once <= 16
        # At most two for each object, and some to find the folder and the first image.
        assert faults.asked <= 2 * COUNT + 12

    def test_objects_without_their_end_are_broken_images(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faults = StoreFaults()
        faults.cut = {"set/03.png", "set/17.png"}
        with bucket(faults, monkeypatch, root) as uri:
            data = opened(f"{uri}/set", tmp_path / "cache", on_error="skip")
        assert [one.row for one in data.inventory.skipped] == [3, 17]
        # Arrow fills what has not arrived with what was in memory, and tells of no error.
        assert {one.reason for one in data.inventory.skipped} == {"its end has not arrived"}
        assert data.num_rows == COUNT - 2

    @pytest.mark.parametrize("after", [0, 20])
    @pytest.mark.parametrize("on_error", ["stop", "skip"])
    def test_expired_credentials_end_it_at_once_with_the_remedy(
        self,
        after: int,
        on_error: str,
        root: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        faults = StoreFaults()
        faults.expires_after = after
        with bucket(faults, monkeypatch, root) as uri, pytest.raises(UserError) as told:
            opened(f"{uri}/set", tmp_path / "cache", on_error=on_error)
        text = str(told.value)
        assert "\n" not in text and text.startswith(f"data.path={uri}/set: the store refuses (")
        assert "ExpiredToken" in text and text.endswith(
            "the credentials have expired: renew them, then start the same command again"
        )
        # Those that were on their way, and what each of them asks for the reason.
        assert faults.asked <= after + 3 * 16

    def test_a_store_that_falls_silent_is_asked_again(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faults = StoreFaults()
        faults.silent_once = {"set/05.png"}
        with bucket(faults, monkeypatch, root) as uri:
            data = opened(f"{uri}/set", tmp_path / "cache")
        assert data.num_rows == COUNT and not faults.silent_once

    def test_dropped_connections_cost_no_image(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with bucket(StoreFaults(), monkeypatch, root) as uri:
            port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
            with DroppingProxy(port, every=7) as proxy:
                monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
                there = opened(f"{uri}/set", tmp_path / "cache")
                assert proxy.num_dropped > 3
        here = opened(str(root), tmp_path / "cache")
        assert there.fingerprint == here.fingerprint and there.names == here.names
