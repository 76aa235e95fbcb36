"""Networks from files of weights or exports (TorchScript, ONNX), behind PyTorch's interface."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from luna_monai.errors import LunaError, reason_of
from luna_monai.extras import import_extra
from luna_monai.networks.weights import check_network, with_weights

#: Shape of a candidate for the network: channels, and voxels along z, y, x.
CANDIDATE_SHAPE = (1, 32, 48, 48)


class OnnxNetwork(torch.nn.Module):
    """A network in an ONNX file, run by ONNX Runtime on the CPU, on as many threads as PyTorch uses.

    Args:
        path: the file; weights are inside it.

    Raises:
        LunaError: when ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        onnxruntime = import_extra("onnxruntime", "export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised too
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates; see :meth:`luna_monai.networks.LunaModel.forward`."""
        (logits,) = self.session.run(None, {self.input_name: input_batch.cpu().contiguous().numpy()})
        return torch.from_numpy(logits).to(input_batch.device)


class _InParts(torch.nn.Module):
    """On a CPU, a few candidates at a time, whose activations fit its cache: twice as fast, as in LunaModel."""

    def __init__(self, network: torch.nn.Module, split_size: int = 4) -> None:
        super().__init__()
        self.network, self.split_size = network, split_size

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        if input_batch.device.type != "cpu" or len(input_batch) <= self.split_size:
            return self.network(input_batch)
        return torch.cat([self.network(part) for part in input_batch.split(self.split_size)])


def load_network(path: str | Path, network_def: torch.nn.Module) -> torch.nn.Module:
    """Read a network for inference: weights, or an export by ``luna-monai export`` or ``monai.bundle``.

    Args:
        path: ``.ts`` (TorchScript), ``.onnx``, or weights, see :func:`~luna_monai.networks.load_weights`. A TorchScript
            file is a program: load it only from sources whose programs you would run.
        network_def: takes the weights; not used for exports.

    Returns:
        The network, in evaluation mode: candidates, float32 (N, 1, 32, 48, 48), in HU, to logits (N, 2).

    Raises:
        LunaError: when there is no such file, it is damaged, it needs a package that is not installed, or it holds a
            network for something else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".ts", ".onnx"):
        return with_weights(network_def, path).eval()
    if suffix == ".onnx":
        import_extra("onnxruntime", "export")
    try:
        opened: Any = OnnxNetwork(path) if suffix == ".onnx" else torch.jit.load(path, map_location="cpu")
        return check_network(_InParts(opened).eval(), CANDIDATE_SHAPE[1:], "cpu")
    except Exception as error:  # each runtime has exceptions of its own
        form = "damaged, or not a network for candidates of 32 x 48 x 48 voxels"
        raise LunaError(f"{path}: {form} ({reason_of(error)})") from None


def exported_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that ``luna-monai export`` has stored inside a file.

    Args:
        path: the file. Nothing else confirms what it says.

    Returns:
        The bundle's ``metadata.json``, and ``weights_sha256`` of the weights that were exported; empty for a file of
        weights, and for an export by others.

    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".onnx":
            return dict(json.loads(OnnxNetwork(path).session.get_modelmeta().custom_metadata_map["metadata"]))
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/extra/metadata.json"))
            return dict(json.loads(archive.read(name)))
    except Exception:  # weights, or an export by others
        return {}
