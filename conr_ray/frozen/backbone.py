"""A pre-trained backbone that does not train, from images as stored to vectors.

Its weights are kept once in the folder of a run, or of a search for all its trials, as

backbone-DIGEST.safetensors    by timm's names

and what else is to be known of it is in the state of a run's inputs (`facts`).

Shapes: b images, c channels, h x w pixels, d width, v random views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conr_ray.config import RunConfig, ViewsConfig
from conr_ray.data.views import Views
from conr_ray.errors import UserError
from conr_ray.frozen.folding import folded
from conr_ray.method.keyed_random import fold
from conr_ray.pretrained import Preparation, Pretrained, load_pretrained
from conr_ray.storage.files import Folder

# Images that pass through at once. More gain nothing on a CPU, whose caches they leave.
_BATCH, _BATCH_ON_GPU = 64, 256
# The key of the stored views: they are the same for all runs, whatever their seeds.
_KEY = 20231
_CPU = torch.device("cpu")
# Numbers of channels that images may have.
COLOURS = (1, 3, 4)


@dataclass(frozen=True)
class FrozenBackbone:
    """A pre-trained backbone as it is applied: on a device, in float32.

    Attributes:
        pretrained: network, weights and preparation.
        device: where it computes.
    """

    pretrained: Pretrained
    device: torch.device = _CPU

    @classmethod
    def of(cls, config: RunConfig, device: torch.device | str = "cpu") -> FrozenBackbone:
        """The one that a config names.

        Raises:
            UserError: there is no such model, or its weights cannot be had.
        """
        model = config.model
        loaded = load_pretrained(model.backbone, model.weights, config.views.size)
        return cls(loaded, torch.device(device))

    @classmethod
    def read(
        cls, facts: Mapping[str, Any], folder: Folder, device: torch.device | str = "cpu"
    ) -> FrozenBackbone:
        """The one of `facts`, with the weights that are kept for the run in `folder`.

        Raises:
            UserError: they are not there, or not those of the facts.
        """
        name = weights_file(facts["digest"])
        folder = folder if folder.has(name) else home_of(folder)
        if not folder.has(name):
            raise UserError(
                f"{folder.uri}/{name} is missing, the weights of the run's backbone: put it back"
            )
        kept = Preparation.from_json(facts["preparation"])
        loaded = load_pretrained(facts["name"], f"{folder.uri}/{name}", kept.size)
        if loaded.digest != facts["digest"]:
            raise UserError(
                f"{folder.uri}/{name} holds other weights than the run's backbone has: put them "
                "back"
            )
        told = {name: facts[name] for name in ("source", "licence")}
        loaded = dataclasses.replace(loaded, preparation=kept, **told)
        return cls(loaded, torch.device(device))

    @classmethod
    def of_file(cls, facts: Mapping[str, Any], content: bytes, place: Path) -> FrozenBackbone:
        """The one of `facts` with the weights in a file's `content`, which is put in `place`."""
        folder = Folder(place)
        folder.write_bytes(weights_file(facts["digest"]), content)
        return cls.read(facts, folder)

    @property
    def facts(self) -> dict[str, Any]:
        """What tells it from others, and how images are prepared for it, as JSON values."""
        one = self.pretrained
        return {
            "name": one.name,
            "source": one.source,
            "licence": one.licence,
            "digest": one.digest,
            "out_features": one.out_features,
            "preparation": one.preparation.as_json(),
        }

    def content(self) -> bytes:
        """The file of its weights."""
        from safetensors.torch import save

        tensors = self.pretrained.tensors()
        data: bytes = save(
            {name.removeprefix("backbone."): t.contiguous() for name, t in tensors.items()}
        )
        return data

    def plain(self, images: Tensor) -> Tensor:
        """Vectors of uint8 images (b, c, h, w) as they are, (b, d) float32 on the CPU."""
        prepare = self.pretrained.preparation.prepare
        return self._through(images, lambda batch, _: prepare(batch))

    def random(self, images: Tensor, views: ViewsConfig, view: int, ids_b: Tensor) -> Tensor:
        """Those of one random view of each, which `view` and its id in the data set determine."""
        own = self.pretrained.preparation
        # Noise is of vectors, in training.
        quiet = views.model_copy(update={"sizes": (), "noise": 0.0})
        make = Views(quiet, own.mean, own.std, self.device, own)
        key = fold(_KEY, "embedded view", view)

        def changed(batch: Tensor, ids: Tensor) -> Tensor:
            return make.random(batch, key, ids, group_stage=False)

        return self._through(images, changed, ids_b)

    def embedded(self, images: Tensor, views: ViewsConfig, num_views: int, ids_b: Tensor) -> Tensor:
        """Vectors of the plain images and of random views of them, (b, 1 + v, d)."""
        parts = [self.plain(images)]
        parts += [self.random(images, views, view, ids_b) for view in range(num_views)]
        return torch.stack(parts, 1)

    @torch.inference_mode()
    def _through(self, images: Tensor, prepared: Any, ids_b: Tensor | None = None) -> Tensor:
        size = _BATCH if self.device.type == "cpu" else _BATCH_ON_GPU
        ids_b = torch.arange(len(images)) if ids_b is None else ids_b
        if not len(images):
            return torch.empty(0, self.pretrained.out_features)
        parts = []
        for first in range(0, len(images), size):
            some = slice(first, first + size)
            inputs = prepared(images[some].to(self.device), ids_b[some].to(self.device))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            parts.append(self._network(inputs).float().cpu())
        return torch.cat(parts)

    @cached_property
    def _network(self) -> nn.Module:
        side = self.pretrained.preparation.size
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, 3, side, side, generator=generator)
        module = self.pretrained.module.eval()
        with torch.no_grad():
            # Which says so, if its features are not pooled.
            module(example)
        network = folded(module.layers, example)
        # torch does not tell that modules take this.
        placed: nn.Module = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed


def weights_file(digest: str) -> str:
    """Name of the file that keeps weights."""
    return f"backbone-{digest[:16]}.safetensors"


def home_of(run: Folder) -> Folder:
    """Where the weights for a run are kept: in its folder, or in that of its search."""
    inside = run.parent
    if inside.uri.rpartition("/")[2] in ("trials", "trunks"):
        above = inside.parent
        if above.has("space.yaml"):
            return above
    return run
