"""Prediction from and into an object store that drops connections, or denies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import boto3
import pytest
from pyarrow import fs

import conr_ray.prediction.predict
from conr_ray.errors import RunFailed, UserError
from conr_ray.prediction.samples import SampleForm
from tests.prediction.conftest import digits, encoded, parquet, predict, rows_of
from tests.prediction.dropping import DroppingProxy

Allow = Callable[[list[str], list[str]], None]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 8 rows, so that there are many requests."""
    monkeypatch.setitem(conr_ray.prediction.predict.predict.__kwdefaults__, "part_rows", 8)
    monkeypatch.setattr(SampleForm, "batch_rows", property(lambda form: 8))


@pytest.fixture
def filled(folder_run: tuple[str, Path], copied: Path, s3_bucket: str, tmp_path: Path) -> str:
    """A bucket with a run, images and the same images as Parquet."""
    fs.copy_files(str(copied), f"{s3_bucket}/images")
    fs.copy_files(folder_run[0], f"{s3_bucket}/run")
    file = parquet(tmp_path / "x.parquet", [encoded(pixels) for pixels in digits()])
    fs.copy_files(file, f"{s3_bucket}/x.parquet")
    return s3_bucket


def _port() -> int:
    return int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("what", "every", "away_at"),
    [
        ("images", 10, ()),
        pytest.param("images", 7, (40, 120), marks=pytest.mark.long),
        pytest.param("x.parquet", 7, (40, 120), marks=pytest.mark.long),
    ],
)
def test_dropped_connections_and_a_store_that_is_away_cost_no_row(
    what: str,
    every: int,
    away_at: tuple[int, ...],
    filled: str,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    images = str(copied) if what == "images" else str(tmp_path / "x.parquet")
    with DroppingProxy(_port(), every, away_at, away_s=4) as proxy:
        with monkeypatch.context() as through:
            through.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            predict(f"{filled}/run", f"{filled}/{what}", f"{filled}/out")
        print(f"{proxy.num_dropped} connections dropped")
        assert proxy.num_dropped > 5
    fs.copy_files(f"{filled}/out", str(tmp_path / "out"))
    predict(f"{filled}/run", images, tmp_path / "here")
    there, here = rows_of(tmp_path / "out"), rows_of(tmp_path / "here")
    for name in ("path" if what == "images" else "row", "cluster", "distance"):
        assert [row[name] for row in there] == [row[name] for row in here]


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch, filled: str) -> Iterator[Allow]:
    """A function that lets this process list all, but read and write some objects alone."""
    endpoint, name = os.environ["AWS_ENDPOINT_URL"], filled.removeprefix("s3://")
    iam = boto3.client("iam")
    iam.create_user(UserName=name)
    key = iam.create_access_key(UserName=name)["AccessKey"]

    def set_rights(readable: list[str], writable: list[str]) -> None:
        bucket = f"arn:aws:s3:::{name}"
        rights = [("s3:ListBucket", [""])]
        rights += [("s3:GetObject", [f"/{one}" for one in readable])] * bool(readable)
        rights += [("s3:PutObject", [f"/{one}" for one in writable])] * bool(writable)
        rights += [("s3:DeleteObject", [f"/{one}" for one in writable])] * bool(writable)
        statements = [
            {"Effect": "Allow", "Action": action, "Resource": [bucket + one for one in objects]}
            for action, objects in rights
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        _check_after("inf", endpoint)
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
        _check_after("0", endpoint)

    with monkeypatch.context() as limited:
        limited.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        limited.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        yield set_rights
    _check_after("inf", endpoint)


def _check_after(count: str, endpoint: str) -> None:
    """Have the store check rights after so many requests."""
    kind = {"Content-Type": "text/plain"}
    asked = Request(f"{endpoint}/moto-api/reset-auth", count.encode(), kind, method="POST")
    urlopen(asked).close()


@pytest.mark.parametrize(
    ("readable", "error", "message"),
    [
        ([], UserError, r"--run: s3://.*/run/.* cannot be read: .*ACCESS_DENIED"),
        (["run/*"], UserError, r"--images s3://.*/images: cannot be opened \(.*ACCESS_DENIED"),
        (["*"], UserError, r"--out: s3://.*/prediction\.json cannot be written \(.*ACCESS_DENIED"),
    ],
)
def test_what_is_denied_is_a_line(
    readable: list[str], error: type[Exception], message: str, filled: str, allow: Allow
) -> None:
    allow(readable, [])
    with pytest.raises(error, match=message) as told:
        predict(f"{filled}/run", f"{filled}/images", f"{filled}/out")
    assert "\n" not in str(told.value)


def test_images_that_are_denied_are_told_and_predicted_once_they_are_allowed(
    filled: str, allow: Allow, tmp_path: Path
) -> None:
    allow(["run/*", "images", "out/*"], ["out/*"])
    with pytest.raises(RunFailed, match=r"40 of 40 images could not be read \(.*ACCESS_DENIED"):
        predict(f"{filled}/run", f"{filled}/images", f"{filled}/out")
    allow(["*"], ["out/*"])
    predict(f"{filled}/run", f"{filled}/images", f"{filled}/out")
    allow(["*"], [])
    fs.copy_files(f"{filled}/out", str(tmp_path / "out"))
    assert len(rows_of(tmp_path / "out")) == 40
    assert not (tmp_path / "out/errors.parquet").exists()
