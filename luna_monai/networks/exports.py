"""Export of networks to TorchScript and ONNX, and comparison of the result with the original network."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from luna_monai.extras import import_extra
from luna_monai.networks.weights import CANDIDATE_SHAPE
from luna_monai.share import bundle_dir

#: Largest accepted difference in probability between an export and the original network. Different orders of summation
#: in float32 cause differences of about this size.
TOLERANCE = 1e-5

#: File suffixes, by format.
FORMATS = {"torchscript": ".ts", "onnx": ".onnx"}


def export_network(network: torch.nn.Module, form: str, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a network in the format of another runtime, for batches of any size.

    A TorchScript file has the layout of ``monai.bundle ckpt_export``: ``NAME/extra/metadata.json`` and
    ``NAME/extra/inference.json`` inside ``NAME.ts``, which ``monai.bundle.load_bundle_config`` and MONAI Deploy read.
    ``ckpt_export`` itself is not used, because it reads the network from files.

    Args:
        network: takes candidates, float32 (N, 1, 32, 48, 48), and returns logits (N, 2).
        form: the format, one of ``FORMATS``.
        path: the file, with the suffix of its format.
        metadata: content for ``json.dumps`` to store inside the file, such as the bundle's ``metadata.json``.

    Raises:
        LunaError: when a required package is not installed.
        KeyError: when the format is unknown.
    """
    {"torchscript": _export_torchscript, "onnx": _export_onnx}[form](network.eval(), Path(path), metadata)


def _export_torchscript(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    from monai.bundle import ConfigParser
    from monai.data import save_net_with_metadata
    from monai.networks import convert_to_torchscript

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.* is deprecated", DeprecationWarning)  # the Model Zoo uses it
        script = convert_to_torchscript(network)
    inference = ConfigParser.load_config_file(bundle_dir() / "configs" / "inference.yaml")
    extra_files = {"inference.json": json.dumps(inference).encode()}
    # The root folder of the archive is named after the file, as load_bundle_config expects.
    save_net_with_metadata(
        script, str(path), include_config_vals=False, meta_values=metadata, more_extra_files=extra_files
    )


def _export_onnx(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    onnx = import_extra("onnx", "export")
    import_extra("onnxscript", "export")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # messages about each step, and about unused operators of torchvision
    try:
        # Not MONAI's convert_to_onnx, which optimizes further where polygraphy is installed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.export, about code of torch
            names: dict[str, Any] = {"input_names": ["image"], "output_names": ["pred"], "verbose": False}
            example, shapes = (torch.zeros(2, *CANDIDATE_SHAPE),), ({0: "batch"},)
            program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=shapes, **names)
    finally:
        logging.disable(before)
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"metadata": json.dumps(metadata)})
    path.write_bytes(model.SerializeToString())


def largest_differences(
    network: torch.nn.Module, exported: torch.nn.Module, images: torch.Tensor
) -> tuple[float, float]:
    """Compare the outputs of two networks.

    Args:
        network: the original network.
        exported: the exported network.
        images: candidates, float32 (N, 1, 32, 48, 48).

    Returns:
        The largest absolute difference in probability, and the largest absolute difference in logits.
    """
    batches = [batch.to(memory_format=torch.channels_last_3d) for batch in images.split(32)]
    with torch.inference_mode():
        first, second = (torch.cat([each(batch) for batch in batches]) for each in (network, exported))
    return (first.softmax(dim=1) - second.softmax(dim=1)).abs().max().item(), (first - second).abs().max().item()
