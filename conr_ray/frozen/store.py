"""What frozen backbones have made of images, kept in the cache: embedded once, found by later runs.

A folder of it is named by a hash of everything that determines the vectors: the images, the
backbone with its weights, how images are prepared and, if there are any, the random views. It holds

vectors.npy                    float32 (n, d), of the plain images
views.npy                      float32 (n, v, d), of the random views; absent without
backbone-DIGEST.safetensors    the weights
meta.json                      what it is, and checksums of the other files; written last

While it is made, in the folder beside it that ends in .partial, each part of the images has a file
of its own, whose name has its checksum: embedding that was killed goes on with the parts there are.

Shapes: n images, b of a part, d width, v random views.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from conr_ray.config import RunConfig, ViewsConfig
from conr_ray.data.cache import PRIVATE, Hold, default_cache_dir, make_room
from conr_ray.data.progress import Lines, Progress
from conr_ray.data.sources.files import locked
from conr_ray.data.statistics import statistics_of
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError, one_line
from conr_ray.frozen.backbone import FrozenBackbone, weights_file
from conr_ray.frozen.known import KnownBackbone
from conr_ray.frozen.sharing import META, fetched
from conr_ray.storage import disk
from conr_ray.storage.files import Folder
from conr_ray.storage.sealed import Damaged, seal, unseal

# Part of every folder's name: increase it when other vectors or files are made.
_FORMAT = 1
_VECTORS, _VIEWS = "vectors.npy", "views.npy"
_PART_ROWS = 256
_PART_NAME = re.compile(r"part-(\d{8})-([0-9a-f]{8})\.npy")
# Fields of `views` that change what is embedded, if there are random views.
_OF_VIEWS = ViewsConfig.unused_when_embedded(0) - ViewsConfig.unused_when_embedded(1)

Part = tuple[int, NDArray[np.float32]]
"""First row and vectors of some images, float32 (b, 1 + v, d)."""


Embed = Callable[[FrozenBackbone, DataSet, Iterable[range]], Iterator[Part]]
"""From rows of a data set, which are ranges of at most `_PART_ROWS`, to parts, in any order."""


@dataclass(frozen=True)
class Embedding:
    """What embedded images are made of.

    Attributes:
        config: of a run whose backbone does not train.
        images: its images.
        known: the backbone.
    """

    config: RunConfig
    images: DataSet
    known: KnownBackbone

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the vectors, as JSON values."""
        facts, num_views = self.known.facts, self.config.data.embedded_views
        views = self.config.views.model_dump(mode="json", include=set(_OF_VIEWS))
        return {
            "format": _FORMAT,
            "images": self.images.rows_fingerprint,
            "backbone": facts["name"],
            "weights": facts["digest"],
            "preparation": facts["preparation"],
            "embedded_views": num_views,
            "views": views if num_views else None,
        }

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        text = json.dumps(self.identity, sort_keys=True)
        return self.known.cache / "embeddings" / hashlib.sha256(text.encode()).hexdigest()

    def data(self, meta: Mapping[str, Any], hold: Hold) -> DataSet:
        """The embedded images, memory-mapped; `hold` is let go with them."""
        folder = self.folder
        rows = np.load(folder / _VECTORS, mmap_mode="r")
        hold.while_open(rows)
        has_views = bool(self.config.data.embedded_views)
        own = self.images.fingerprint + folder.name
        return replace(
            self.images,
            rows=rows,
            stored_views=np.load(folder / _VIEWS, mmap_mode="r") if has_views else None,
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            fingerprint=hashlib.sha256(own.encode()).hexdigest(),
            rows_fingerprint=folder.name,
            images=self.images,
            backbone={**self.known.facts, "images": list(self.images.row_shape)},
            embedded_in=folder,
        )


def vectors_of(
    config: RunConfig, images: DataSet, backbone: FrozenBackbone, rows: range
) -> NDArray[np.float32]:
    """The vectors of some rows, (b, 1 + v, d).

    Raises:
        UserError: one of them is not finite.
    """
    pixels = torch.from_numpy(np.array(images.rows[rows.start : rows.stop]))
    ids = torch.from_numpy(images.sample_ids[rows.start : rows.stop].copy())
    found = backbone.embedded(pixels, config.views, config.data.embedded_views, ids)
    if not bool((finite := found.isfinite().flatten(1).all(1)).all()):
        row = rows[int(torch.nonzero(~finite)[0])]
        raise UserError(
            f"model.backbone={config.model.backbone}: its vector of image {row} is not finite: set "
            "model.weights to others"
        )
    return found.numpy()


def open_samples(
    config: RunConfig, run: Folder | None = None, cache_dir: Path | None = None
) -> DataSet:
    """The samples that a run of `config` in the folder `run` trains on.

    See `open_data` and `embedded`; what another node has embedded may be in the run's folder.
    """
    return embedded(config, open_data(config.data, cache_dir), cache_dir, run=run)


def embedded(
    config: RunConfig,
    images: DataSet,
    cache_dir: Path | None = None,
    embed: Embed | None = None,
    progress: Progress | None = None,
    run: Folder | None = None,
    known: KnownBackbone | None = None,
) -> DataSet:
    """`images` as vectors, where the backbone of `config` does not train; else as they are.

    They are found in the cache, or embedded. Any number of processes may call it at once: one
    embeds, the others wait.

    Args:
        config: of the run.
        images: its images.
        cache_dir: `default_cache_dir()` if None.
        embed: how images are embedded; in this process if None.
        progress: is told how far it is; lines on standard error if None.
        known: the backbone, if it is loaded already.
        run: folder of the run, which may keep the weights, and where another node may have left
            the vectors: see `share_embedded`.

    Raises:
        UserError: the backbone or its weights cannot be had, or the cache cannot be written.
    """
    if not config.embeds_once:
        return images
    root = default_cache_dir() if cache_dir is None else cache_dir
    asked = Embedding(config, images, known or KnownBackbone(config, root, run))
    hold = Hold(asked.folder)
    try:
        if (meta := _whole(asked.folder)) is None:
            meta = _build_once(asked, embed or partial(_here, config), progress, run)
        return asked.data(meta, hold)
    except BaseException as error:
        hold.release()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"the cache {root} cannot hold the embedded images ({one_line(error)}); set "
            "CONR_RAY_CACHE to a writable folder with space"
        ) from error


def is_embedded(config: RunConfig, images: DataSet, run: Folder | None = None) -> bool:
    """Whether `embedded` has nothing to compute, for a run in the folder `run`."""
    if not config.embeds_once:
        return True
    known = KnownBackbone(config, default_cache_dir(), run)
    return (Embedding(config, images, known).folder / META).exists()


def check_frozen(config: RunConfig, run: Folder | None = None) -> None:
    """Raise UserError if a backbone that does not train, or its weights, cannot be had."""
    _ = KnownBackbone(config, default_cache_dir(), run).facts


def trained_shape(
    config: RunConfig, row_shape: tuple[int, ...], run: Folder | None = None
) -> tuple[int, ...]:
    """Shape of what the networks of `config` take, of samples of `row_shape`.

    `run` is the folder of the run, which may keep the weights.

    Raises:
        UserError: its backbone does not train, and cannot be had.
    """
    if not config.embeds_once:
        return row_shape
    return (int(KnownBackbone(config, default_cache_dir(), run).facts["out_features"]),)


def _whole(folder: Path) -> dict[str, Any] | None:
    """What meta.json of `folder` tells, None if it is not there or not whole."""
    try:
        return unseal(folder, META)
    except (Damaged, OSError) as error:
        if folder.exists():
            disk.tell(f"the cache {folder} is damaged ({one_line(error)}): it is made anew")
        return None


def _build_once(
    asked: Embedding, embed: Embed, progress: Progress | None, run: Folder | None
) -> dict[str, Any]:
    """Embed what is missing, unless another process has done so meanwhile."""
    folder = asked.folder
    disk.make_folders(folder.parent, PRIVATE)
    with locked(folder.with_suffix(".lock")):
        with suppress(Damaged, OSError):
            return unseal(folder, META)
        shutil.rmtree(folder, ignore_errors=True)
        if run is not None and (meta := fetched(folder, run)) is not None:
            return meta
        _tell_of_others(asked)
        partial = folder.with_suffix(".partial")
        disk.make_folders(partial, PRIVATE)
        _check_room(asked, partial)
        backbone = asked.known.checked_backbone()
        if note := backbone.pretrained.note:
            disk.tell(f"model.weights: {note}")
        _embed_parts(asked, embed, partial, progress or Lines("embedded", asked.images.num_rows))
        # In a folder of its own, so that a kill until the end costs no part.
        joined = folder.with_suffix(".joined")
        shutil.rmtree(joined, ignore_errors=True)
        disk.make_folders(joined, PRIVATE)
        _join(asked, partial, joined, backbone)
        joined.rename(folder)
        disk.sync_folder(folder.parent)
        shutil.rmtree(partial, ignore_errors=True)
        return unseal(folder, META)


def _ranges(num_rows: int) -> Iterator[range]:
    for start in range(0, num_rows, _PART_ROWS):
        yield range(start, min(start + _PART_ROWS, num_rows))


def _parts(folder: Path) -> dict[int, Path]:
    """The parts that are there by their first rows; damaged ones are removed."""
    found = {}
    for path in sorted(folder.iterdir()):
        name = _PART_NAME.fullmatch(path.name)
        if name is None or crc32(path.read_bytes()) != int(name[2], 16):
            disk.remove_file(path)
            continue
        found[int(name[1])] = path
    return found


def _embed_parts(asked: Embedding, embed: Embed, folder: Path, progress: Progress) -> None:
    done, num_rows = _parts(folder), asked.images.num_rows
    left = [rows for rows in _ranges(num_rows) if rows.start not in done]
    progress.passed(num_rows - sum(map(len, left)))
    for first, vectors in embed(asked.known.backbone, asked.images, left):
        buffer = BytesIO()
        np.save(buffer, vectors)
        data = buffer.getvalue()
        disk.write_file(folder / f"part-{first:08d}-{crc32(data):08x}.npy", data)
        progress.worked(len(vectors))


def _join(asked: Embedding, partial: Path, folder: Path, backbone: FrozenBackbone) -> None:
    """Make the files in `folder` of the parts."""
    num_rows, num_views = asked.images.num_rows, asked.config.data.embedded_views
    width, parts = backbone.pretrained.out_features, _parts(partial)
    assert list(parts) == [rows.start for rows in _ranges(num_rows)], "a part is missing"
    sums = statistics_of((num_rows, width))
    with (folder / _VECTORS).open("wb") as plain, (folder / _VIEWS).open("wb") as views:
        _write_header(plain, (num_rows, width))
        _write_header(views, (num_rows, num_views, width))
        for path in parts.values():
            block = np.load(path)
            first = np.ascontiguousarray(block[:, 0])
            sums.add(first)
            plain.write(first.data)
            views.write(np.ascontiguousarray(block[:, 1:]).tobytes())
    if not num_views:
        disk.remove_file(folder / _VIEWS)
    facts = asked.known.facts
    disk.write_file(folder / weights_file(facts["digest"]), backbone.content())
    mean, std = sums.mean_and_std()
    meta = {**asked.identity, "num_rows": num_rows, "mean": mean, "std": std}
    seal(folder, META, {**meta, "source": facts["source"], "licence": facts["licence"]})


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_room(asked: Embedding, folder: Path) -> None:
    """Raise UserError if the file system has no room for the vectors, in parts and joined.

    Parts that `folder` has already take no more.
    """
    each = 4 * asked.known.facts["out_features"] * (1 + asked.config.data.embedded_views)
    there = sum(path.stat().st_size for path in folder.iterdir())
    needed = 2 * each * asked.images.num_rows - there
    make_room(asked.known.cache, needed)
    free = shutil.disk_usage(folder).free
    if needed > free:
        fewer = "lower data.embedded_views, or " if asked.config.data.embedded_views else ""
        raise UserError(
            f"the embedded images take {needed >> 20:,} MiB, and {folder.parent} has "
            f"{free >> 20:,} MiB free; {fewer}set CONR_RAY_CACHE to a folder with more"
        )


def _tell_of_others(asked: Embedding) -> None:
    """Say which vectors of the same images are there that are not used, and why."""
    wanted = json.loads(json.dumps(asked.identity))
    for path in sorted(asked.folder.parent.glob("*/meta.json")):
        # One being deleted, or damaged, which may hold anything.
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            found = json.loads(path.read_text())
            if found.get("images") != wanted["images"]:
                continue
            differing = [name for name in wanted if found.get(name) != wanted[name]]
            if differing:
                disk.tell(
                    f"embeddings of these images in {path.parent} are not used: other "
                    f"{differing[0].replace('_', ' ')} ({_told(found, differing[0])})"
                )


def _told(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    text = value[:16] if name == "weights" and isinstance(value, str) else json.dumps(value)
    return text.strip('"')


def _here(
    config: RunConfig, backbone: FrozenBackbone, images: DataSet, left: Iterable[range]
) -> Iterator[Part]:
    """Embed in this process."""
    if torch.cuda.is_available():
        backbone = replace(backbone, device=torch.device("cuda"))
    for rows in left:
        yield rows.start, vectors_of(config, images, backbone, rows)
