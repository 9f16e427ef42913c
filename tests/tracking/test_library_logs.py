from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

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


def test_a_quiet_command_leaves_no_file(tmp_path: Path) -> None:
    with library_logs(Folder(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
