"""Where the weights of `model.weights` are: timm's hub, an installed package, or a file.

`hub` is what timm itself would load. It is looked for in the hub's cache on this machine first, so
that a machine without network uses what is there, and else is told at once what to do: the hub's
own client tries for a minute.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from conr_ray.errors import UserError, one_line
from conr_ray.method.backbone_names import HUB, PACKAGE
from conr_ray.method.timm_backbone import timm_config
from conr_ray.pretrained.weights_file import SUFFIXES, read_weights

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_REACH_S = 4.0


@dataclass(frozen=True)
class Found:
    """Weights as they lie in a file.

    Attributes:
        source: where they came from, for people.
        tensors: by the names in the file.
        licence: under which they are given, as far as it is known.
    """

    source: str
    tensors: dict[str, Tensor]
    licence: str | None = None


def find_weights(backbone: str, weights: str) -> Found:
    """What `model.weights` names, for the model that `model.backbone` names.

    Raises:
        UserError: there is no such file or package, the hub cannot be reached or has none, or the
            file cannot be read or holds more than tensors.
    """
    if weights == HUB:
        return _of_hub(backbone)
    if weights.startswith(PACKAGE):
        file, licence = _in_package(weights.removeprefix(PACKAGE))
        return Found(weights, read_weights(str(file)), licence)
    return Found(weights, read_weights(weights))


def package_file(weights: str) -> Path | None:
    """The file that `package:NAME` names; None if `weights` names no package.

    Raises:
        UserError: there is no such package or file.
    """
    if not weights.startswith(PACKAGE):
        return None
    return _in_package(weights.removeprefix(PACKAGE))[0]


def _in_package(name: str) -> tuple[Path, str | None]:
    """The one file of weights that an installed package has, and the package's licence."""
    name, _, inside = name.partition("/")
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"no package {name} is installed: pip install {name}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (*SUFFIXES, ".bin"))
    known = [str(path.relative_to(folder)) for path in files]
    if inside:
        if inside not in known:
            raise UserError(f"the package has no {inside}: give one of {', '.join(known)}")
        return folder / inside, _licence_of(name)
    if not files:
        raise UserError(f"the package has no file {', '.join(SUFFIXES)}: give the path of a file")
    if len(files) > 1:
        raise UserError(
            f"the package has {len(files)} files of weights: write {PACKAGE}{name}/{known[0]}, or "
            f"another of {', '.join(known)}"
        )
    return files[0], _licence_of(name)


def _licence_of(package: str) -> str | None:
    """What the package says of its licence; None if it says nothing."""
    try:
        told = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    fields = ("License-Expression", "License")
    texts = [text for field in fields for text in told.get_all(field) or []]
    kinds = [one.split(" :: ") for one in told.get_all("Classifier") or []]
    texts += [kind[-1] for kind in kinds if kind[0] == "License"]
    known = [text.strip() for text in texts if text.strip().upper() not in ("", "UNKNOWN")]
    return known[0].splitlines()[0] if known else None


def _of_hub(backbone: str) -> Found:
    config = timm_config(backbone)
    repository, url, licence = config.get("hf_hub_id"), config.get("url"), config.get("license")
    if not (repository or url) or config.get("custom_load"):
        raise UserError(
            "timm has no weights for this model that can be read without its own code: give a file "
            "or none"
        )
    if repository:
        file = _from_hub(repository, config.get("hf_hub_filename"))
        return Found(f"hub: {repository}", read_weights(file), licence)
    return Found(f"hub: {url}", read_weights(_from_url(str(url))), licence)


def _from_hub(repository: str, filename: str | None) -> str:
    """The path of a file in the hub's cache on this machine; fetched if it is not there."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise UserError("huggingface_hub is not installed: pip install 'conr_ray[timm]'") from None
    names = (filename,) if filename else _HUB_FILES
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    place = f"{endpoint}/{repository}/resolve/main/{names[0]}"
    repository, _, revision = repository.partition("@")
    options: dict[str, Any] = {"revision": revision or None}
    for name in names:
        try:
            return str(hf_hub_download(repository, name, **options, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    _check_reachable(endpoint, place)
    for name in names:
        try:
            return str(hf_hub_download(repository, name, **options))
        except LocalEntryNotFoundError as error:
            raise _unreachable(place, error) from None
        except EntryNotFoundError:
            continue
        # The client raises errors of many kinds: of the network, of access, of the disk.
        except Exception as error:
            raise _unreachable(place, error) from None
    raise UserError(f"{repository} has no {' or '.join(names)}: give a file")


def _from_url(url: str) -> str:
    from timm.models._hub import check_cached_file, download_cached_file

    if not check_cached_file(url):
        _check_reachable(url, url)
    try:
        return str(download_cached_file(url, progress=False))
    # As above.
    except Exception as error:
        raise _unreachable(url, error) from None


def _check_reachable(endpoint: str, place: str) -> None:
    """Raise UserError at once if nothing answers where the hub, or the proxy to it, should be."""
    told = urllib.parse.urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = None if urllib.request.proxy_bypass(told.hostname or "") else proxies.get(told.scheme)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _unreachable(place, "HF_HUB_OFFLINE is set")
    aim = urllib.parse.urlsplit(proxy) if proxy else told
    port = aim.port or (80 if aim.scheme == "http" else 443)
    try:
        socket.create_connection((aim.hostname or "", port), timeout=_REACH_S).close()
    except OSError as error:
        raise _unreachable(place, error) from None


def _unreachable(place: str, error: object) -> UserError:
    return UserError(
        f"not in the hub's cache on this machine, and {urllib.parse.urlsplit(place).hostname} "
        f"cannot be reached ({one_line(error)}): fetch {place} elsewhere and set model.weights to "
        "the file"
    )
