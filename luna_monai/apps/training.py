"""``luna-monai train``: the book's ``LunaTrainingApp`` (chapter 11.2), run by the bundle."""

from __future__ import annotations

import argparse

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.literals import literal
from luna_monai.share import bundle_dir
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, launch
from luna_monai.workflow import (
    add_config_arguments,
    check_paths,
    config_files,
    given_settings,
    load_workflow,
    run_workflow,
)


class LunaTrainingApp(App):
    """Train and validate LunaModel, with the book's options and the bundle's configuration.

    Args:
        sys_argv: arguments; see ``luna-monai train --help``.
    """

    name = "train"
    description = (
        "Train and validate LunaModel by bundle/configs/train.yaml. "
        "'--config book_ch11' trains as chapter 11 of the book does."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the book's options and ours."""
        keys = ("num_workers", "output_dir", "fold", "batch_size", "max_epochs", "resume", "finetune", "tb_prefix")
        add_config_arguments(parser, *keys)
        parser.add_argument("--tracking", choices=("mlflow",), help="record the run in MLflow too")
        add_distributed_argument(parser, "train in")
        parser.add_argument(
            "comment_and_overrides",
            nargs="*",
            metavar="COMMENT | key=value",
            help="a comment, the end of the names of TensorBoard's folders, and values for any key of the "
            "configuration; nested keys are joined by '#', as in optimizer#lr=0.01",
        )

    def main(self) -> int:
        """Train.

        Raises:
            LunaError: when the data, the configuration or an override is bad.
        """
        arguments = self.cli_args
        comments = [text for text in arguments.comment_and_overrides if "=" not in text]
        if len(comments) > 1:
            raise LunaError(f"one comment at most, found {', '.join(map(repr, comments))}; overrides are key=value")
        check_paths(dataset_dir=arguments.dataset_dir, finetune=arguments.finetune)
        files = config_files(arguments.config)
        given = {"comment": literal(comments[0])} if comments else {}
        given |= given_settings(arguments, [text for text in arguments.comment_and_overrides if "=" in text])
        if not launch(self):
            tracking = [] if arguments.tracking is None else [str(bundle_dir() / "configs" / "mlflow.yaml")]
            run_workflow(load_workflow("training", [*files, *tracking, *distributed_overlay()], given))
        return 0
