"""``luna-monai export``: the network for other runtimes, checked against PyTorch."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import sha256_of, write_bytes
from luna_monai.share import bundle_dir
from luna_monai.workflow import (
    add_overrides_argument,
    check_paths,
    config_files,
    given_settings,
    load_workflow,
    run_config,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class LunaExportApp(App):
    """Export a network to TorchScript or ONNX, and compare the result with PyTorch.

    Args:
        sys_argv: arguments; see ``luna-monai export --help``.
    """

    name = "export"
    description = (
        "Export the network for another runtime, for batches of any size. The result is compared with PyTorch on "
        "candidates of a synthetic scan, and nothing is written unless the probabilities agree to 1e-5."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "run_or_weights",
            nargs="?",
            metavar="RUN",
            help="folder of a run, or a model.pt, checkpoint.pt or .state of the book (default: the bundle's weights)",
        )
        parser.add_argument("--format", choices=("torchscript", "onnx"), required=True, help="which runtime")
        parser.add_argument(
            "--output", metavar="FILE", help="file to write (default: model.ts or model.onnx in RUN, or here)"
        )
        parser.add_argument("--config", action="append", default=[], metavar="YAML", help="as of 'luna-monai train'")
        add_overrides_argument(parser)

    def main(self) -> int:
        """Export, compare and write.

        Raises:
            LunaError: when the weights or the configuration are bad, a package is missing, or the outputs of the export
                differ from those of PyTorch.
        """
        arguments = self.cli_args
        check_paths(RUN=arguments.run_or_weights)
        files, folder = config_files(arguments.config), Path()
        weights = Path(arguments.run_or_weights or bundle_dir() / "models" / "model.pt")
        if weights.is_dir():
            files[0] = run_config(weights, files[1:])
            folder, weights = weights, weights / "model.pt"
        import torch

        from luna_monai.networks.exports import FORMATS, TOLERANCE, compare_networks, export_network
        from luna_monai.networks.runtimes import load_network

        suffix = FORMATS[arguments.format]
        output = Path(arguments.output or folder / weights.with_suffix(suffix).name)
        if output.suffix.lower() != suffix:
            raise LunaError(f"--output {output}: the name of an {arguments.format} file must end in {suffix}")
        options = {"cache_dir": None, **given_settings(arguments, arguments.overrides)}
        with tempfile.TemporaryDirectory(prefix="luna-monai-export-") as temporary, unwrapped_luna_errors():
            parser = load_workflow("training", files, options).parser
            network = load_network(weights, parser.get_parsed_content("network_def"))
            metadata = {**parser.get("_meta_"), "weights_sha256": sha256_of(weights)}
            written = Path(temporary) / output.name
            export_network(network, arguments.format, written, metadata)
            images = _candidates()
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's types lack it
            comparison = compare_networks(network, load_network(written, network), images)
            differences = (
                f"largest difference from PyTorch on {len(images)} candidates: "
                f"{comparison.probabilities:.1e} in probability, {comparison.logits:.1e} in logits"
            )
            if not comparison.is_close:
                raise LunaError(f"{output}: not written; {differences}, more than {TOLERANCE:g}")
            write_bytes(output, written.read_bytes())
        logger.info("%s: %s", output, differences)
        return 0


def _candidates() -> torch.Tensor:
    """Make candidates of a synthetic scan: float32 (64, 1, 32, 48, 48), in HU."""
    import numpy as np
    import torch

    from luna_monai.networks.runtimes import CANDIDATE_SHAPE
    from luna_monai.synthetic.scan import ScanOptions, generate_scan
    from luna_monai.transforms import CropCandidates

    scan = generate_scan(np.random.SeedSequence(0), ScanOptions(in_plane=160, slices=80, candidates=64, nodules=3))
    index_xyz = (scan.candidates[:, :3] - scan.origin) / (np.array(scan.spacing) * scan.direction)
    crop = CropCandidates(CANDIDATE_SHAPE[1:])
    blocks = crop(torch.from_numpy(scan.voxels)[None], index_xyz[:, ::-1].round().astype(int))
    return blocks.float().clamp(-1000, 1000)
