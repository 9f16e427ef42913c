"""The folder of an export.

config.json          what the network is and how samples are prepared for it
model.safetensors,   the network, in each format asked for
model.onnx, ...
README.md            a model card; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from conr_ray import __version__
from conr_ray.engine.clusters_folder import ClustersFolder
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import Placement, TrainedRun
from conr_ray.errors import UserError
from conr_ray.exporting.formats import FORMATS, compare
from conr_ray.exporting.model_card import model_card
from conr_ray.exporting.network import (
    ClusteringNetwork,
    ImagePreparation,
    PretrainedPreparation,
    random_samples,
)
from conr_ray.method.timm_backbone import TimmBackbone
from conr_ray.storage.files import Folder

# Version of the layout of config.json: increase it with every change of its fields.
_FORMAT = 1
_CONFIG, _CARD = "config.json", "README.md"
# Random ones, on which each file is compared with the run.
_CHECKED_SAMPLES = 9


def export(
    run: str,
    out: str,
    formats: Sequence[str],
    chosen_by: Sequence[str] = (),
    num_clusters: int | None = None,
) -> dict[str, int]:
    """Write the network of the run at `run` to `out`; returns the files and their sizes in bytes.

    An earlier export of the same run is replaced. `chosen_by` names the metrics in which the run
    is the best of a search. With `num_clusters`, the clusters are those that `conr_ray.recluster`
    has made in this number.

    Raises:
        UserError: a format is unknown or its library missing, there is no run with clusters at
            `run`, no such clusters are made, or `out` holds something else.
        RunFailed: what was written does not give what the run gives.
    """
    check_formats(formats)
    directory, folder = RunDirectory(run), Folder(out)
    _check_free(folder, directory.uri)
    own = trained = TrainedRun.load(directory)
    if num_clusters is not None:
        trained = own.with_clusters(ClustersFolder.of(directory, num_clusters))
    network = ClusteringNetwork.of(trained)
    samples = random_samples(trained, _CHECKED_SAMPLES)
    told = network(samples)
    compare("the network", told, _placed(trained, samples), network)
    files = {FORMATS[name].file: FORMATS[name].checked(network, samples) for name in formats}
    config = _config(trained, network, directory.uri)
    config["initial_weights"] = directory.initial_weights()
    config["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    card = model_card(own, config, formats, chosen_by)
    folder.write_text(_CONFIG, json.dumps(config, indent=1) + "\n")
    # What an earlier export has left may be of fewer epochs.
    for stale in {kind.file for kind in FORMATS.values()} - set(files):
        if folder.has(stale):
            folder.delete_file(stale)
    for name, content in files.items():
        folder.write_bytes(name, content)
    folder.write_text(_CARD, card)
    return {name: len(content) for name, content in files.items()}


def check_formats(formats: Sequence[str]) -> None:
    """Raise UserError if a format is unknown, or none is given."""
    if not formats:
        raise UserError(f"--format: none is given: choose from {', '.join(FORMATS)}")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format={name}: no such format: choose from {', '.join(FORMATS)}")


def _check_free(folder: Folder, run_uri: str) -> None:
    names = folder.file_names("") + folder.folder_names("")
    if not names:
        return
    known = folder.read_json(_CONFIG) if _CONFIG in names else None
    if known is None or not {"format", "run", "files"} <= set(known):
        raise UserError(f"--out={folder.uri}: it holds {names[0]}: choose another folder")
    if known["run"] != run_uri:
        raise UserError(
            f"--out={folder.uri}: it holds an export of {known['run']}: choose another folder"
        )


def _placed(run: TrainedRun, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where the run itself places the samples, in the precision of exports."""
    optim = run.config.optim.model_copy(update={"precision": "fp32"})
    config = run.config.model_copy(update={"optim": optim})
    placement = dataclasses.replace(run, config=config).place(samples)
    return tuple(getattr(placement, field.name) for field in dataclasses.fields(Placement))


def _config(run: TrainedRun, network: ClusteringNetwork, run_uri: str) -> dict[str, Any]:
    model, encoder, preparation = run.config.model, network.encoder, network.preparation
    mean = list(run.inputs_state["mean"])
    prepared: dict[str, Any] = {"shape": list(run.sample_shape), "mean": mean}
    if isinstance(preparation, ImagePreparation):
        prepared |= {
            "kind": "images",
            "dtype": "uint8",
            "std": preparation.std.flatten().tolist(),
            "view_size": preparation.size,
            "resized_to": list(preparation.resized),
            "cropped_at": [preparation.top, preparation.left],
            "stored_size": run.config.data.stored_size,
        }
    elif isinstance(preparation, PretrainedPreparation):
        prepared |= {
            "kind": "images",
            "dtype": "uint8",
            "mean": preparation.mean.flatten().tolist(),
            "std": preparation.std.flatten().tolist(),
            "view_size": preparation.size,
            "cropped_at": [preparation.top, preparation.left],
            "cropped_to": preparation.side,
            "interpolation": preparation.preparation.interpolation,
            "stored_size": run.config.data.stored_size,
        }
    else:
        prepared |= {"kind": "vectors", "dtype": "float32", "std": [preparation.scale]}
    return {
        "format": _FORMAT,
        "run": run_uri,
        "conr_ray": __version__,
        "torch": torch.__version__,
        "epochs": run.state.epoch,
        "framework": model.framework,
        "backbone": {
            "name": model.backbone,
            "stem": model.stem if model.backbone.startswith("resnet") else None,
            "widths": list(model.widths) if model.backbone in ("convnet", "mlp") else None,
            "image_size": _image_size(encoder.backbone),
            "out_features": encoder.backbone.out_features,
        },
        "head_hidden_dim": encoder.hidden_dim,
        "projector_ends_with_norm": any(
            isinstance(layer, torch.nn.BatchNorm1d) for layer in encoder.projector[-1:]
        ),
        "embedding_dim": encoder.embedding_dim,
        "num_clusters": run.num_clusters,
        "boundary_centers": run.config.boundary.centers,
        "confident_ratio": run.confident_ratio,
        "input": prepared,
    }


def _image_size(backbone: torch.nn.Module) -> int | None:
    """Side of its images that a model of timm has to be made for, if it is not its own."""
    return backbone.image_size if isinstance(backbone, TimmBackbone) else None
