"""``luna-monai train``: the book's ``LunaTrainingApp`` (chapter 11.2) as a workflow of the bundle."""

import argparse

from luna_monai.apps.bundle_app import BundleApp
from luna_monai.errors import LunaError
from luna_monai.literals import literal
from luna_monai.share import bundle_dir
from luna_monai.workflow import given_settings, run_workflow


class LunaTrainingApp(BundleApp):
    """Train and validate LunaModel with bundle/configs/train.yaml.

    '--config book_ch11' trains as chapter 11 of the book does. An argument without '=' is a comment, which is appended
    to the names of TensorBoard's folders.
    """

    name = "train"
    distributed_help = "train in"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the book and additional ones."""
        super().add_arguments(parser)
        parser.add_argument("--tracking", choices=("mlflow",), help="also record the run in MLflow")

    def run(self) -> None:
        """Train the network."""
        texts = self.cli_args.overrides
        comments = [text for text in texts if "=" not in text]
        if len(comments) > 1:
            raise LunaError(f"more than one comment: {', '.join(map(repr, comments))}; overrides are key=value")
        given = given_settings(self.cli_args, [text for text in texts if "=" in text])
        given |= {"comment": literal(comments[0])} if comments else {}
        tracking = [bundle_dir() / "configs" / "mlflow.yaml"] if self.cli_args.tracking else []
        run_workflow(self.load("training", given, *tracking))
