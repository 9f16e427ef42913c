"""What a run or a search keeps of a frozen backbone: its weights, and vectors for other nodes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from conr_ray.data.cache import PRIVATE
from conr_ray.data.sources.files import locate
from conr_ray.data.store import DataSet
from conr_ray.errors import one_line
from conr_ray.frozen.backbone import home_of, weights_file
from conr_ray.storage import disk
from conr_ray.storage.files import Folder
from conr_ray.storage.sealed import Damaged, unseal

# In a folder of vectors: what they are, and checksums of the other files; written last.
META = "meta.json"
# In the folder of a run or a search: what one node has embedded for the others.
SHARED = "embeddings"


def keep_backbone(data: DataSet, run: Folder) -> None:
    """Keep the weights that have embedded `data` where the run in the folder `run` can be applied.

    That is the folder of the search for its trials and trunks, and else its own; nothing is done
    for samples that no backbone has embedded.
    """
    if data.backbone is None or data.embedded_in is None:
        return
    name, home = weights_file(data.backbone["digest"]), home_of(run)
    if not home.has(name):
        home.write_bytes(name, (data.embedded_in / name).read_bytes())


def share_embedded(data: DataSet, run: Folder) -> None:
    """Leave embedded images where other nodes find them: in the folder of the run or its search."""
    if data.embedded_in is None:
        return
    place = Folder(f"{home_of(run).uri}/{SHARED}/{data.embedded_in.name}")
    if not place.has(META):
        _copy(Folder(data.embedded_in), place)


def fetched(folder: Path, run: Folder) -> dict[str, Any] | None:
    """Fetch what another node has left; None if there is nothing, or it is damaged."""
    place = Folder(f"{home_of(run).uri}/{SHARED}/{folder.name}")
    if not place.has(META):
        return None
    copy = folder.with_suffix(".copy")
    shutil.rmtree(copy, ignore_errors=True)
    disk.make_folders(copy, PRIVATE)
    try:
        _copy(place, Folder(copy))
        unseal(copy, META)
        copy.rename(folder)
        return unseal(folder, META)
    except (Damaged, OSError, pa.ArrowException) as error:
        disk.tell(f"{place.uri} cannot be used ({one_line(error)}): the images are embedded here")
        return None
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _copy(source: Folder, target: Folder) -> None:
    """Copy the files of a folder, which may take more than fits in memory."""
    here, there = (locate(folder.uri) for folder in (source, target))
    there.filesystem.create_dir(there.path, recursive=True)
    # What is written last tells that all is there.
    for name in sorted(source.file_names(""), key=lambda name: name == META):
        pafs.copy_files(
            f"{here.path}/{name}",
            f"{there.path}/{name}",
            source_filesystem=here.filesystem,
            destination_filesystem=there.filesystem,
        )
