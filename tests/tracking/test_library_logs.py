from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import boto3
import pytest

from conr_ray.storage.files import Folder
from conr_ray.tracking.library_logs import library_logs


def test_messages_go_to_the_file_meanwhile_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = logging.getLogger("some.library")
    own = logging.StreamHandler(sys.stderr)
    library.addHandler(own)
    library.propagate = False
    with library_logs(Folder(tmp_path)):
        library.error("first")
        logging.getLogger("another.library").warning("second")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("third", stacklevel=1)
    assert capsys.readouterr().err == ""
    text = (tmp_path / "library.log").read_text()
    assert [word in text for word in ("first", "second", "third")] == [True] * 3
    assert len([line for line in text.splitlines() if "first" in line]) == 1
    library.error("fourth")
    assert "fourth" in capsys.readouterr().err
    assert "fourth" not in (tmp_path / "library.log").read_text()
    library.removeHandler(own)


def test_in_a_bucket_the_file_is_there_at_the_end(s3_bucket: str) -> None:
    directory = Folder(f"{s3_bucket}/runs/one")
    with library_logs(directory):
        logging.getLogger("some.library").warning("first")
    assert "first" in (directory.read_text("library.log") or "")


@pytest.mark.parametrize("fault", ["full", "away"])
def test_messages_that_cannot_be_written_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    folder = tmp_path / "search"
    if fault == "full":
        folder.mkdir()
        (folder / "library.log").symlink_to("/dev/full")
    with library_logs(Folder(folder)):
        for _ in range(3):
            logging.getLogger("some.library").error("lost")
        if fault == "away":
            folder.mkdir()
            logging.getLogger("some.library").error("kept")
    told = {
        "full": "No space left on device: free some space there, or choose another folder",
        "away": "No such file or directory",
    }[fault]
    line = f"log messages of libraries are lost: {folder}/library.log: {told}"
    assert capsys.readouterr().err.splitlines() == [line]
    assert fault == "full" or (folder / "library.log").read_text().endswith("kept\n")


def test_a_bucket_that_is_gone_costs_only_the_messages(
    s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Folder(f"{s3_bucket}/runs/one")
    with library_logs(directory):
        logging.getLogger("some.library").warning("first")
        boto3.client("s3").delete_bucket(Bucket=s3_bucket.removeprefix("s3://"))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"log messages of libraries are lost: {directory.uri}/library.log cannot"
    )


def test_a_quiet_command_leaves_no_file(tmp_path: Path) -> None:
    with library_logs(Folder(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
