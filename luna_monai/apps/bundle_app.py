"""The base class of the commands that run a workflow of the bundle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.share import bundle_dir
from luna_monai.torchrun import is_launched, launch
from luna_monai.workflow import add_settings, config_files, given_settings, load_workflow, run_config

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


class BundleApp(App):
    """A command that runs a workflow of the bundle.

    Attributes:
        kind: the configuration: ``train`` or ``inference``.
        distributed_help: start of the help of ``--distributed``; empty for commands without this option.
    """

    kind = "train"
    distributed_help = ""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of all bundle commands, and the overrides."""
        parser.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="YAML",
            help=f"overlay that overrides the bundle's {self.kind}.yaml: a file, or the name of a file in "
            "configs/; may be repeated. It can run code, so use only files that you trust",
        )
        add_settings(parser, self.name, self.kind)
        if self.distributed_help:
            parser.add_argument(
                "--distributed",
                nargs="?",
                type=int,
                const=0,
                metavar="N",
                help=f"{self.distributed_help} N processes on this machine, each with its own GPU or part of the CPU "
                "cores; N defaults to the number of GPUs. For several machines, use 'torchrun ... -m luna_monai'",
            )
        rest = "value for any other key of the configuration; join nested keys with '#', for example optimizer#lr=0.01"
        parser.add_argument("overrides", nargs="*", metavar="key=value", help=rest)

    def main(self) -> int:
        """Run the command, in several processes if ``--distributed`` is given; see :meth:`App.main`."""
        return 0 if self.distributed_help and launch(self) else super().main()

    def given(self) -> dict[str, Any]:
        """Collect the keys of the configuration that are set by options and overrides, with their values."""
        return given_settings(self.cli_args, self.cli_args.overrides, self.kind)

    def load(self, run_id: str, given: Mapping[str, Any], *overlays: Path, run: Path | None = None) -> ConfigWorkflow:
        """Read the configuration with all overlays and settings, without creating its objects.

        Args:
            run_id: key of the workflow to run, such as ``training``.
            given: settings by key.
            overlays: configuration files that override all others.
            run: folder of a run whose configuration replaces that of the bundle, without its code. None for the bundle.

        Returns:
            The workflow.

        Raises:
            LunaError: if a file or a setting is wrong.
        """
        files = config_files(self.cli_args.config, self.kind)
        if run is not None:
            files[0] = run_config(run, files[1:])
        if self.distributed_help and is_launched():
            if self.kind == "train" and load_workflow(run_id, files, given).parser["train"]["sampler"] is None:
                raise LunaError("train#sampler: null cannot divide the samples among processes; use one process")
            files.append(str(bundle_dir() / "configs" / f"multi_gpu_{self.kind}.yaml"))
        return load_workflow(run_id, [*files, *map(str, overlays)], given, self.kind)


def run_and_weights(path: Path) -> tuple[Path | None, Path]:
    """Split an argument into the run folder, or None for a weights file, and the weights file."""
    return (path, path / "model.pt") if path.is_dir() else (None, path)
