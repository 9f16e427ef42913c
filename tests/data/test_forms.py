"""One set of images in every form and place: equal pixels, labels and names."""

from __future__ import annotations

import io
import secrets
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from pyarrow import fs

from conr_ray.config import DataConfig
from conr_ray.data.store import DataSet, open_data
from tests.data.faulty_servers import web_server

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
NAMES = ["cat/1.png", "cat/2 ü#%.PNG", "dog/3.jpg", "dog/deep/4.webp", "dog/deep/5.png"]
CLASSES = ["cat", "cat", "dog", "dog", "dog"]
LABELS = [0, 0, 1, 1, 1]
KINDS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


def files() -> dict[str, bytes]:
    """The images of the set, by name."""
    found = {}
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, KINDS[name.rpartition(".")[2].lower()])
        found[name] = buffer.getvalue()
    return found


def arrays() -> Any:
    """Their pixels, (n, h, w, c)."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files().values()])


def write_folder(root: Path, _: str) -> None:
    for name, data in files().items():
        (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pictures" / name).write_bytes(data)


def write_zip(root: Path, _: str) -> None:
    with zipfile.ZipFile(root / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in reversed(files().items()):
            archive.writestr(name, data)


def write_tar(root: Path, name: str) -> None:
    with tarfile.open(root / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, data in reversed(files().items()):
            add(archive, f"./{member}", data)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_shards(root: Path, folder: str) -> None:
    """As WebDataset does: a class beside each image, by number or in JSON."""
    (root / folder).mkdir()
    rows = list(zip(files().items(), LABELS, CLASSES, strict=True))
    for number, some in enumerate((rows[:2], rows[2:])):
        with tarfile.open(root / folder / f"train-{number:02d}.tar", "w") as archive:
            for (name, data), label, word in some:
                key, _, ending = name.rpartition(".")
                add(archive, f"{key}.{ending}", data)
                if folder == "json":
                    add(archive, f"{key}.json", f'{{"label": "{word}", "more": 1}}'.encode())
                else:
                    add(archive, f"{key}.cls", b"%d\n" % label)


def write_parquet(root: Path, name: str) -> None:
    table = pa.table({"image": list(files().values()), "label": CLASSES})
    path = root / name
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=2)
        return
    path.mkdir()
    pq.write_table(table[:3], path / "part-0.parquet")
    pq.write_table(table[3:], path / "part-1.parquet")


def write_list(root: Path, name: str) -> None:
    paths = [f"pictures/{one}" for one in NAMES]
    if name.endswith(".txt"):
        (root / name).write_text("\n".join(paths) + "\n")
        return
    table = pa.table({"path": paths, "label": CLASSES, "id": [f"i{n}" for n in range(5)]})
    if name.endswith(".parquet"):
        pq.write_table(table, root / name)
    else:
        separator = "\t" if name.endswith(".tsv") else ";"
        csv.write_csv(table, root / name, csv.WriteOptions(delimiter=separator))


def write_arrays(root: Path, name: str) -> None:
    images, words = arrays(), np.array(CLASSES)
    if name == "set.npy":
        np.save(root / name, images)
    elif name == "first.npy":
        np.save(root / name, images.transpose(0, 3, 1, 2))
    elif name == "set.npz":
        np.savez(root / name, images=images, labels=words, more=np.zeros(5))
    elif name == "floats.npz":
        np.savez_compressed(root / name, x=(images / 255).astype(np.float32), y=LABELS)
    else:
        parts = {"x_train": images[:3], "y_train": words[:3]}
        np.savez(root / name, **parts, x_test=images[3:], y_test=words[3:])


# What is in the table of the docs: a form's name there, what writes it, its paths, whether it has
# labels and the names of the folder; a name of a file is the argument of the writer.
Form = tuple[Callable[[Path, str], None], str, list[str], bool, str | None]
FORMS: list[tuple[str, Form]] = [
    ("folder", (write_folder, "pictures", ["pictures", "pictures/"], True, "")),
    ("zip", (write_zip, "set.zip", ["set.zip"], True, "")),
    ("tar", (write_tar, "set.tar", ["set.tar"], True, "")),
    ("tar, packed", (write_tar, "set.tar.gz", ["set.tar.gz"], True, "")),
    ("WebDataset, .cls", (write_shards, "cls", ["cls", "cls/train-{00..01}.tar"], True, "")),
    ("WebDataset, .json", (write_shards, "json", ["json", "json/train-*.tar"], True, "")),
    ("Parquet file", (write_parquet, "set.parquet", ["set.parquet"], True, None)),
    ("Parquet files", (write_parquet, "many", ["many", "many/*.parquet"], True, None)),
    ("CSV of paths", (write_list, "set.csv", ["set.csv"], True, "pictures/")),
    ("TSV of paths", (write_list, "set.tsv", ["set.tsv"], True, "pictures/")),
    ("text file of paths", (write_list, "set.txt", ["set.txt"], False, "pictures/")),
    ("Parquet of paths", (write_list, "paths.parquet", ["paths.parquet"], True, "pictures/")),
    (".npy", (write_arrays, "set.npy", ["set.npy"], False, None)),
    (".npy, channels first", (write_arrays, "first.npy", ["first.npy"], False, None)),
    (".npz", (write_arrays, "set.npz", ["set.npz"], True, None)),
    (".npz, floats", (write_arrays, "floats.npz", ["floats.npz"], True, None)),
    (".npz of splits", (write_arrays, "splits.npz", ["splits.npz"], True, None)),
]
PLACES = {"here": "a path", "s3": "`s3://`", "web": "`http://`"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where all forms are: here, in a bucket, on a web server."""
    root = tmp_path_factory.mktemp("forms")
    for _, (write, name, *_) in FORMS:
        write(root, name)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch, web_server(root) as url:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = f"forms-{secrets.token_hex(4)}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        fs.copy_files(str(root), f"s3://{bucket}", use_threads=False)
        yield {"here": str(root), "s3": f"s3://{bucket}", "web": url}
    server.stop()


def opened(path: str, cache: Path, **fields: Any) -> DataSet:
    """The data set at a path, whose form is found."""
    return open_data(DataConfig(source="auto", path=path, **fields), cache)


@pytest.fixture(scope="module")
def reference(roots: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    data = opened(f"{roots['here']}/pictures", tmp_path_factory.mktemp("cache"))
    np.testing.assert_array_equal(data.rows, arrays().transpose(0, 3, 1, 2))
    assert data.names == NAMES and data.class_names == ("cat", "dog")
    assert data.labels is not None and data.labels.tolist() == LABELS
    return data


CASES = [
    (place, path, labelled, prefix)
    for _, (_, _, paths, labelled, prefix) in FORMS
    for path in paths
    for place in PLACES
    # Web servers list no files by a pattern.
    if not (place == "web" and "*" in path)
]


@pytest.mark.parametrize(("place", "path", "labelled", "prefix"), CASES)
def test_equal_in_every_form_and_place(
    place: str,
    path: str,
    labelled: bool,
    prefix: str | None,
    roots: dict[str, str],
    reference: DataSet,
    tmp_path: Path,
) -> None:
    data = opened(f"{roots[place]}/{path}", tmp_path)
    np.testing.assert_array_equal(data.rows, reference.rows)
    # All that training reads of the samples is in these.
    assert data.rows_fingerprint == reference.rows_fingerprint
    if labelled:
        assert data.fingerprint == reference.fingerprint
    else:
        assert data.labels is None
    assert data.names == (None if prefix is None else [prefix + name for name in NAMES])
    assert data.sample_ids.tolist() == list(range(5))


def test_the_table_of_the_docs_is_what_is_tested() -> None:
    lines = DOCS.read_text().splitlines()
    begin = lines.index("| form | a path | `s3://` | `http://` |")
    table = {}
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        form, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        table[form] = cells
    assert table == {form: ["yes", "yes", "yes"] for form, _ in FORMS}


@pytest.mark.parametrize("place", PLACES)
def test_a_list_of_absolute_places(
    place: str, roots: dict[str, str], reference: DataSet, tmp_path: Path
) -> None:
    quoted = [name.replace("#", "%23") for name in NAMES] if place == "web" else NAMES
    # In URLs percent signs begin a code.
    quoted = [name.replace("%.", "%25.") for name in quoted] if place == "web" else quoted
    rows = [f"{roots[place]}/pictures/{name}" for name in quoted]
    (tmp_path / "l.csv").write_text("url,label\n" + "".join(f"{row},3\n" for row in rows))
    data = opened(str(tmp_path / "l.csv"), tmp_path / "cache")
    assert data.rows_fingerprint == reference.rows_fingerprint
    assert data.labels is not None and set(data.labels.tolist()) == {3}


def test_ids_name_the_samples_of_a_list(
    roots: dict[str, str], tmp_path: Path, message: Any
) -> None:
    path = f"{roots['here']}/set.csv"
    assert opened(path, tmp_path, id_column="id").names == [f"i{n}" for n in range(5)]
    told = message(source="list", path=path, id_column="label")
    assert told == "data.id_column=label: cat is there twice; give each row an id of its own"
    told = message(source="list", path=path, id_column="none")
    assert told.startswith("data.id_column=none: there is no such column; choose from path, label")
