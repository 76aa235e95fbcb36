"""Networks from files of weights or exports (TorchScript, ONNX), behind PyTorch's interface."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.networks.weights import with_weights

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


class FlipAverage(torch.nn.Module):
    """The mean of a network's logits over the eight flips of each candidate.

    A nodule is one whichever way it is seen. The mean is less noisy than a single pass, and takes eight times as long.

    Args:
        network: takes (N, 1, 32, 48, 48), gives logits (N, 2).
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates; see :meth:`luna_monai.networks.LunaModel.forward`."""
        axes = [flipped for count in range(4) for flipped in itertools.combinations((2, 3, 4), count)]
        return torch.stack([self.network(input_batch.flip(flipped)) for flipped in axes]).mean(dim=0)


def load_network(path: str | Path, network_def: torch.nn.Module, flips: bool = False) -> torch.nn.Module:
    """Read a network for inference: weights, or an export by ``luna-monai export`` or ``monai.bundle``.

    Args:
        path: ``.ts`` (TorchScript), ``.onnx``, or weights, see :func:`~luna_monai.networks.load_weights`. A TorchScript
            file is a program: load it only from sources whose programs you would run.
        network_def: takes the weights; not used for exports.
        flips: average over the eight flips of each candidate, see :class:`FlipAverage`.

    Returns:
        The network, in evaluation mode: candidates, float32 (N, 1, 32, 48, 48), in HU, to logits (N, 2).

    Raises:
        LunaError: when there is no such file, it is damaged, it needs a package that is not installed, or it holds a
            network for something else.
    """
    path = Path(path)
    network = _open_export(path) if path.suffix.lower() in (".ts", ".onnx") else with_weights(network_def, path)
    return (FlipAverage(network) if flips else network).eval()


def _open_export(path: Path) -> torch.nn.Module:
    """Open a TorchScript or ONNX file."""
    if not path.is_file():
        raise LunaError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected an exported network")
    try:
        opened: Any = OnnxNetwork(path) if path.suffix.lower() == ".onnx" else torch.jit.load(path, map_location="cpu")
        network = _InParts(opened.to(memory_format=torch.channels_last_3d)).eval()
        with torch.inference_mode():
            logits = network(torch.zeros(2, *CANDIDATE_SHAPE))
        if logits.shape != (2, 2) or logits.dtype != torch.float32:
            raise ValueError(f"it returns {tuple(logits.shape)} {logits.dtype} for two candidates, not (2, 2) float32")
    except LunaError:
        raise
    except Exception as error:  # each runtime has exceptions of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[-1].split(". ")[0]
        raise LunaError(f"{path}: damaged, or not a network for candidates of 32 x 48 x 48 voxels ({reason})") from None
    return network


def exported_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that ``luna-monai export`` has stored inside a file.

    Args:
        path: the file. Nothing else confirms what it says.

    Returns:
        The bundle's ``metadata.json``, and ``weights_sha256`` of the weights that were exported; empty for a file of
        weights, and for an export by others.

    Raises:
        LunaError: when the package that reads such files is not installed.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".onnx":
            return dict(json.loads(OnnxNetwork(path).session.get_modelmeta().custom_metadata_map["metadata"]))
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/extra/metadata.json"))
            return dict(json.loads(archive.read(name)))
    except LunaError:
        raise
    except Exception:  # weights, or an export by others
        return {}
