"""``luna-monai export``: export the network to TorchScript or ONNX, and compare it with PyTorch."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from luna_monai.apps.bundle_app import BundleApp, run_and_weights
from luna_monai.errors import LunaError
from luna_monai.files import check_file, sha256_of, write_bytes
from luna_monai.share import bundle_dir
from luna_monai.workflow import existing

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class LunaExportApp(BundleApp):
    """Export the network as TorchScript or ONNX, for batches of any size.

    The exported network is compared with PyTorch on candidates of a synthetic scan. The file is written only if the
    probabilities differ by at most 1e-5.
    """

    name = "export"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "run_or_weights",
            nargs="?",
            type=existing,
            metavar="RUN",
            help="run folder, or model.pt, checkpoint.pt or a .state file of the book (default: the bundle's weights)",
        )
        super().add_arguments(parser)
        parser.add_argument("--format", choices=("torchscript", "onnx"), required=True, help="format of the file")
        parser.add_argument(
            "--output", metavar="FILE", help="file to write (default: model.ts or model.onnx in RUN, else in .)"
        )

    def run(self) -> None:
        """Export the network, compare it with PyTorch, and write the file."""
        import torch

        from luna_monai.networks.exports import FORMATS, TOLERANCE, export_network, largest_differences
        from luna_monai.networks.weights import load_network, with_weights

        form, source = self.cli_args.format, Path(self.cli_args.run_or_weights or bundle_dir() / "models" / "model.pt")
        run, weights = run_and_weights(source)
        output = Path(self.cli_args.output or (run or Path()) / weights.with_suffix(FORMATS[form]).name)
        check_file(output, [FORMATS[form]])
        parser = self.load("training", {"cache_dir": None, **self.given()}, run=run).parser
        network = with_weights(parser.get_parsed_content("network_def").eval(), weights)
        with tempfile.TemporaryDirectory(prefix="luna-monai-export-") as temporary:
            written = Path(temporary) / output.name
            export_network(network, form, written, {**parser.get("_meta_"), "weights_sha256": sha256_of(weights)})
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's types lack it
            probability, logit = largest_differences(network, load_network(written, network), _candidates())
            differences = f"largest difference from PyTorch: {probability:.1e} in probability, {logit:.1e} in logits"
            if probability > TOLERANCE:
                raise LunaError(f"{output}: not written; {differences}, more than {TOLERANCE:g}")
            write_bytes(output, written.read_bytes())
        logger.info("%s: %s", output, differences)


def _candidates() -> torch.Tensor:
    """Make 64 candidates of a synthetic scan, float32 (64, 1, 32, 48, 48) in HU."""
    import numpy as np
    import torch

    from luna_monai.networks.weights import CANDIDATE_SHAPE
    from luna_monai.synthetic.scan import ScanOptions, generate_scan
    from luna_monai.transforms import CropCandidates

    scan = generate_scan(np.random.SeedSequence(0), ScanOptions(in_plane=160, slices=80, candidates=64, nodules=3))
    index_xyz = (scan.candidates[:, :3] - scan.origin) / (np.array(scan.spacing) * scan.direction)
    crop = CropCandidates(CANDIDATE_SHAPE[1:])
    blocks = crop(torch.from_numpy(scan.voxels)[None], index_xyz[:, ::-1].round().astype(int))
    return blocks.float().clamp(-1000, 1000)
