"""What is known of a backbone without loading it: facts, remembered by its file.

A run on embedded images needs no network of its backbone, nor timm, which takes seconds to import.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from conr_ray.config import RunConfig
from conr_ray.errors import UserError
from conr_ray.fields import short
from conr_ray.frozen.backbone import FrozenBackbone, home_of, weights_file
from conr_ray.method.backbone_names import HUB, INITIAL_WEIGHTS
from conr_ray.pretrained import load_pretrained
from conr_ray.pretrained.sources import package_file
from conr_ray.storage import disk
from conr_ray.storage.files import Folder


@dataclass(frozen=True)
class KnownBackbone:
    """The backbone of a config, loaded when it is needed.

    Attributes:
        config: of a run whose backbone does not train.
        cache: the folder in which facts are remembered.
        run: folder of a run that keeps the weights, which are used where the config's cannot be
            had, such as those of the hub without network.
    """

    config: RunConfig
    cache: Path
    run: Folder | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`FrozenBackbone.facts`.

        Raises:
            UserError: there is no such model, or its weights cannot be had.
        """
        file = self._file
        if file is not None:
            # Of another version, or damaged: it is then written anew.
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                told = json.loads(file.read_text())
                if told["sum"] == _sum_of(told["facts"]):
                    return dict(told["facts"])
        facts = self.backbone.facts
        if file is not None:
            text = json.dumps({"facts": facts, "sum": _sum_of(facts)})
            with suppress(OSError):
                disk.write_file(file, text.encode())
        return facts

    @cached_property
    def backbone(self) -> FrozenBackbone:
        """The backbone itself, on the CPU.

        Raises:
            UserError: as `facts`.
        """
        try:
            return FrozenBackbone.of(self.config)
        except UserError:
            if (kept := self._kept()) is None:
                raise
            return kept

    def checked_backbone(self) -> FrozenBackbone:
        """The backbone itself, whose weights are those of `facts`.

        Raises:
            UserError: they are others by now; or as `facts`.
        """
        if self.backbone.facts["digest"] != self.facts["digest"]:
            if self._file is not None:
                self._file.unlink(missing_ok=True)
            raise UserError(
                f"model.weights={short(self.config.model.weights)}: not the weights that were "
                "there before: start again with these, or put those back"
            )
        return self.backbone

    def _kept(self) -> FrozenBackbone | None:
        """The backbone with the weights that the run keeps; None without any."""
        told = None if self.run is None else self.run.read_json(INITIAL_WEIGHTS)
        if self.run is None or told is None or told.get("field") != "model.weights":
            return None
        name = weights_file(str(told["sha256"]))
        folder = self.run if self.run.has(name) else home_of(self.run)
        if not folder.has(name):
            return None
        model, size = self.config.model, self.config.views.size
        loaded = load_pretrained(model.backbone, f"{folder.uri}/{name}", size)
        found = {"source": str(told["found"]), "licence": told["licence"]}
        return FrozenBackbone(replace(loaded, **found))

    @property
    def _file(self) -> Path | None:
        """Where the facts are remembered; None if what they are of may change unseen."""
        model = self.config.model
        try:
            version = importlib.metadata.version("timm")
        except importlib.metadata.PackageNotFoundError:
            return None
        if model.weights == HUB:
            place: Any = HUB
        elif "://" in model.weights:
            return None
        else:
            try:
                path = package_file(model.weights) or Path(model.weights).expanduser().absolute()
                status = path.stat()
            except (OSError, ValueError, UserError):
                return None
            place = str(path), status.st_size, status.st_mtime_ns
        asked = model.backbone, model.weights, place, self.config.views.size, version
        name = hashlib.sha256(repr(asked).encode()).hexdigest()
        return self.cache / "backbones" / f"{name[:32]}.json"


def _sum_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
