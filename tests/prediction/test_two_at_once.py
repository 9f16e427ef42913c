"""Two predictions into one folder at the same time: one is refused, or ends, in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from conr_ray.errors import UserError
from tests.prediction.conftest import NUM_IMAGES, predict, rows_of
from tests.prediction.slowly import parts_of, start
from tests.waiting import until

pytestmark = pytest.mark.slow


def test_in_a_folder_the_second_one_is_refused_until_the_first_one_is_gone(
    folder_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, images = folder_run
    first = start(run, images, tmp_path, pause_s=0.5)
    until(lambda: parts_of(tmp_path), pause_s=0.01)
    with pytest.raises(UserError, match=r"^--out .*: another process predicts into it$"):
        predict(run, str(images), tmp_path)
    assert first.is_alive()
    first.kill()
    first.join()
    predict(run, str(images), tmp_path)
    assert len(rows_of(tmp_path)) == NUM_IMAGES


@pytest.mark.parametrize("killed", [False, True])
def test_in_a_bucket_the_second_one_takes_over_and_no_row_is_lost_or_twice(
    killed: bool, folder_run: tuple[str, Path], s3_bucket: str, tmp_path: Path
) -> None:
    run, images = folder_run
    out, log = f"{s3_bucket}/out", tmp_path / "log"
    first = start(run, images, out, pause_s=1.0, log=log)
    until(_number_of_parts(out), pause_s=0.05)
    if killed:
        first.kill()
    predict(run, str(images), out)
    first.join()
    if not killed:
        assert first.exitcode == 2
        assert log.read_text() == (
            f"error: --out {out}: another process has taken over and predicts into it\n"
        )
    fs.copy_files(out, str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert len({row["path"] for row in rows}) == len(rows) == NUM_IMAGES
    predict(run, str(images), tmp_path / "here")
    for there, here in zip(rows, rows_of(tmp_path / "here"), strict=True):
        assert (there["path"], there["cluster"]) == (here["path"], here["cluster"])


def _number_of_parts(out: str) -> Callable[[], int]:
    files, path = fs.FileSystem.from_uri(out)
    selector = fs.FileSelector(f"{path}/predictions", allow_not_found=True)
    return lambda: len(files.get_file_info(selector))
