"""The formats of an export: how each is written, and read again to be checked.

The libraries of a format are imported when it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from conr_ray.errors import RunFailed, UserError
from conr_ray.exporting.network import OUTPUTS, ClusteringNetwork
from conr_ray.method.networks import portable_names

# Opsets before this one are not written by torch's exporter.
OPSET = 18
# Of embeddings, distances and ratios; clusters are equal where two centres differ by more.
_TOLERANCE = 1e-4
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Format:
    """A format of exported networks.

    Attributes:
        file: name of its file.
        modules: what it needs beyond torch.
        write: the file's content, from a network and a few samples.
        read: a function of the content and samples that gives the `OUTPUTS`.
    """

    file: str
    modules: tuple[str, ...]
    write: Callable[[ClusteringNetwork, Tensor], bytes]
    read: Callable[[bytes, Tensor], Outputs] | None

    def checked(self, network: ClusteringNetwork, samples: Tensor) -> bytes:
        """The file's content, after it was read again and gave what `network` gives.

        Raises:
            UserError: a library that it needs is missing.
            RunFailed: it gives something else.
        """
        for module in self.modules:
            try:
                import_module(module)
            except ImportError:
                raise UserError(
                    f"{self.file}: {module} is not installed: pip install 'conr_ray[export]'"
                ) from None
        with _quiet():
            content = self.write(network, samples)
            # Of another number than the graph was traced with.
            few = samples[:-1]
            if self.read is not None:
                compare(self.file, self.read(content, few), network(few), network)
        return content


def compare(what: str, told: Outputs, expected: Outputs, network: ClusteringNetwork) -> None:
    """Raise RunFailed unless two sets of `OUTPUTS` agree, but for rounding."""
    by_name = dict(zip(OUTPUTS, told, strict=True))
    cosines_nk = expected[0] @ network.centers.T
    places_n = (by_name["cluster"][:, None] == network.cluster_numbers).long().argmax(1)
    best_n = cosines_nk.gather(1, places_n[:, None]).squeeze(1)
    gaps = {"cluster": float((cosines_nk.amax(1) - best_n).max())}
    # Where rounding decides the cluster, its distances are swapped.
    same_n = by_name["cluster"] == expected[1]
    for name, value in zip(OUTPUTS, expected, strict=True):
        if name != "cluster":
            rows = slice(None) if name == "embedding" else same_n
            close = torch.isclose(by_name[name][rows], value[rows], _TOLERANCE, _TOLERANCE)
            gaps[name] = 0.0 if bool(close.all()) else float((by_name[name] - value).abs().max())
    name, gap = max(gaps.items(), key=lambda item: item[1])
    if not gap <= _TOLERANCE:
        raise RunFailed(
            f"{what}: {name} differs from the run's by {gap:.2g}: choose another --format, and "
            "report which versions of torch and the format's library are installed"
        )


def _as_safetensors(network: ClusteringNetwork, samples: Tensor) -> bytes:
    from safetensors.torch import save

    names = ("centers", "boundary_centers", "cluster_numbers")
    clusters = {name: getattr(network, name) for name in names}
    tensors = portable_names(network.encoder) | clusters
    content: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return content


def _as_onnx(network: ClusteringNetwork, samples: Tensor) -> bytes:
    program = torch.onnx.export(
        network,
        (samples,),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim("n")},),
        input_names=["samples"],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _read_onnx(content: bytes, samples: Tensor) -> Outputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = session.run(list(OUTPUTS), {"samples": samples.numpy()})
    return tuple(torch.from_numpy(output) for output in outputs)


def _as_torchscript(network: ClusteringNetwork, samples: Tensor) -> bytes:
    buffer = BytesIO()
    torch.jit.save(torch.jit.trace(network, (samples,)), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _read_torchscript(content: bytes, samples: Tensor) -> Outputs:
    network: Any = torch.jit.load(BytesIO(content))  # type: ignore[no-untyped-call]
    outputs: Outputs = network(samples)
    return outputs


def _as_pt2(network: ClusteringNetwork, samples: Tensor) -> bytes:
    shapes = ({0: torch.export.Dim("n")},)
    buffer = BytesIO()
    torch.export.save(torch.export.export(network, (samples,), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def _read_pt2(content: bytes, samples: Tensor) -> Outputs:
    outputs: Outputs = torch.export.load(BytesIO(content)).module()(samples)
    return outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own parts."""
    with warnings.catch_warnings(), torch.no_grad():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


FORMATS = {
    "safetensors": Format("model.safetensors", ("safetensors",), _as_safetensors, None),
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _as_onnx, _read_onnx),
    "torchscript": Format("model.ts", (), _as_torchscript, _read_torchscript),
    "pt2": Format("model.pt2", (), _as_pt2, _read_pt2),
}
