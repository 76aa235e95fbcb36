"""Exporting the network to TorchScript and ONNX, and comparing the result with the network itself."""

from __future__ import annotations

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

#: Largest difference between an export and the network itself, in probability. Two orders of summation in float32
#: differ by about as much.
TOLERANCE = 1e-5

#: Formats, and the suffix of their files.
FORMATS = {"torchscript": ".ts", "onnx": ".onnx"}


def export_network(network: torch.nn.Module, form: str, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a network in the form of another runtime, for batches of any size.

    A TorchScript file has the layout of ``monai.bundle ckpt_export``: ``NAME/extra/metadata.json`` and
    ``NAME/extra/inference.json`` inside ``NAME.ts``, which ``monai.bundle.load_bundle_config`` and MONAI Deploy read.
    (``ckpt_export`` itself takes the weights and the network from files, not the network that is compared later.)

    Args:
        network: takes candidates, float32 (N, 1, 32, 48, 48), and returns logits (N, 2).
        form: one of ``FORMATS``.
        path: the file, with the suffix of its form.
        metadata: content for ``json.dumps`` that is stored inside the file; the bundle's ``metadata.json``.

    Raises:
        LunaError: when a package that is needed is not installed.
        KeyError: for another form.
    """
    {"torchscript": _export_torchscript, "onnx": _export_onnx}[form](network.eval(), Path(path), metadata)


def _export_torchscript(network: torch.nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    from monai.bundle import ConfigParser
    from monai.data import save_net_with_metadata
    from monai.networks import convert_to_torchscript

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.* is deprecated", DeprecationWarning)  # still the zoo's form
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
    logging.disable(logging.WARNING)  # every step of an export, and operators of torchvision that are not used
    try:
        # Not MONAI's convert_to_onnx, which optimizes further where polygraphy is installed.
        with warnings.catch_warnings():
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
        network: the network itself.
        exported: the other one.
        images: candidates, float32 (N, 1, 32, 48, 48).

    Returns:
        The largest difference in probability, and that in logits.
    """
    batches = [batch.to(memory_format=torch.channels_last_3d) for batch in images.split(32)]
    with torch.inference_mode():
        first, second = (torch.cat([each(batch) for batch in batches]) for each in (network, exported))
    probabilities = (first.softmax(dim=1) - second.softmax(dim=1)).abs().max().item()
    return probabilities, (first - second).abs().max().item()
