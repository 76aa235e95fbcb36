"""Reading of networks from files: weights of this package or of the book, and exports (TorchScript, ONNX)."""

import itertools
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luna_monai.errors import LunaError, reason_of
from luna_monai.extras import import_extra

logger = logging.getLogger(__name__)

#: Shape of a candidate for the network: channels, and voxels along z, y, x.
CANDIDATE_SHAPE = (1, 32, 48, 48)
_FORMS = "expected a run's model.pt or checkpoint.pt, or a .state file of the book"
_NORMS = "; set network_def#batch_norm as in the weights (false for model.pt)"


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a network from any file that this project or the book writes.

    Args:
        path: ``model.pt`` (a ``state_dict``), ``checkpoint.pt`` (the full state of a run) or a ``.state`` file of
            *Deep Learning with PyTorch* (a dict with ``model_state``).

    Returns:
        The ``state_dict``, on the CPU.

    Raises:
        LunaError: when the file does not exist, is damaged, or contains anything but finite real numbers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        raise LunaError(f"{path}: cannot be read as weights ({reason_of(error)}); {_FORMS}") from None
    for name in ("model_state", "state", "network"):  # of the book; of a checkpoint
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise LunaError(f"{path}: holds no weights but a {type(content).__name__}; {_FORMS}")
    for name, values in content.items():
        if values.is_complex() or not values.isfinite().all():
            raise LunaError(f"{path}: {name} holds values that are not finite real numbers; use an earlier checkpoint")
    return {str(name): value for name, value in content.items()}


def with_weights(network: torch.nn.Module, path: str | Path | None, resume: bool = False) -> torch.nn.Module:
    """Load weights from a file into a network.

    Args:
        network: changed in place. In training mode, a LunaModel and the weights must both have batch normalizations, or
            neither.
        path: see :func:`load_weights`; None leaves the network as it is.
        resume: leave the network as it is, because the run's checkpoint will replace its weights.

    Returns:
        The same network.

    Raises:
        LunaError: as in :func:`load_weights`, and when the weights are those of another network.
    """
    if path is None or resume:
        return network
    state = load_weights(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        found = f"weights of another network than {type(network).__name__} ({reason_of(error)})"
        raise LunaError(f"{path}: {found}" + (_NORMS if '.norm1.weight"' in str(error) else "")) from None
    logger.info("Weights from %s", path)
    return network


def check_network(network: torch.nn.Module, spatial_size: Sequence[int], device: str | torch.device) -> torch.nn.Module:
    """Move a network to its device, set its memory format for 3D convolutions, and test it with a crop of zeros.

    Args:
        network: a network that classifies candidates.
        spatial_size: size of a candidate in voxels, (z, y, x).
        device: the device on which the network runs.

    Returns:
        The same network.

    Raises:
        LunaError: when the network cannot process such a crop, or does not return two logits.
    """
    name, size = f"network_def: {type(network).__name__}", " x ".join(map(str, spatial_size))
    training = network.training
    network.to(device)  # outside of the try block: a missing device is not an error of the network
    try:
        network.to(memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload] # not in its stubs
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(1, 1, *spatial_size, device=device)).shape)
    except Exception as error:  # networks and devices raise many types
        raise LunaError(f"{name} cannot classify candidates of {size} voxels ({reason_of(error)})") from error
    if shape != (1, 2):
        raise LunaError(f"{name} must give 2 logits for a candidate, found shape {shape}")
    return network.train(training)


class OnnxNetwork(torch.nn.Module):
    """A network in an ONNX file. ONNX Runtime runs it on the CPU, with as many threads as PyTorch uses.

    Args:
        path: the file, which includes the weights.

    Raises:
        LunaError: when ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        onnxruntime = import_extra("onnxruntime", "export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised anyway
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates; see :meth:`luna_monai.networks.LunaModel.forward`."""
        (logits,) = self.session.run(None, {self.input_name: input_batch.cpu().contiguous().numpy()})
        return torch.from_numpy(logits).to(input_batch.device)


class _SplitBatches(torch.nn.Module):
    """On a CPU, run a few candidates at a time, so that activations fit into its cache: twice as fast."""

    def __init__(self, network: torch.nn.Module, split_size: int = 4) -> None:
        super().__init__()
        self.network, self.split_size = network, split_size

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        if input_batch.device.type != "cpu" or len(input_batch) <= self.split_size:
            return self.network(input_batch)
        return torch.cat([self.network(part) for part in input_batch.split(self.split_size)])


class FlipAverage(torch.nn.Module):
    """The mean of a network's logits over the eight flips of each candidate.

    A flip does not change the class of a candidate, and the mean is less noisy than a single pass. Most candidates are
    clearly no nodules: those whose probability in a single pass is below 5 % keep it, which saves most of the time.

    Args:
        network: takes (N, 1, 32, 48, 48) and returns logits (N, 2).
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates; see :meth:`luna_monai.networks.LunaModel.forward`."""
        logits = self.network(input_batch)
        likely = torch.softmax(logits, dim=1)[:, 1] >= 0.05
        if likely.any():
            axes = [flipped for count in range(1, 4) for flipped in itertools.combinations((2, 3, 4), count)]
            flips = [self.network(input_batch[likely].flip(flipped)) for flipped in axes]
            logits[likely] = torch.stack([logits[likely], *flips]).mean(dim=0)
        return logits


def load_network(path: str | Path, network_def: torch.nn.Module, flips: bool = False) -> torch.nn.Module:
    """Load a network for inference from weights, or from an export of ``luna-monai export`` or ``monai.bundle``.

    Args:
        path: ``.ts`` (TorchScript), ``.onnx``, or weights, see :func:`~luna_monai.networks.load_weights`. A TorchScript
            file is a program: load it only from sources that you trust.
        network_def: the network for the weights; not used for exports.
        flips: average the logits over the eight flips of likely candidates, see :class:`FlipAverage`.

    Returns:
        The network in evaluation mode. It takes candidates, float32 (N, 1, 32, 48, 48), in HU, and returns logits
        (N, 2).

    Raises:
        LunaError: when the file does not exist, is damaged, needs a package that is not installed, or contains a
            network for other inputs.
    """
    path = Path(path)
    network = _open_export(path) if path.suffix.lower() in (".ts", ".onnx") else with_weights(network_def.eval(), path)
    return (FlipAverage(network) if flips else network).eval()


def _open_export(path: Path) -> torch.nn.Module:
    """Open a TorchScript or ONNX file."""
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        import_extra("onnxruntime", "export")
    try:
        opened: Any = OnnxNetwork(path) if suffix == ".onnx" else torch.jit.load(path, map_location="cpu")
        return check_network(_SplitBatches(opened).eval(), CANDIDATE_SHAPE[1:], "cpu")
    except Exception as error:  # each runtime raises its own types
        form = "damaged, or not a network for candidates of 32 x 48 x 48 voxels"
        raise LunaError(f"{path}: {form} ({reason_of(error)})") from None


def exported_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that ``luna-monai export`` stores inside a file. They are not verified.

    Args:
        path: the file.

    Returns:
        The bundle's ``metadata.json``, and ``weights_sha256`` of the weights that were exported; empty for a file of
        weights, and for an export by another program.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".onnx":
            return dict(json.loads(OnnxNetwork(path).session.get_modelmeta().custom_metadata_map["metadata"]))
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/extra/metadata.json"))
            return dict(json.loads(archive.read(name)))
    except Exception:  # weights, or an export by another program
        return {}
