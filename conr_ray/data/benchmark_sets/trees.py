"""Tiny-ImageNet and subsets of ImageNet, out of their archives or the folders these become."""

from __future__ import annotations

import io
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from conr_ray.data.benchmark_sets.base import BenchmarkSet, Images, Options, batches
from conr_ray.errors import UserError, one_line, printable

_BATCH = 256


class _Tree(ABC):
    """Files by their paths: a folder, or a zip archive of it."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Paths of the files in a folder, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file; raises KeyError or OSError if it is not there."""

    @abstractmethod
    def close(self) -> None:
        """Let it go."""

    def text(self, name: str) -> list[str]:
        """The lines of a text."""
        return self.read(name).decode("utf-8", "replace").splitlines()


class _Folder(_Tree):
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, folder: str) -> list[str]:
        inside = self._root / folder
        files = inside.iterdir() if inside.is_dir() else ()
        return sorted(f"{folder}/{path.name}" for path in files if path.is_file())

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def close(self) -> None:
        """Nothing is open."""


class _Zip(_Tree):
    def __init__(self, path: Path, top: str) -> None:
        self._file = zipfile.ZipFile(path)
        self._top = top
        self._in: dict[str, list[str]] = {}
        for name in self._file.namelist():
            if name.startswith(f"{top}/") and not name.endswith("/"):
                inside = name.removeprefix(f"{top}/")
                self._in.setdefault(inside.rpartition("/")[0], []).append(inside)

    def names(self, folder: str) -> list[str]:
        return sorted(self._in.get(folder, []))

    def read(self, name: str) -> bytes:
        return self._file.read(f"{self._top}/{name}")

    def close(self) -> None:
        self._file.close()


def read_tiny_imagenet(spec: BenchmarkSet, root: Path, options: Options) -> Iterator[Images]:
    """The splits train and val of Tiny-ImageNet; its test images have no labels."""
    with closing(_tiny_tree(spec, root, options)) as tree:
        try:
            wnids = [word for line in tree.text("wnids.txt") if (word := line.strip())]
            named = dict(line.split("\t", 1) for line in tree.text("words.txt") if "\t" in line)
            number = {wnid: label for label, wnid in enumerate(sorted(wnids))}
            words = [named.get(one, one).split(",")[0] for one in sorted(wnids)]
            for wnid in sorted(wnids):
                names = [name for name in tree.names(f"train/{wnid}/images") if _is_image(name)]
                yield from _parts(tree, "train", names, [number[wnid]] * len(names), words)
            of_val = [line.split("\t")[:2] for line in tree.text("val/val_annotations.txt")]
            names = [f"val/images/{name}" for name, _ in of_val]
            yield from _parts(tree, "val", names, [number[wnid] for _, wnid in of_val], words)
        except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{spec.title} in {root}: {one_line(error)}; {spec.archive.remedy(root)}"
            ) from None


def _tiny_tree(spec: BenchmarkSet, root: Path, options: Options) -> _Tree:
    archive = root / spec.archive.name
    for folder in (root / spec.archive.folder, root):
        if (folder / "wnids.txt").is_file():
            return _Folder(folder)
    if not archive.is_file():
        _fetch(spec, root, options)
    spec.archive.check(archive)
    return _Zip(archive, spec.archive.folder)


def _fetch(spec: BenchmarkSet, root: Path, options: Options) -> None:
    """Fetch the archive, with torchvision's own code, which compares its checksum."""
    archive = spec.archive
    if not options.download:
        raise UserError(f"{spec.title} is not in {root}: {archive.remedy(root)}")
    from torchvision.datasets.utils import download_url

    try:
        root.mkdir(parents=True, exist_ok=True)
        download_url(archive.url, root, archive.name, archive.md5)
    # Networks fail in many ways.
    except Exception as error:
        (root / archive.name).unlink(missing_ok=True)
        raise UserError(
            f"{spec.title} cannot be fetched ({one_line(error)}); {archive.remedy(root)}"
        ) from None


def _parts(
    tree: _Tree,
    split: str,
    names: Sequence[str],
    labels: Sequence[int],
    words: Sequence[str],
) -> Iterator[Images]:
    for rows in batches(range(len(names)), _BATCH):
        some = [names[row] for row in rows]
        numbers = np.array([labels[row] for row in rows], np.int64)
        files = [tree.read(name) for name in some]
        yield Images(split, files, {"label": numbers}, {"label": words}, some)


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpeg", ".jpg", ".png"))


def read_imagenet(spec: BenchmarkSet, root: Path, options: Options) -> Iterator[Images]:
    """The classes of a subset of ImageNet, its training images, and those of val if they are there.

    They are out of the official archive, or out of a folder with one for each class, which `root`
    is, or its folder train. Those of val are in classes only in folders.
    """
    archive, folder = root / spec.archive.name, _train_folder(spec, root)
    named = _names_of_classes(root)
    words = [named.get(wnid, wnid) for wnid in spec.wnids]
    if folder is None:
        if not archive.is_file():
            raise UserError(f"{spec.title}: no ImageNet in {root}: {spec.archive.remedy(root)}")
        spec.archive.check(archive, whole=options.verify)
        yield from _of_archive(spec, archive, words)
        return
    folders = {"train": folder, "val": folder.parent / "val"}
    for split, place in folders.items():
        if split == "val" and not all((place / wnid).is_dir() for wnid in spec.wnids):
            continue
        tree = _Folder(place)
        for label, wnid in enumerate(spec.wnids):
            names = [name for name in tree.names(wnid) if _is_image(name)]
            try:
                yield from _parts(tree, split, names, [label] * len(names), words)
            except OSError as error:
                raise UserError(
                    f"{spec.title}: {place / wnid} cannot be read ({one_line(error)}); "
                    f"{spec.archive.remedy(root)}"
                ) from None


def _train_folder(spec: BenchmarkSet, root: Path) -> Path | None:
    """The folder with one for each class; None if there is none."""
    for folder in (root / "train", root, root / "ILSVRC" / "Data" / "CLS-LOC" / "train"):
        there = [wnid for wnid in spec.wnids if (folder / wnid).is_dir()]
        if len(there) == len(spec.wnids):
            return folder
        if there:
            missing = next(wnid for wnid in spec.wnids if wnid not in there)
            raise UserError(
                f"{spec.title}: {folder} has {len(there):,} of its {len(spec.wnids):,} classes, "
                f"but not {missing}: {spec.archive.remedy(root)}"
            )
    return None


def _of_archive(spec: BenchmarkSet, path: Path, words: Sequence[str]) -> Iterator[Images]:
    """Out of the archive of archives, one for each class; nothing is unpacked on the disk."""
    number = {f"{wnid}.tar": label for label, wnid in enumerate(spec.wnids)}
    try:
        with tarfile.open(path, "r:") as outer:
            for member in outer:
                label = number.get(member.name.rpartition("/")[2])
                content = None if label is None else outer.extractfile(member)
                if label is None or content is None:
                    continue
                with content, tarfile.open(fileobj=content, mode="r:") as inner:
                    yield from _of_class(inner, label, spec.wnids[label], words)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); {spec.archive.remedy(path.parent)}"
        ) from None


def _of_class(
    inner: tarfile.TarFile, label: int, wnid: str, words: Sequence[str]
) -> Iterator[Images]:
    names: list[str] = []
    files: list[bytes] = []

    def part() -> Images:
        labels = np.full(len(files), label, np.int64)
        return Images("train", list(files), {"label": labels}, {"label": words}, list(names))

    for member in inner:
        content = inner.extractfile(member)
        if content is None or not _is_image(member.name):
            continue
        files.append(content.read())
        names.append(f"{wnid}/{printable(member.name.rpartition('/')[2])}")
        if len(files) == _BATCH:
            yield part()
            files.clear()
            names.clear()
    if files:
        yield part()


def _names_of_classes(root: Path) -> dict[str, str]:
    """Names by WordNet ids, where a list of them lies beside the images."""
    found = {}
    for name in ("LOC_synset_mapping.txt", "words.txt", "synset_words.txt"):
        path = root / name
        if path.is_file():
            for line in io.StringIO(path.read_text(errors="replace")):
                wnid, _, words = line.strip().replace("\t", " ").partition(" ")
                found[wnid] = words.split(",")[0].strip() or wnid
    return found
