"""Exporting the network to TorchScript, ONNX and OpenVINO, and comparing what came out with what went in."""

from __future__ import annotations

import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luna_monai.extras import import_extra
from luna_monai.networks.runtimes import CANDIDATE_SHAPE

#: Largest difference between an export and the network itself, in probability; in logits the same beside as much of
#: their size. Two orders of summation in float32 differ by about as much.
TOLERANCE = 1e-5

#: Loggers that tell of every step of an export, and of operators of torchvision that nobody asked for.
_TALKATIVE = ("onnx_ir", "onnxscript", "torch.onnx._internal.exporter._registration")

#: Formats, and the ending of their files.
FORMATS = {"torchscript": ".ts", "onnx": ".onnx", "openvino": ".xml"}


def export_network(network: torch.nn.Module, form: str, path: str | Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Write a network in the form of another runtime, for batches of any size.

    Args:
        network: takes candidates, float32 (N, 1, 32, 48, 48), and returns logits (N, 2).
        form: one of ``FORMATS``.
        path: the file, with the ending of its form.
        metadata: what to put into the file beside the network, for ``json.dumps``; the bundle's ``metadata.json``.

    Returns:
        The files: one, or for OpenVINO the ``.xml`` and the ``.bin`` with the weights.

    Raises:
        LunaError: when a package that is needed is not installed.
        KeyError: for another form.
    """
    path = Path(path)
    return _EXPORTERS[form](network.eval(), path, metadata)


def _export_torchscript(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    from monai.data import save_net_with_metadata
    from monai.networks import convert_to_torchscript

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.* is deprecated", DeprecationWarning)  # still the zoo's form
        script = convert_to_torchscript(network)
    content = io.BytesIO()
    save_net_with_metadata(script, content, include_config_vals=False, meta_values=metadata)
    path.write_bytes(content.getvalue())
    return [path]


def _to_onnx(network: torch.nn.Module, metadata: Mapping[str, Any]) -> bytes:
    onnx = import_extra("onnx", "export")
    import_extra("onnxscript", "export")
    with warnings.catch_warnings(), _only_errors_of(*_TALKATIVE):
        warnings.simplefilter("ignore", FutureWarning)  # torch.export about torch's own trees
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *CANDIDATE_SHAPE),),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["image"],
            output_names=["pred"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"metadata": json.dumps(metadata)})
    return model.SerializeToString()


def _export_onnx(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    path.write_bytes(_to_onnx(network, metadata))
    return [path]


def _export_openvino(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    openvino = import_extra("openvino", "export")
    model = openvino.convert_model(io.BytesIO(_to_onnx(network, metadata)))
    model.set_rt_info(json.dumps(metadata), "metadata")
    openvino.save_model(model, path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


@contextmanager
def _only_errors_of(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_EXPORTERS: dict[str, Callable[[torch.nn.Module, Path, Mapping[str, Any]], list[Path]]] = {
    "torchscript": _export_torchscript,
    "onnx": _export_onnx,
    "openvino": _export_openvino,
}


@dataclass(frozen=True)
class Comparison:
    """An exported network beside the one that it was made from, on the same candidates.

    Attributes:
        candidates: how many.
        logits: largest difference.
        probabilities: largest difference.
        is_close: whether both are within ``TOLERANCE``.
        rates: candidates per second of the network itself and of the exported one, medians.
    """

    candidates: int
    logits: float
    probabilities: float
    is_close: bool
    rates: tuple[float, float]


def compare_networks(
    network: torch.nn.Module, exported: torch.nn.Module, images: torch.Tensor, batch_size: int = 32, passes: int = 3
) -> Comparison:
    """Compare what two networks say, and how fast.

    Args:
        network: the network itself.
        exported: the other one.
        images: candidates, float32 (N, 1, 32, 48, 48).
        batch_size: candidates in a batch, the last one may have fewer.
        passes: how often each runs over all candidates; they take turns.
    """
    batches = [batch.to(memory_format=torch.channels_last_3d) for batch in images.split(batch_size)]
    times: tuple[list[float], list[float]] = ([], [])
    logits: list[torch.Tensor] = [torch.empty(0), torch.empty(0)]
    with torch.inference_mode():
        for number in range(passes + 1):  # the first one warms up
            for which, each in enumerate((network, exported)):
                start = time.perf_counter()
                logits[which] = torch.cat([each(batch) for batch in batches])
                if number:
                    times[which].append(time.perf_counter() - start)
    probabilities = [values.softmax(dim=1) for values in logits]
    close = torch.allclose(logits[0], logits[1], rtol=TOLERANCE, atol=TOLERANCE)
    difference = (probabilities[0] - probabilities[1]).abs().max().item()
    return Comparison(
        candidates=len(images),
        logits=(logits[0] - logits[1]).abs().max().item(),
        probabilities=difference,
        is_close=close and difference <= TOLERANCE,
        rates=(len(images) / statistics.median(times[0]), len(images) / statistics.median(times[1])),
    )
