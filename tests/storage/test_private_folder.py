from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from conr_ray.data.store import default_cache_dir
from conr_ray.errors import UserError
from conr_ray.storage.private_folder import ensure_home, private_folder

NAME = f"conr_ray-{os.geteuid()}"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder is made: the only place that is tried."""
    monkeypatch.setenv("A_PLACE", str(tmp_path))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    folder = private_folder("A_PLACE")
    assert folder == tmp_path / NAME
    assert mode(folder) == 0o700
    folder.chmod(0o777)
    assert private_folder("A_PLACE") == folder
    assert mode(folder) == 0o700


@pytest.mark.parametrize("home", ["writable", "file", "away"])
def test_without_a_home_that_can_be_written_caches_are_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "writable").mkdir()
    (tmp_path / "file").write_text("")
    # Below a file, nothing can be made: not even by root.
    place = tmp_path / ("file/home" if home == "away" else home)
    monkeypatch.setenv("HOME", str(place))
    for name in ("CONR_RAY_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
    ensure_home()
    own = tmp_path / NAME
    cache = place / ".cache" if home == "writable" else own / "cache"
    assert default_cache_dir() == cache / "conr_ray"
    told = capsys.readouterr().err
    moved = f"caches are in {own}; CONR_RAY_CACHE moves decoded images\n"
    assert told == ("" if home == "writable" else f"HOME={place} cannot be written: {moved}")
    # Processes that are started now say it no more.
    ensure_home()
    assert capsys.readouterr().err == ""


def test_a_home_that_only_the_system_knows_is_told_to_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HOME")
    ensure_home()
    assert os.environ["HOME"] == pwd.getpwuid(os.geteuid()).pw_dir


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{NAME}: belongs to another user\\): set A_PLACE to"):
        private_folder("A_PLACE")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_a_folder_of_another_user_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).mkdir()
    os.chown(tmp_path / NAME, 1234, 1234)
    with pytest.raises(UserError, match=f"{NAME}: belongs to another user"):
        private_folder("A_PLACE")
    # Where TMPDIR cannot be used, there are other places.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert private_folder().parent in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"longest": 10}, "longer than 10 characters"),
        ({"room": 2**60}, r"\d+ MiB free, 1099511627776 needed"),
    ],
)
def test_what_a_folder_lacks_is_told(options: dict[str, int], fault: str) -> None:
    with pytest.raises(UserError, match=f"{NAME}: {fault}\\): set A_PLACE to a folder of yours"):
        private_folder("A_PLACE", **options)


def test_a_place_that_is_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("A_PLACE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"file/{NAME}: not a directory"):
        private_folder("A_PLACE")
