"""Broken and odd files for everything that reads files, and what has to come of each.

`python -m tests.fuzzed_files KIND SEED COUNT` reads seeded changes of real files, under limits of
time and memory that the system enforces, and tells how many were taken and refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import resource
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.prepared import prepared_data
from conr_ray.data.sources import make_source
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError
from conr_ray.storage import sealed
from tests.fuzzed import WORDS, changed_bytes, survive_all

T = TypeVar("T")
_MOST_GROWTH_MIB = 1000


class Fuzzed(ABC):
    """A kind of input: examples, how one is changed, and how it is read."""

    examples: Sequence[Any]

    def __init__(self, folder: Path) -> None:
        """Make examples; files are written below `folder`."""
        self.folder = folder

    @abstractmethod
    def change(self, example: Any, random: Random) -> Any:
        """A changed example."""

    @abstractmethod
    def read(self, given: Any) -> None:
        """Read it. A UserError is what a user is told; an AssertionError is a fault."""

    def run(self, seed: int, count: int) -> tuple[int, int]:
        """How many changed examples were taken and refused; fails as `survive_all`."""
        for example in self.examples:
            # What a process needs once is not counted.
            with contextlib.suppress(UserError):
                self.read(example)
        with _told_in_lines():
            return survive_all(self.read, self.examples, seed, count, self.change, _MOST_GROWTH_MIB)


@contextlib.contextmanager
def _told_in_lines() -> Iterator[None]:
    """Keep standard error, and fail unless all of it is printable lines."""
    kept = io.StringIO()
    with contextlib.redirect_stderr(kept):
        yield
    assert all(line.isprintable() for line in kept.getvalue().split("\n")), kept.getvalue()[-3000:]


# Images


def image_files() -> dict[str, bytes]:
    """Small files of each format, in the modes and with the options that each has."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8))
    clear = noise.convert("RGBA")
    clear.putalpha(100)
    palette = noise.quantize(17)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 30
    frames = {"save_all": True, "append_images": [noise.rotate(90), noise]}
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((noise.convert(mode), "PNG", {}) for mode in ("L", "RGB", "1", "LA", "P", "I;16")),
        (clear, "PNG", {}),
        (palette, "PNG", {"transparency": 3}),
        (noise, "PNG", {"exif": exif, "dpi": (72, 72)}),
        (clear, "PNG", {"save_all": True, "append_images": [clear.rotate(90)]}),
        (noise, "JPEG", {}),
        (noise, "JPEG", {"progressive": True, "exif": exif, "subsampling": 2}),
        *((noise.convert(mode), "JPEG", {}) for mode in ("L", "CMYK")),
        (palette, "GIF", {"transparency": 2}),
        (noise, "GIF", frames),
        (noise, "WEBP", {"lossless": True}),
        (clear, "WEBP", {"quality": 30, "exif": exif}),
        (noise, "WEBP", frames),
        *((noise.convert(mode), "BMP", {}) for mode in ("1", "L", "RGB", "P")),
        *((noise, "TIFF", {"compression": c}) for c in ("raw", "tiff_lzw", "tiff_deflate", "jpeg")),
        *((noise.convert(mode), "TIFF", {}) for mode in ("1", "CMYK", "F", "LAB")),
        (palette, "TIFF", frames),
        *((noise.convert(mode), "PPM", {}) for mode in ("1", "L", "RGB")),
        (noise, "JPEG2000", {}),
        (noise.resize((1, 300)), "PNG", {}),
        (noise.resize((1, 1)), "BMP", {}),
    ]
    files = {}
    for number, (image, kind, options) in enumerate(made):
        with contextlib.suppress(OSError):
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            files[f"{number:02} {kind}"] = buffer.getvalue()
    return files


class ImageBytes(Fuzzed):
    """The bytes of an image file, in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.examples = list(image_files().values())

    def change(self, example: bytes, random: Random) -> bytes:
        changed = changed_bytes(example, random)
        # Else few changes of a PNG file would come further than its first checksum.
        return with_checksums(changed) if random.random() < 0.7 else changed

    def read(self, given: bytes) -> None:
        (self.folder / "a.png").write_bytes(given)
        for stored_size in (8, None):
            read_all(DataConfig(source="folder", path=str(self.folder), stored_size=stored_size))


def with_checksums(data: bytes) -> bytes:
    """A PNG file with the right checksum after each chunk that is there; else `data` as it is."""
    from zlib import crc32

    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[place:end], crc32(data[place + 4 : end]).to_bytes(4, "big")]
        place = end + 4
    return b"".join([*parts, data[place:]])


def read_all(config: DataConfig) -> None:
    """Read a source whole; fails if it is not what it announces."""
    source = make_source(config)
    json.dumps(source.identity())
    contents = source.contents()
    num_rows = 0
    for block in source.blocks():
        num_rows += len(block)
        assert block.shape[1:] == contents.row_shape, (block.shape, contents.row_shape)
        assert block.dtype == (np.float32 if block.ndim == 2 else np.uint8)
    assert num_rows == contents.num_rows, (num_rows, contents.num_rows)
    if contents.labels is not None:
        assert contents.labels.shape == (num_rows,) and contents.labels.min() >= -1
        if contents.class_names is not None:
            assert contents.labels.max() < len(contents.class_names)


# Parquet

_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"source": "parquet"},
    {"source": "parquet", "splits": ("train",), "stored_size": 4},
    {"source": "vectors"},
)


def parquet_tables() -> list[pa.Table]:
    """Small tables of images and vectors as different programs write them."""
    pngs = [value for name, value in image_files().items() if name.endswith("PNG")][:2] * 4
    labels, split = [0, 1, 1, None, 0, 1, 0, 0], ["train", "test", None, "train"] * 2
    vectors = np.random.default_rng(0).standard_normal((8, 3), np.float32)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    rest = {"split": split, "embedding": fixed}
    names = json.dumps(["cat", "dog"])
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    hub = json.dumps({"info": {"features": feature}})
    raw = pa.array([bytes(range(12))] * 8, pa.binary(12))
    struct = pa.array([{"bytes": png, "path": None} for png in pngs])
    words = pa.array([None if n is None else f"class {n}" for n in labels])
    return [
        pa.table({"image": pngs, "label": labels, **rest}).replace_schema_metadata(
            {"classes": names}
        ),
        pa.table({"image": struct, "label": words, **rest}),
        pa.table(
            {"image": struct, "label": words.dictionary_encode(), **rest}
        ).replace_schema_metadata({"huggingface": hub}),
        pa.table(
            {"image": raw, "label": pa.array(labels, pa.uint64()), **rest}
        ).replace_schema_metadata({"shape": "2,2,3", "dtype": "uint8"}),
        pa.table({"image": pngs, "embedding": vectors.tolist(), "split": split}),
        pa.table({"image": pngs, "label": [2**62, -1] * 4, "embedding": fixed}),
    ]


class ParquetBytes(Fuzzed):
    """The bytes of a Parquet file, read with different settings."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        options: tuple[dict[str, Any], ...] = (
            {},
            {"compression": "none", "row_group_size": 3},
            {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True},
            {"data_page_version": "2.0", "compression": "gzip", "data_page_size": 64},
        )
        self.examples = [
            (_parquet_bytes(table, **some), settings)
            for table in parquet_tables()
            for some in options
            for settings in _SETTINGS
        ]

    def change(self, example: Any, random: Random) -> Any:
        return changed_bytes(example[0], random), example[1]

    def read(self, given: Any) -> None:
        file = self.folder / "a.parquet"
        file.write_bytes(given[0])
        read_all(DataConfig(path=str(file), **given[1]))


def _parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


_KINDS = (
    *(pa.null(), pa.bool_(), pa.int8(), pa.uint8(), pa.int64(), pa.uint64(), pa.float16()),
    *(pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.binary(12)),
    *(pa.large_binary(), pa.date32(), pa.timestamp("ns", "UTC"), pa.duration("s"), pa.time64("us")),
    *(pa.decimal128(20, 3), pa.list_(pa.float32()), pa.list_(pa.float64(), 3), pa.list_(pa.int8())),
    *(
        pa.large_list(pa.float32()),
        pa.list_(pa.list_(pa.float32())),
        pa.list_(pa.struct({"x": pa.int8()})),
    ),
    *(pa.struct({"bytes": pa.binary(), "path": pa.string()}), pa.struct({"bytes": pa.string()})),
    *(pa.struct({"x": pa.int8()}), pa.dictionary(pa.int8(), pa.string())),
    *(pa.dictionary(pa.int32(), pa.int64()), pa.dictionary(pa.int8(), pa.large_string())),
)
_NAMES = (
    "image",
    "label",
    "split",
    "embedding",
    "x",
    "image.bytes",
    "",
    "a.b",
    "\n",
    "🙂",
    "labels",
)
_KEYS = ("shape", "dtype", "classes", "huggingface", "pandas", "ARROW:schema", "x")
_TEXTS = (
    *("2,2", "2,2,3", "4096,4096,3", "99999999999,9", "-1,2", "٣,٤", "0,0", "3,4,1", "uint8"),
    *("float32", '["a", "b"]', '["a", 1, null, "\\ud800", "\\n"]', "[]", "{}", "null", "5", "["),
    *('{"info": []}', '{"info": {"features": {"label": {"names": 3}}}}', "[" * 5000, "[1e999]"),
    *('{"info": {"features": {"label": {"names": ["$\\\\LaTeX$", ""]}}}}', "1" * 5000),
)


class OddTables(Fuzzed):
    """Parquet files of columns of any kinds and names, with any metadata; an example is a seed."""

    examples = (0,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        pngs = [data for name, data in image_files().items() if name.endswith("PNG")][:2]
        self.usual = {
            "image": (pa.binary(), pngs),
            "label": (pa.int64(), [0, 1, None]),
            "split": (pa.string(), ["train", "test"]),
            "embedding": (pa.list_(pa.float32(), 3), [[0.5, 1.0, 2.0]]),
        }
        self.values = [None, 0, 1, -1, 2**63 - 1, 2**64 - 1, 0.5, 1e300, "train", "\n", "名", True]
        self.values += [b"", b"\xff" * 12, *pngs, [], [0.5, 1.0, 2.0], [1.0], [None], [[1.0]]]
        self.values += [{"bytes": pngs[0]}, {"bytes": "x"}, {"x": 1}, [{"x": None}]]

    def change(self, example: Any, random: Random) -> Any:
        return random.getrandbits(40)

    def read(self, given: Any) -> None:
        random, file = Random(given), self.folder / "odd.parquet"
        num_rows = random.choice((0, 1, 4, 4, 4, 300))
        names = ["image", "embedding", "label", "split"][: random.randint(1, 4)]
        names += [random.choice(_NAMES) for _ in range(random.choice((0, 0, 1, 3)))]
        columns = [self._column(random, name, num_rows) for name in names]
        metadata = {
            random.choice(_KEYS): random.choice((random.choice(_TEXTS).encode(), b"\xff\xfe{"))
            for _ in range(random.choice((0, 0, 1, 3)))
        }
        table = pa.Table.from_arrays(columns, names)
        try:
            pq.write_table(table.replace_schema_metadata(metadata or None), file)
        # What Arrow does not write.
        except (pa.ArrowException, ValueError, OSError):
            return
        for settings in _SETTINGS[1:]:
            with contextlib.suppress(UserError):
                read_all(DataConfig(path=str(file), **settings))
        label = random.choice(("label", "label", None, *_NAMES))
        read_all(DataConfig(source="parquet", path=str(file), label_column=label))

    def _column(self, random: Random, name: str, num_rows: int) -> pa.Array:
        """A column as it should be, or of any kind with values that are null or extreme."""
        if name in self.usual and random.random() < 0.6:
            kind, values = self.usual[name]
        else:
            kind, values = random.choice(_KINDS), []
            for value in self.values:
                with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
                    pa.array([value], kind)
                    values.append(value)
            values = random.sample(values, min(len(values), random.randint(1, 4)))
        # Older Arrow makes no arrays of some kinds from Python's values.
        if not values:
            return pa.nulls(num_rows, kind)
        try:
            return pa.array([random.choice(values) for _ in range(num_rows)], kind)
        # Arrow takes each of them, but not all together.
        except (pa.ArrowException, TypeError, ValueError):
            return pa.array([values[0]] * num_rows, kind)


# What a run, a search and a cache write


class FilesOfFolder(Fuzzed):
    """A folder of which one file at a time is changed; an example is the file's name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.make()
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.whole = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        self.examples = [name for name in self.whole if self.is_changed(name)]

    @abstractmethod
    def make(self) -> None:
        """Write the folder."""

    def is_changed(self, name: str) -> bool:
        """Whether a file is one whose changes are of interest."""
        return True

    def change(self, example: str, random: Random) -> Any:
        data = self.whole[example]
        if example.endswith((".json", ".yaml", ".journal")) and random.random() < 0.3:
            word = random.choice(WORDS).encode(errors="surrogatepass")
            place = random.randint(0, len(data))
            return example, data[:place] + word + data[place + random.randint(0, 9) :]
        return example, changed_bytes(data, random)

    def read(self, given: Any) -> None:
        name, data = (given, self.whole[given]) if isinstance(given, str) else given
        shutil.rmtree(self.folder)
        for file, content in {**self.whole, name: data}.items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_bytes(content)
        self.check(name)

    @abstractmethod
    def check(self, name: str) -> None:
        """Read the folder, of which the file `name` is changed."""


class Cache(FilesOfFolder):
    """The decoded copy: what is read is what was written, or is made anew."""

    def make(self) -> None:
        # Modification times of the images are a part of the copy's name: they are elsewhere.
        kept = self.folder.with_name(f"{self.folder.name}-set")
        images = list(image_files().values())
        for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (kept / name).write_bytes(images[number])
        self.config = DataConfig(source="folder", path=str(kept), stored_size=6)
        self.expected = open_data(self.config, self.folder)
        self.rows = np.array(self.expected.rows)

    def is_changed(self, name: str) -> bool:
        return not name.endswith(".lock")

    def check(self, name: str) -> None:
        # As another process would.
        sealed._checked.clear()
        prepared = prepared_data(self.config, self.folder)
        for found in (prepared, open_data(self.config, self.folder)):
            if found is not None:
                self._compare(found)

    def _compare(self, found: DataSet) -> None:
        expected = self.expected
        assert np.array_equal(found.rows, self.rows)
        assert np.array_equal(found.labels, expected.labels)
        for field in dataclasses.fields(DataSet):
            if field.name not in ("rows", "labels", "sample_ids"):
                assert getattr(found, field.name) == getattr(expected, field.name), field.name


class Checkpoints(FilesOfFolder):
    """A run's config and checkpoints: what is used is what was saved.

    Checksums of states are left out of every other summary, as if one had been written by hand.
    """

    summed = True

    def make(self) -> None:
        import torch

        from conr_ray.engine.acceleration import Acceleration
        from conr_ray.engine.run_directory import RunDirectory
        from conr_ray.engine.training_state import TrainingState
        from tests.tiny_runs import tiny_config

        changes = {"model__widths": [4], "model__head_hidden_dim": 4, "model__embedding_dim": 2}
        config = tiny_config(**changes, bank__size=0)
        directory = RunDirectory(self.folder)
        directory.write_config(config)
        state = TrainingState.create(config, (1, 8, 8), Acceleration(torch.device("cpu")))
        inputs = {"kind": "images", "shape": [1, 8, 8], "size": 8, "mean": [0.5], "std": [0.25]}
        for state.epoch in (2, 4):
            checkpoint = state.to_checkpoint(config, "fingerprint", inputs)
            directory.save_checkpoint(state.epoch, checkpoint, {"epochs_trained": state.epoch}, 9)
        self.weights = {n: w.clone() for n, w in state.framework.state_dict().items()}
        if not self.summed:
            for summary in self.folder.glob("checkpoints/*/summary.json"):
                summary.write_text("{}")

    def is_changed(self, name: str) -> bool:
        return "epoch_000004" in name or name == "config.yaml"

    def check(self, name: str) -> None:
        import torch

        from conr_ray.engine.trained_run import TrainedRun

        run = TrainedRun.load(self.folder)
        assert run.state.epoch in (2, 4) or not self.summed
        if self.summed and name.endswith("state.pt"):
            found = run.state.framework.state_dict()
            assert all(torch.equal(found[n], weight) for n, weight in self.weights.items())


class UnsummedCheckpoints(Checkpoints):
    """The same without checksums."""

    summed = False


class RunFiles(Checkpoints):
    """What a report and the commands read of a run: metrics, snapshot, profile, failure, origin."""

    def make(self) -> None:
        from conr_ray.engine.run_directory import RunDirectory
        from conr_ray.engine.snapshot import Snapshot
        from conr_ray.errors import RunFailed

        super().make()
        shutil.rmtree(self.folder / "checkpoints")
        directory = RunDirectory(self.folder)
        directory.write_metrics([{"epoch": n, "stage": "instance", "loss": 1.5} for n in range(2)])
        directory.record_failure(RunFailed("no reason"))
        directory.write_text("origin.json", '{"trunk": "a", "epoch": 1, "note": ""}')
        phases = {"instance": {"steps": 3, "seconds": {"views": 0.5, "other": 0.1}}}
        directory.write_text("profile/phases.json", json.dumps(phases))
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(np.full(6, 0.5, np.float16)), 2)
        ranked = {"rank": [1, 2, 3], "sample_id": [0, 1, 2]}
        samples = {"sample_id": [0, 1, 2], "label": [0, 1, None], "cluster": [0, 1, 1]}
        samples |= {"boundary_ratio": [0.5] * 3, "kept": [True] * 3, "embedding": embeddings}
        tables = (
            samples,
            {"query_id": [0] * 3, "kind": ["contextual"] * 3, **ranked},
            {"cluster": [0, 1, 1], "kind": ["typical"] * 3, **ranked},
            {"sample_id": [0], "png": [b"no image"]},
        )
        Snapshot(1, 3, ("a", "b"), *map(pa.table, tables), None).write(directory)

    def is_changed(self, name: str) -> bool:
        return name != ".folder-id"

    def check(self, name: str) -> None:
        from conr_ray.engine.profile import read_profile
        from conr_ray.engine.run_directory import RunDirectory
        from conr_ray.errors import RunFailed
        from conr_ray.reporting.run_data import read_run

        directory = RunDirectory(self.folder)
        data = read_run(directory, draw_map=False)
        assert all(problem.isprintable() for problem in data.problems.values()), data.problems
        with contextlib.suppress(RunFailed):
            directory.raise_failure()
        read_profile(directory)


class Journal(FilesOfFolder):
    """The study of a search and its list of checksums: entries that are read are those written."""

    def make(self) -> None:
        import optuna

        from conr_ray.searching.study_storage import journal_file

        storage = journal_file(self.folder / "study.journal")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.RandomSampler(0)
        study = optuna.create_study(storage=storage, study_name="search", sampler=sampler)
        for _ in range(3):
            trial = study.ask()
            trial.report(trial.suggest_float("x", 0, 1), 1)
            study.tell(trial, 0.5)
        lines = (self.folder / "study.journal").read_text().splitlines()
        self.entries = [json.loads(line) for line in lines]

    def check(self, name: str) -> None:
        from conr_ray.searching.file_journal import FileJournal
        from conr_ray.searching.search_directory import SearchDirectory
        from conr_ray.storage.files import Folder

        found = list(FileJournal(self.folder / "study.journal").read_logs(0))
        if "study.journal.sums" in self.whole:
            assert found == self.entries[: len(found)] and len(found) >= len(self.entries) - 1
        study = SearchDirectory(Folder(self.folder)).read_study()
        # Without the list, entries that stand there twice are as good as any.
        if study is not None and "study.journal.sums" in self.whole:
            assert len(study.get_trials()) <= 3
        journal = FileJournal(self.folder / "study.journal")
        journal.append_logs([{"op_code": 2, "x": 1}])
        again = list(FileJournal(self.folder / "study.journal").read_logs(0))
        # NaN, which is no JSON but read as such, is not equal to itself.
        assert repr(again[:-1]) == repr(found) and again[-1]["x"] == 1


class UnsummedJournal(Journal):
    """The same without a list of checksums, as a study that another program has written."""

    def make(self) -> None:
        super().make()
        (self.folder / "study.journal.sums").unlink()


KINDS: dict[str, type[Fuzzed]] = {
    "image": ImageBytes,
    "parquet": ParquetBytes,
    "table": OddTables,
    "cache": Cache,
    "checkpoint": Checkpoints,
    "unsummed_checkpoint": UnsummedCheckpoints,
    "run": RunFiles,
    "journal": Journal,
    "unsummed_journal": UnsummedJournal,
}


def _limited(growth_mib: int) -> None:
    """Let the system refuse this process more memory than it has and `growth_mib`."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + growth_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _main(kind: str, seed: str, count: str) -> None:
    # What is on the disk after a loss of power is not of interest here.
    os.fsync = lambda file: None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "files")
        place.mkdir()
        fuzzed = KINDS[kind](place)
        fuzzed.run(int(seed), 1)
        _limited(2 * _MOST_GROWTH_MIB)
        taken, refused = fuzzed.run(int(seed), int(count))
    print(f"{kind} {seed}: {taken} taken, {refused} refused")


if __name__ == "__main__":
    _main(*sys.argv[1:])
