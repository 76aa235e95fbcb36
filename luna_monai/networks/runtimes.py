"""The network as other runtimes run it: exported to TorchScript, ONNX or OpenVINO, behind PyTorch's interface."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.networks.weights import with_weights

#: What a candidate is to the network: channels, and voxels along z, y, x.
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
        options.log_severity_level = 4  # what goes wrong arrives as an exception too
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates; see :meth:`luna_monai.networks.LunaModel.forward`."""
        (logits,) = self.session.run(None, {self.input_name: input_batch.cpu().contiguous().numpy()})
        return torch.from_numpy(logits).to(input_batch.device)


class OpenVinoNetwork(torch.nn.Module):
    """A network in OpenVINO's form, run on the CPU in float32, on as many threads as PyTorch uses.

    OpenVINO on its own would take bfloat16 where the processor has it, which moves probabilities by half a per cent.

    Args:
        path: the ``.xml`` file; its weights are in the ``.bin`` file beside it.

    Raises:
        LunaError: when OpenVINO is not installed.
        ValueError: when the file is none of OpenVINO's.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        openvino = import_extra("openvino", "export")
        with Path(path).open("rb") as file:
            if b"<net" not in file.read(1000):  # OpenVINO would try the readers of all other frameworks, loudly
                raise ValueError("no <net> element")
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates; see :meth:`luna_monai.networks.LunaModel.forward`."""
        (logits,) = self.compiled(input_batch.cpu().contiguous().numpy()).values()
        return torch.from_numpy(logits.copy()).to(input_batch.device)  # the next call writes into the same memory


class _InParts(torch.nn.Module):
    """A network that is given a few candidates at a time on a CPU, whose cache then holds what its layers leave.

    TorchScript and OpenVINO are twice as fast that way, as :class:`~luna_monai.networks.LunaModel` is.
    """

    def __init__(self, network: torch.nn.Module, split_size: int = 4) -> None:
        super().__init__()
        self.network = network
        self.split_size = split_size

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        if input_batch.device.type != "cpu" or len(input_batch) <= self.split_size:
            return self.network(input_batch)
        return torch.cat([self.network(part) for part in input_batch.split(self.split_size)])


#: By the ending of the file, what opens it.
_OPENERS: dict[str, Callable[[Path], torch.nn.Module]] = {
    ".ts": lambda path: torch.jit.load(path, map_location="cpu").to(memory_format=torch.channels_last_3d),
    ".onnx": OnnxNetwork,
    ".xml": OpenVinoNetwork,
}


def _torchscript_metadata(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/extra/metadata.json"))
        return archive.read(name).decode()


def _openvino_metadata(path: Path) -> str:
    entry = ElementTree.parse(path).find("rt_info/metadata")
    return "" if entry is None else entry.attrib["value"]


#: By the ending of the file, what finds the metadata in it.
_METADATA_READERS: dict[str, Callable[[Path], str]] = {
    ".ts": _torchscript_metadata,
    ".onnx": lambda path: OnnxNetwork(path).session.get_modelmeta().custom_metadata_map["metadata"],
    ".xml": _openvino_metadata,
}


def load_network(path: str | Path, network_def: torch.nn.Module) -> torch.nn.Module:
    """Read a network for inference: weights, or what ``luna-monai export`` and ``monai.bundle`` have made of them.

    Args:
        path: ``.ts`` (TorchScript), ``.onnx``, ``.xml`` (OpenVINO, with its ``.bin`` beside it), or weights, see
            :func:`~luna_monai.networks.load_weights`. A TorchScript file is a program: take it only from people whose
            programs you would run.
        network_def: what weights are put into; not used for the other forms.

    Returns:
        The network, in evaluation mode: candidates, float32 (N, 1, 32, 48, 48), in HU, to logits (N, 2).

    Raises:
        LunaError: when there is no such file, it is damaged, it needs a package that is not installed, or it holds a
            network for something else.
    """
    path = Path(path)
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return with_weights(network_def, path).eval()
    if not path.is_file():
        raise LunaError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected an exported network")
    try:
        network = _InParts(opener(path)).eval()
    except LunaError:
        raise
    except Exception as error:  # each runtime raises what its reader does
        raise LunaError(f"{path}: damaged, or no {path.suffix} file of a network ({_reason(error)})") from None
    _check(path, network)
    return network


def exported_metadata(path: str | Path) -> dict[str, Any]:
    """Read what ``luna-monai export`` has put into a file beside the network.

    Args:
        path: the file; only its own word tells where it comes from.

    Returns:
        The bundle's ``metadata.json``, and ``weights_sha256`` of the weights that were exported; empty for a file of
        weights, and for an export by others.

    Raises:
        LunaError: when the package that reads such files is not installed.
    """
    path = Path(path)
    reader = _METADATA_READERS.get(path.suffix.lower())
    if reader is None:
        return {}
    try:
        metadata = json.loads(reader(path))
    except LunaError:
        raise
    except Exception:  # no metadata, or not ours
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _check(path: Path, network: torch.nn.Module) -> None:
    candidates = torch.zeros(2, *CANDIDATE_SHAPE)
    try:
        with torch.inference_mode():
            logits = network(candidates)
    except Exception as error:  # as above
        raise LunaError(
            f"{path}: does not take candidates of 32 x 48 x 48 voxels, two at a time ({_reason(error)})"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, 2) or logits.dtype != torch.float32:
        found = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise LunaError(f"{path}: gives {found} for two candidates, not two float32 logits each")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(". ")[0] if lines else type(error).__name__
