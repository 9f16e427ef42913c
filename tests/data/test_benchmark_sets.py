"""Benchmark sets as tables: out of small archives and folders in the official formats."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conr_ray.config import DataConfig, load_preset
from conr_ray.data.benchmark_sets import SETS, BenchmarkSet, Options
from conr_ray.data.benchmark_sets.base import Images
from conr_ray.data.benchmark_sets.class_lists import CLASSES
from conr_ray.data.benchmark_sets.preparing import prepare
from conr_ray.data.store import DataSet, open_data
from conr_ray.data_commands import main
from conr_ray.errors import UserError

HERE = Options(download=False)


def small(name: str, counts: dict[str, int], **fields: Any) -> BenchmarkSet:
    """A set that is to have other numbers of images than the official one."""
    return replace(SETS[name], counts=counts, per_class={}, **fields)


def of_file(spec: BenchmarkSet, path: Path) -> BenchmarkSet:
    """A set whose official archive is a file."""
    data = path.read_bytes()
    md5 = hashlib.md5(data).hexdigest()
    return replace(spec, archive=replace(spec.archive, num_bytes=len(data), md5=md5))


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def open_table(path: Path, **settings: Any) -> DataSet:
        config = DataConfig(source="parquet", path=str(path), **settings)
        return open_data(config, tmp_path / "cache")

    return open_table


class TestTorchvision:
    def test_cifar10(
        self, official_files: Any, random_images: Callable[..., Any], opened: Any, tmp_path: Path
    ) -> None:
        images, labels = random_images(60, 3, 32, 32), [i % 10 for i in range(60)]
        official_files.cifar10(images, labels, test=10)
        spec = small("cifar10", {"train": 50, "test": 10})
        out = tmp_path / "tables" / "cifar10.parquet"
        made = prepare(spec, official_files.root, out, HERE)
        assert made.is_new and made.counts == {"train": 50, "test": 10}
        data = opened(out)
        np.testing.assert_array_equal(data.rows, images)
        assert data.labels.tolist() == labels
        assert data.class_names == tuple(f"c{i}" for i in range(10))
        assert opened(out, splits=("test",)).num_rows == 10
        metadata = pq.read_schema(out).metadata
        assert b"Krizhevsky 2009" in metadata[b"licence"]
        assert metadata[b"source"] == SETS["cifar10"].archive.url.encode()
        assert [path.name for path in out.parent.iterdir()] == ["cifar10.parquet"]
        # The same pixels as without the table.
        config = DataConfig(source="torchvision", name="cifar10", path=str(official_files.root))
        assert open_data(config, tmp_path / "cache").fingerprint == data.fingerprint

    def test_cifar100_and_its_20_classes(
        self, official_files: Any, random_images: Callable[..., Any], opened: Any, tmp_path: Path
    ) -> None:
        images = random_images(60, 3, 32, 32)
        fine, coarse = [i % 100 for i in range(60)], [i % 20 for i in range(60)]
        official_files.cifar100(images, fine, coarse, test=10)
        for name, other, label in (
            ("cifar20", "fine_label", coarse),
            ("cifar100", "coarse_label", fine),
        ):
            spec = small(name, {"train": 50, "test": 10})
            prepare(spec, official_files.root, tmp_path / f"{name}.parquet", HERE)
            data = opened(tmp_path / f"{name}.parquet")
            assert data.labels.tolist() == label
            assert data.class_names[0] == ("coarse0" if label is coarse else "fine0")
            more = opened(tmp_path / f"{name}.parquet", label_column=other)
            assert more.labels.tolist() == (fine if label is coarse else coarse)
            assert more.class_names[1] == ("fine1" if label is coarse else "coarse1")

    def test_stl10_with_its_unlabelled_images(
        self, official_files: Any, random_images: Callable[..., Any], opened: Any, tmp_path: Path
    ) -> None:
        images, labels = random_images(30, 3, 96, 96), [i % 10 for i in range(20)]
        official_files.stl10(images, labels, test=8, unlabeled=10)
        spec = small("stl10", {"train": 12, "test": 8}, num_unlabelled=10)
        prepare(spec, official_files.root, tmp_path / "a.parquet", HERE)
        data = opened(tmp_path / "a.parquet")
        np.testing.assert_array_equal(data.rows, images[:20])
        assert data.labels.tolist() == labels
        with_all = Options(unlabelled=True, download=False)
        made = prepare(spec, official_files.root, tmp_path / "b.parquet", with_all)
        assert made.counts == {"train": 12, "test": 8, "unlabeled": 10}
        data = opened(tmp_path / "b.parquet")
        np.testing.assert_array_equal(data.rows, images)
        assert data.labels.tolist() == labels + [-1] * 10 and data.num_classes == 10
        assert opened(tmp_path / "b.parquet", splits=("unlabeled",)).labels is None
        with pytest.raises(UserError, match="with its unlabelled images: name another"):
            prepare(spec, official_files.root, tmp_path / "a.parquet", with_all)

    def test_the_archive_is_unpacked_if_its_sum_is_right(
        self,
        official_files: Any,
        random_images: Callable[..., Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import torchvision

        official_files.cifar10(random_images(20, 3, 32, 32), [i % 10 for i in range(20)], test=10)
        spec = small("cifar10", {"train": 10, "test": 10})
        root = tmp_path / "downloads"
        root.mkdir()
        with tarfile.open(root / spec.archive.name, "w:gz") as archive:
            archive.add(official_files.root / "cifar-10-batches-py", "cifar-10-batches-py")
        with pytest.raises(UserError, match=r"bytes, not the 170,498,071 of the official file"):
            prepare(spec, root, tmp_path / "a.parquet", HERE)
        spec = of_file(spec, root / spec.archive.name)
        wrong = replace(spec, archive=replace(spec.archive, md5="0" * 32))
        with pytest.raises(UserError, match=r"its MD5 is .*, that of the official file 000"):
            prepare(wrong, root, tmp_path / "a.parquet", HERE)
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", spec.archive.md5)
        made = prepare(spec, root, tmp_path / "a.parquet", HERE)
        assert made.counts == {"train": 10, "test": 10}

    def test_what_is_missing_is_named_with_size_and_sum(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torchvision

        told = (
            r"put cifar-10-python.tar.gz \(170,498,071 bytes, MD5 c58f30108f718f92721af3b95e7434"
            rf"9a\), or its unpacked folder cifar-10-batches-py, into {tmp_path}; it is at https://"
        )
        with pytest.raises(UserError, match=rf"CIFAR-10 is not in {tmp_path}: {told}"):
            prepare(SETS["cifar10"], tmp_path, tmp_path / "a.parquet", HERE)
        # A port at which nobody answers.
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/a.tar.gz")
        with pytest.raises(
            UserError, match=rf"CIFAR-10 cannot be fetched \(.*\); {told}"
        ) as caught:
            prepare(SETS["cifar10"], tmp_path, tmp_path / "a.parquet")
        assert "\n" not in str(caught.value)

    def test_other_numbers_of_images_are_refused(
        self, official_files: Any, random_images: Callable[..., Any], tmp_path: Path
    ) -> None:
        official_files.cifar10(random_images(20, 3, 32, 32), [i % 10 for i in range(20)], test=10)
        out = tmp_path / "tables" / "a.parquet"
        with pytest.raises(UserError, match="train has 10 images, not 50,000: put cifar-10"):
            prepare(SETS["cifar10"], official_files.root, out, HERE)
        spec = small("cifar10", {"train": 10, "test": 10})
        spec = replace(spec, per_class={"train": (2, 2)})
        with pytest.raises(UserError, match="class 0 of train has 1 images, not 2"):
            prepare(spec, official_files.root, out, HERE)
        assert list(out.parent.iterdir()) == []


def tiny_files(encode: Callable[..., bytes], images: Any) -> dict[str, bytes]:
    """Tiny-ImageNet of two classes: three images each in train, four in val."""
    wnids = ["n02", "n01"]
    files = {
        "wnids.txt": "\n".join(wnids).encode(),
        "words.txt": b"n01\tgoldfish, Carassius auratus\nn02\tsalamander\nn03\tbullfrog\n",
        "test/images/test_0.JPEG": encode(images[0]),
    }
    for number, image in enumerate(images[:6]):
        wnid = wnids[number % 2]
        files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = encode(image)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
    lines = []
    for number, image in enumerate(images[6:10]):
        files[f"val/images/val_{number}.JPEG"] = encode(image)
        lines.append(f"val_{number}.JPEG\t{wnids[number // 2]}\t0\t0\t62\t62")
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    return files


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


class TestTinyImageNet:
    @pytest.fixture
    def files(self, encode: Any, random_images: Callable[..., Any]) -> dict[str, bytes]:
        return tiny_files(encode, random_images(10, 3, 64, 64))

    @pytest.fixture
    def spec(self) -> BenchmarkSet:
        return small("tiny_imagenet", {"train": 6, "val": 4}, classes={"label": 2})

    def test_the_archive_and_its_folder_are_one(
        self,
        files: dict[str, bytes],
        spec: BenchmarkSet,
        random_images: Callable[..., Any],
        opened: Any,
        tmp_path: Path,
    ) -> None:
        write(tmp_path / "a" / "tiny-imagenet-200", files)
        write(tmp_path / "b", files)
        (tmp_path / "c").mkdir()
        with zipfile.ZipFile(tmp_path / "c" / spec.archive.name, "w") as archive:
            for name, data in files.items():
                archive.writestr(f"tiny-imagenet-200/{name}", data)
        images = random_images(10, 3, 64, 64)
        for root in "abc":
            its = of_file(spec, tmp_path / root / spec.archive.name) if root == "c" else spec
            prepare(its, tmp_path / root, tmp_path / f"{root}.parquet", HERE)
            data = opened(tmp_path / f"{root}.parquet")
            # Classes in order: n01 has the odd ones.
            order = [1, 3, 5, 0, 2, 4, 6, 7, 8, 9]
            np.testing.assert_array_equal(data.rows, images[order])
            assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
            assert data.class_names == ("goldfish", "salamander")
        names = pq.read_table(tmp_path / "c.parquet").column("name").to_pylist()
        assert names[0] == "train/n01/images/n01_1.JPEG" and names[6] == "val/images/val_0.JPEG"

    def test_what_is_missing_or_damaged(
        self,
        files: dict[str, bytes],
        spec: BenchmarkSet,
        tmp_path: Path,
    ) -> None:
        with pytest.raises(
            UserError, match=r"is not in .*: put tiny-imagenet-200.zip \(248,100,04"
        ):
            prepare(spec, tmp_path / "none", tmp_path / "t.parquet", HERE)
        away = replace(spec, archive=replace(spec.archive, url="http://127.0.0.1:9/t.zip"))
        with pytest.raises(UserError, match=r"cannot be fetched \(.*\); put tiny-imagenet-200.zip"):
            prepare(away, tmp_path / "none", tmp_path / "t.parquet")
        without = {name: data for name, data in files.items() if "val_1" not in name}
        without["val/val_annotations.txt"] = files["val/val_annotations.txt"]
        write(tmp_path / "a", without)
        with pytest.raises(UserError, match=r"val_1.JPEG.*; put tiny-imagenet-200.zip"):
            prepare(spec, tmp_path / "a", tmp_path / "t.parquet", HERE)
        whole = replace(spec, counts={"train": 7, "val": 4})
        write(tmp_path / "a", files)
        with pytest.raises(UserError, match="train has 6 images, not 7"):
            prepare(whole, tmp_path / "a", tmp_path / "t.parquet", HERE)
        assert not (tmp_path / "t.parquet").exists()


class TestImageNet:
    WNIDS = ("n01440764", "n02084071")

    @pytest.fixture
    def spec(self) -> BenchmarkSet:
        return small("imagenet10", {"train": 6}, classes={"label": 2}, wnids=self.WNIDS)

    @pytest.fixture
    def files(self, encode: Any, random_images: Callable[..., Any]) -> dict[str, bytes]:
        images = random_images(9, 3, 20, 20)
        wnids = (*self.WNIDS, "n09999999")
        return {
            f"{wnids[i % 3]}/{wnids[i % 3]}_{i}.JPEG": encode(image, "JPEG")
            for i, image in enumerate(images)
        }

    @staticmethod
    def archive(path: Path, files: dict[str, bytes]) -> None:
        """A tar of a tar for each class, as ILSVRC2012_img_train.tar is."""

        def packed(items: Iterable[tuple[str, bytes]]) -> bytes:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                for name, data in items:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            return buffer.getvalue()

        wnids = sorted({name.partition("/")[0] for name in files})
        inside = {
            f"{wnid}.tar": packed(
                (name.partition("/")[2], data) for name, data in files.items() if wnid in name
            )
            for wnid in wnids
        }
        path.parent.mkdir(parents=True)
        path.write_bytes(packed(inside.items()))

    def test_the_archive_and_its_folder_are_one(
        self, files: dict[str, bytes], spec: BenchmarkSet, opened: Any, tmp_path: Path
    ) -> None:
        write(tmp_path / "a" / "train", files)
        write(tmp_path / "a" / "val", {name: files[name] for name in list(files)[:2]})
        (tmp_path / "a" / "LOC_synset_mapping.txt").write_text(
            "n01440764 tench, Tinca tinca\nn02084071 dog, domestic dog\n"
        )
        write(tmp_path / "b", files)
        self.archive(tmp_path / "c" / spec.archive.name, files)
        tables = {}
        for root in "abc":
            its = of_file(spec, tmp_path / root / spec.archive.name) if root == "c" else spec
            verified = Options(download=False, verify=True)
            made = prepare(its, tmp_path / root, tmp_path / f"{root}.parquet", verified)
            assert made.counts["train"] == 6
            tables[root] = opened(tmp_path / f"{root}.parquet", splits=("train",))
        assert {data.rows_fingerprint for data in tables.values()} == {tables["a"].rows_fingerprint}
        assert tables["a"].labels.tolist() == tables["c"].labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert tables["a"].class_names == ("tench", "dog")
        assert tables["b"].class_names == self.WNIDS
        names = [
            pq.read_table(tmp_path / f"{root}.parquet").column("name").to_pylist()[:6]
            for root in "bc"
        ]
        assert names[0] == names[1] and names[0][0] == "n01440764/n01440764_0.JPEG"
        assert opened(tmp_path / "a.parquet").num_rows == 8
        # The files themselves: nothing is encoded anew.
        image = pq.read_table(tmp_path / "c.parquet").column("image")[0].as_py()
        assert image == files["n01440764/n01440764_0.JPEG"]

    def test_what_is_missing(
        self, files: dict[str, bytes], spec: BenchmarkSet, tmp_path: Path
    ) -> None:
        out = tmp_path / "t.parquet"
        told = r"put ILSVRC2012_img_train.tar \(147,897,477,120 bytes, .* after its terms are acc"
        with pytest.raises(UserError, match=rf"no ImageNet in {tmp_path}/none: {told}"):
            prepare(spec, tmp_path / "none", out)
        write(tmp_path / "a", {n: data for n, data in files.items() if "n01440764" in n})
        with pytest.raises(UserError, match="has 1 of its 2 classes, but not n02084071"):
            prepare(spec, tmp_path / "a", out)
        write(tmp_path / "a", files)
        (tmp_path / "a" / "n02084071" / "n02084071_1.JPEG").unlink()
        bounds = replace(spec, counts={}, per_class={"train": (3, 5)})
        with pytest.raises(UserError, match="n02084071 of train has 2 images, not 3 to 5"):
            prepare(bounds, tmp_path / "a", out)
        self.archive(tmp_path / "b" / spec.archive.name, files)
        cut = tmp_path / "b" / spec.archive.name
        cut.write_bytes(cut.read_bytes()[:5000])
        with pytest.raises(UserError, match="5,000 bytes, not the 147,897,477,120"):
            prepare(spec, tmp_path / "b", out)
        with pytest.raises(UserError, match=r"cannot be read \(.*\); put ILSVRC2012_img_train"):
            prepare(of_file(spec, cut), tmp_path / "b", out)
        assert not out.exists() and not list(tmp_path.glob("*.part"))


class TestTable:
    @staticmethod
    def read(spec: BenchmarkSet, root: Path, options: Options) -> Iterator[Images]:
        """Raw pixels, of which a second part is missing where the folder says so."""
        for start in range(0, 6000, 3000):
            if start and (root / "cut").exists():
                raise UserError("it is cut")
            pixels = np.full((3000, 2, 2, 3), start // 3000, np.uint8)
            labels = {"label": np.arange(3000, dtype=np.int64) % 10}
            yield Images("train", pixels, labels, {"label": [f"c{i}" for i in range(10)]})

    def test_it_is_made_once_and_is_whole_or_absent(self, opened: Any, tmp_path: Path) -> None:
        spec = small("cifar10", {"train": 6000}, read=self.read, shape=(2, 2, 3))
        out = tmp_path / "t.parquet"
        (tmp_path / "cut").touch()
        with pytest.raises(UserError, match="it is cut"):
            prepare(spec, tmp_path, out)
        assert [path.name for path in tmp_path.iterdir()] == ["cut"]
        (tmp_path / "cut").unlink()
        assert prepare(spec, tmp_path, out).is_new
        before = out.stat().st_mtime_ns
        again = prepare(spec, tmp_path, out)
        assert not again.is_new and again.counts == {"train": 6000}
        assert out.stat().st_mtime_ns == before
        data = opened(out)
        assert data.rows[:3000].max() == 0 and data.rows[3000:].min() == 1
        assert pq.ParquetFile(out).num_row_groups == 1
        with pytest.raises(UserError, match="not the table of CIFAR-100: name another"):
            prepare(small("cifar100", {}), tmp_path, out)
        out.write_bytes(b"mine")
        with pytest.raises(UserError, match="not the table of CIFAR-10: name another"):
            prepare(spec, tmp_path, out)
        assert out.read_bytes() == b"mine"
        with pytest.raises(UserError, match=r"--out .*: cannot be written"):
            prepare(spec, tmp_path, out / "inside.parquet")
        with pytest.raises(UserError, match="CIFAR-10 has no unlabelled images"):
            prepare(spec, tmp_path, tmp_path / "o.parquet", Options(unlabelled=True))


def test_lists_of_classes() -> None:
    sizes = {name: len(set(wnids)) for name, wnids in CLASSES.items()}
    assert sizes == {
        "imagenet10": 10,
        "imagenet_dogs": 15,
        "imagenet50": 50,
        "imagenet100": 100,
        "imagenet200": 200,
    }
    assert set(CLASSES["imagenet50"]) < set(CLASSES["imagenet100"]) < set(CLASSES["imagenet200"])
    for name in ("imagenet10", "imagenet_dogs"):
        assert load_preset(name).data.classes == CLASSES[name]
    words = [wnid for wnids in CLASSES.values() for wnid in wnids]
    assert all(len(word) == 9 and word[0] == "n" and word[1:].isdecimal() for word in words)


def test_presets_train_on_the_tables() -> None:
    for name, spec in SETS.items():
        assert name == spec.name and sum(spec.counts.values()) in (0, 60000, 13000, 19500, 110000)
        if spec.preset:
            fields = {"data.source": "parquet", "data.path": f"{name}.parquet"}
            config = load_preset(spec.preset, fields)
            assert config.clustering.num_clusters == spec.classes["label"]


class TestCommand:
    def test_it_prepares_and_tells_how_to_train(
        self,
        official_files: Any,
        random_images: Callable[..., Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        official_files.cifar10(random_images(20, 3, 32, 32), [i % 10 for i in range(20)], test=10)
        spec = small("cifar10", {"train": 10, "test": 10})
        monkeypatch.setitem(SETS, "cifar10", spec)
        for there in ("", " (it was there)"):
            main(["prepare", "CIFAR10", "--root", str(official_files.root)])
            path = official_files.root / "cifar10.parquet"
            assert capsys.readouterr().out.splitlines() == [
                "CIFAR-10: 10 train, 10 test images, 10 classes, no licence file; for research, "
                f"cite Krizhevsky 2009: {path}{there}",
                "to train on it: python -m conr_ray.train --preset cifar10 --set "
                f"data.source=parquet --set data.path={path}",
            ]
        told = json.loads(pq.ParquetFile(path).metadata.metadata[b"conr_ray_set"])
        assert told == {"name": "cifar10", "counts": {"train": 10, "test": 10}}

    def test_slips_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="prepare imagenet: no such set; choose from cifar10"):
            main(["prepare", "imagenet", "--root", str(tmp_path)])
        with pytest.raises(UserError, match="--root"):
            main(["prepare", "cifar10"])
        with pytest.raises(UserError, match="CIFAR-10 is not in"):
            main(["prepare", "cifar10", "--root", str(tmp_path), "--no-download"])
