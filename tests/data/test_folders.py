"""Folders as people have them: what is read, once; what is left out, and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.sources.files import Location, locate
from conr_ray.data.sources.picture_files import PictureFiles
from conr_ray.data.sources.walk import LEFT_BEHIND, Walk, as_text, from_text
from conr_ray.data.store import DataSet, open_data
from conr_ray.storage.files import Folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def put(root: Path, *names: str, kind: str = "PNG") -> None:
    """Grey images of different brightness at `names`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), sum(name.encode()) % 256).save(path, kind)


@pytest.fixture
def opened(tmp_path: Path, root: Path) -> Any:
    def open_as(**settings: Any) -> DataSet:
        config = DataConfig(source="folder", path=str(root), **settings)
        return open_data(config, tmp_path / "cache")

    return open_as


def walked(root: Path, *, as_store: bool = False) -> tuple[list[str], dict[str, int]]:
    """Names and counts of what is left out, by this machine's walk or as of an object store."""
    location = locate(str(root))
    if as_store:
        # Another type than that of local files.
        filesystem = fs.SubTreeFileSystem(str(root.parent), fs.LocalFileSystem())
        location = Location(str(root), filesystem, root.name)
    pictures = PictureFiles(Walk(location))
    return sorted(file.name for file in pictures), dict(pictures.left_out)


class TestWalk:
    @pytest.mark.parametrize("as_store", [False, True])
    def test_what_systems_leave_behind_is_left_out_and_counted(
        self, root: Path, as_store: bool
    ) -> None:
        put(root, "a/1.png", "b/2.PNG", "b/c/3.JPeG", "@eaDir.png")
        for folder in ("@eaDir", "a/@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".Trash-0"):
            put(root, f"{folder}/1.png", f"{folder}/deep/2.png")
        put(root, "Fotos.photoslibrary/originals/1.png", "b/._2.png", "b/.hidden.png")
        (root / "Thumbs.db").touch()
        names, left_out = walked(root, as_store=as_store)
        assert names == ["@eaDir.png", "a/1.png", "b/2.PNG", "b/c/3.JPeG"]
        assert left_out == {
            "@eaDir/": 2,
            "__MACOSX/": 1,
            "lost+found/": 1,
            "$RECYCLE.BIN/": 1,
            "*.photoslibrary/": 1,
            "hidden": 3,
            ".db": 1,
        }

    def test_a_file_is_read_once_however_many_names_it_has(self, root: Path) -> None:
        put(root, "a/1.png", "a/2.png", "b/3.png")
        put(root.parent, "elsewhere/4.png", "elsewhere/5.png")
        os.link(root / "a/1.png", root / "b/hard.png")
        (root / "a/soft.png").symlink_to("2.png")
        (root / "b/first.png").symlink_to(root.parent / "elsewhere/4.png")
        (root / "b/second.png").symlink_to(root.parent / "elsewhere/4.png")
        (root / "up").symlink_to(".")
        (root / "c").symlink_to(root.parent / "elsewhere")
        names, left_out = walked(root)
        # The folder behind a link is read where the link is, so that links to its files add none.
        assert names == ["a/1.png", "a/2.png", "b/3.png", "c/4.png", "c/5.png"]
        assert left_out == {"further links to the same": 5}

    def test_what_is_no_file_neither_hangs_nor_stops(self, root: Path) -> None:
        put(root, "1.png")
        os.mkfifo(root / "pipe.png")
        (root / "gone.png").symlink_to("nowhere")
        (root / "around.png").symlink_to("around.png")
        names, left_out = walked(root)
        assert names == ["1.png"]
        assert left_out == {"pipes or devices": 1, "dangling links": 2}

    def test_endings_that_are_not_known_are_looked_into(self, root: Path) -> None:
        put(root, "1.png", "none", "odd.picture")
        put(root, "2.jfif", "3.jpe", kind="JPEG")
        for name, content in (
            ("text", b"BM is how a bitmap begins"),
            ("P5.notes", b"P5 is a grey map"),
            ("cut.jpeg_large", b"\xff\xd8\xff\xe0 no more"),
            ("empty", b""),
            ("raw.NEF", (root / "none").read_bytes()),
            ("list.txt", (root / "none").read_bytes()),
        ):
            (root / name).write_bytes(content)
        names, left_out = walked(root)
        assert names == ["1.png", "2.jfif", "3.jpe", "none", "odd.picture"]
        assert left_out == {
            "without an ending": 2,
            ".notes": 1,
            ".jpeg_large": 1,
            ".nef": 1,
            ".txt": 1,
        }

    def test_every_reason_is_told(self, root: Path, opened: Any) -> None:
        put(root, "1.png", *(f"{name.strip('*')}/x.png" for name in LEFT_BEHIND))
        found = opened().inventory
        assert set(found.left_out) == {f"{n}/" for n in LEFT_BEHIND} - {"*.photoslibrary/"} | (
            {"hidden"}
        )
        assert set(found.why_left_out) == set(found.left_out)

    def test_pictures_that_need_a_plug_in_name_it(self, root: Path, tmp_path: Path) -> None:
        put(root, "1.png")
        (root / "2.heic").write_bytes(b"")
        code = (
            "import sys; sys.modules['pillow_heif'] = None\n"
            "from pathlib import Path; from conr_ray.config import DataConfig\n"
            "from conr_ray.data.store import open_data\n"
            f"config = DataConfig(source='folder', path={str(root)!r})\n"
            f"print(open_data(config, Path({str(tmp_path)!r}, 'cache')).line)"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert told.stdout == (
            "data: 1 image 4x4 grey, no labels; left out: 1 .heic (.heic: pip install "
            "pillow-heif, and they are read)\n"
        )


class TestNames:
    @given(st.text(), st.text())
    def test_paths_are_printable_unique_and_found_again(self, one: str, other: str) -> None:
        assert as_text(one).replace("\u3000", "").isprintable() or not one.isprintable()
        assert from_text(as_text(one)) == one
        assert (as_text(one) == as_text(other)) == (one == other)

    @given(st.binary(), st.binary())
    def test_bytes_too(self, one: bytes, other: bytes) -> None:
        first, second = os.fsdecode(one), os.fsdecode(other)
        assert from_text(as_text(first)) == first
        assert (as_text(first) == as_text(second)) == (one == other)
        as_text(first).encode()

    def test_latin_1_and_a_name_that_looks_like_it(self, root: Path, opened: Any) -> None:
        put(root, "x.png")
        for name in (b"caf\xe9.png", b"caf\\xe9.png", b"a\nb.png"):
            with open(os.fsencode(root) + b"/" + name, "wb") as file:
                file.write((root / "x.png").read_bytes())
        assert opened().names == [r"a\u000ab.png", r"caf\\xe9.png", r"caf\xe9.png", "x.png"]


class TestLayout:
    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (["1.png", "2.png"], "no labels"),
            (["a/1.png", "b/2.png"], "labels from folders: 2 classes"),
            (["a/1.png", "a/x/2.png", "b/y/3.png", "4.png"], "2 classes, 1 unlabelled"),
            (["zip/a/1.png", "zip/b/2.png"], "labels from folders: 2 classes"),
            (["a/1.png", "a/2.png"], "no labels"),
            (["2023/1.png", "2024/2.png"], "no labels (sub-folders 2023, 2024 are dates: data."),
            (["2023/05/1.png", "2023/06 sea/2.png"], "are dates: data.labels=folders makes them"),
            (["100CANON/1.png", "101CANON/2.png"], "no labels (sub-folders 100CANON, 101CANON ar"),
            (["0/1.png", "1/2.png"], "labels from folders: 2 classes"),
            (["a/1.png", "b/2.png", "3.png", "4.png", "5.png"], "no labels (most pictures are "),
            (["train/a/1.png", "train/b/2.png", "val/a/3.png"], "labels from folders: 2 classes"),
            (["train/a/1.png", "train/b/2.png"], "labels from folders: 2 classes"),
            (["train/a/1.png", "Test/b/2.png", "unlabeled/3.png"], "2 classes, 1 unlabelled"),
            (["train/1.png", "test/2.png"], "no labels"),
        ],
    )
    def test_what_folders_stand_for(
        self, root: Path, opened: Any, names: list[str], told: str
    ) -> None:
        put(root, *names)
        line = opened().line
        assert line.startswith(f"data: {len(names)} images 4x4 grey, ") and told in line
        assert ("labels from" in line) == ("labels from" in told or "classes," in told)
        assert "no labels" in opened(labels="none").line
        assert opened(labels="none").labels is None

    def test_labels_of_what_is_in_no_class(self, root: Path, opened: Any) -> None:
        put(root, "a/1.png", "b/2.png", "a/3.png", "0.png")
        data = opened()
        assert data.names == ["0.png", "a/1.png", "a/3.png", "b/2.png"]
        assert data.labels.tolist() == [-1, 0, 0, 1] and data.num_classes == 2

    def test_folders_that_are_asked_for(self, root: Path, opened: Any, message: Any) -> None:
        put(root, "2023/1.png", "2024/2.png")
        data = opened(labels="folders")
        assert data.class_names == ("2023", "2024") and data.line.endswith("folders: 2 classes")
        put(root.parent / "flat", "1.png")
        told = message(source="folder", path=str(root.parent / "flat"), labels="folders")
        assert "has no two sub-folders that could be classes: leave data.labels out" in told

    def test_splits(self, root: Path, opened: Any, message: Any) -> None:
        put(root, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/c/4.png")
        assert opened().labels.tolist() == [0, 1, 0, 2]
        data = opened(splits=("val",))
        assert data.names == ["val/a/3.png", "val/c/4.png"] and data.class_names == ("a", "c")
        told = message(source="folder", path=str(root), splits=["test"])
        assert told == "data.splits=test: there is no split test; choose from train, val"
        put(root.parent / "flat", "1.png")
        told = message(source="folder", path=str(root.parent / "flat"), splits=["test"])
        assert told.startswith("data.splits=test: ") and told.endswith("leave it out")


class TestInventory:
    def test_it_is_told_from_the_copy_too_and_follows_the_folder(
        self, root: Path, opened: Any
    ) -> None:
        put(root, "1.png", "2.png")
        (root / "a.txt").touch()
        line = "data: 2 images 4x4 grey, no labels; left out: 1 .txt"
        assert opened().line == opened().line == line
        (root / "b.txt").touch()
        assert opened().line == line.replace("1 .txt", "2 .txt")
        assert opened(limit=1).line == "data: 1 image 4x4 grey, of 2, no labels; left out: 2 .txt"

    def test_skipped_ones_are_listed_in_the_folder_of_a_run(
        self, root: Path, opened: Any, tmp_path: Path
    ) -> None:
        put(root, "a/1.png", "b/2.png", "b/3.png")
        (root / "a/0.png").write_bytes(b"<html>404</html>")
        (root / "b/2.png").write_bytes(b"")
        data = opened(on_error="skip")
        assert data.line == (
            "data: 2 images 4x4 grey, labels from folders: 2 classes; skipped: 2 that cannot be "
            "read"
        )
        assert data.sample_ids.tolist() == [1, 3] and data.names == ["a/1.png", "b/3.png"]
        assert data.labels.tolist() == [0, 1]
        data.write_inventory(Folder(str(tmp_path / "run")))
        found = json.loads((tmp_path / "run/data.json").read_text())
        assert found["line"] == data.line and found["skipped"] == [
            [0, "row 0 (a/0.png)", "unknown image format"],
            [2, "row 2 (b/2.png)", "it is empty"],
        ]
        part = opened(on_error="skip", limit=1)
        assert set(part.sample_ids.tolist()) < {1, 3} and part.num_rows == 1

    def test_a_class_of_which_all_are_skipped_is_gone(self, root: Path, opened: Any) -> None:
        put(root, "a/1.png", "c/3.png")
        (root / "b").mkdir()
        (root / "b/2.png").write_bytes(b"no image")
        data = opened(on_error="skip")
        assert data.class_names == ("a", "c") and data.labels.tolist() == [0, 1]
        put(root.parent / "same", "a/1.png", "c/3.png")
        config = DataConfig(source="folder", path=str(root.parent / "same"))
        same = open_data(config, root.parent / "cache")
        np.testing.assert_array_equal(same.rows, data.rows)

    def test_what_is_left_after_skipping_is_as_a_folder_without(
        self, root: Path, opened: Any, tmp_path: Path
    ) -> None:
        put(root, *(f"{i}.png" for i in range(600)))
        whole = opened()
        (root / "250x.png").write_bytes(b"no image")
        skipped = opened(on_error="skip")
        assert skipped.num_rows == 600 and len(skipped.inventory.skipped) == 1
        assert skipped.fingerprint == whole.fingerprint
