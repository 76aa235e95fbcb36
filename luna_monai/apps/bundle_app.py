"""The base of the commands that run a workflow of the bundle: its files, its settings and its processes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.cli import App
from luna_monai.share import bundle_dir
from luna_monai.torchrun import is_launched, launch
from luna_monai.workflow import add_settings, config_files, given_settings, load_workflow, run_config

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


class BundleApp(App):
    """A command that runs a workflow of the bundle.

    Attributes:
        kind: ``train`` or ``inference``, the configuration.
        settings: keys of the configuration that have an option.
        together: what the processes of ``--distributed`` do; empty for a command of one process.
    """

    kind = "train"
    settings: tuple[str, ...] = ("dataset_dir", "cache_dir")
    together = ""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options that these commands share, and the overrides."""
        parser.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="YAML",
            help=f"overlay on the bundle's {self.kind}.yaml: a file, or the name of one in configs/ (may be repeated); "
            "it may run code, so use only files that you trust",
        )
        add_settings(parser, *self.settings, kind=self.kind)
        if self.together:
            parser.add_argument(
                "--distributed",
                nargs="?",
                type=int,
                const=0,
                metavar="N",
                help=f"{self.together} N processes of this machine, each with its own GPU or a part of the cores; N "
                "defaults to the number of GPUs. For several machines use 'torchrun ... -m luna_monai' instead",
            )
        rest = "values for any other key of the configuration; nested keys are joined by '#', as in optimizer#lr=0.01"
        parser.add_argument("overrides", nargs="*", metavar="key=value", help=rest)

    def main(self) -> int:
        """Do the work, in several processes where ``--distributed`` asks for them; see :meth:`App.main`."""
        return 0 if self.together and launch(self) else super().main()

    def given(self) -> dict[str, Any]:
        """Collect what was given for keys of the configuration."""
        return given_settings(self.cli_args, self.cli_args.overrides, self.kind)

    def load(self, run_id: str, given: Mapping[str, Any], *overlays: Path, run: Path | None = None) -> ConfigWorkflow:
        """Read the configuration, with all overlays and settings, without making anything yet.

        Args:
            run_id: what is run.
            given: settings by key.
            overlays: laid over the others.
            run: folder of a run, whose configuration is taken instead of the bundle's, without its code.
        """
        files = config_files(self.cli_args.config, self.kind)
        if run is not None:
            files[0] = run_config(run, files[1:])
        if self.together and is_launched():
            files.append(str(bundle_dir() / "configs" / f"multi_gpu_{self.kind}.yaml"))
        return load_workflow(run_id, [*files, *map(str, overlays)], given, self.kind)


def run_and_weights(path: Path) -> tuple[Path | None, Path]:
    """Find the folder of a run, or None, and the file of weights."""
    return (path, path / "model.pt") if path.is_dir() else (None, path)
