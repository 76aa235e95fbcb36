"""``luna-monai crossval``: LUNA16's ten-fold cross-validation, each fold a run of its own."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import write_json
from luna_monai.literals import literal
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, is_launched, launch
from luna_monai.workflow import (
    add_config_arguments,
    add_overrides_argument,
    config_files,
    given_settings,
    load_workflow,
    parse_numbers,
    read_config,
    run_workflow,
)

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser, ConfigWorkflow

logger = logging.getLogger(__name__)

#: In a fold's folder: written when the fold has been trained to its end.
DONE = "fold.json"


class LunaCrossvalApp(App):
    """Train a model for each fold, and evaluate all of them on the scans that each was not trained on.

    Args:
        sys_argv: arguments; see ``luna-monai crossval --help``.
    """

    name = "crossval"
    description = (
        "Cross-validate: for each LUNA16 subset, train a model on the others in OUTPUT_DIR/foldN. Then evaluate the "
        "predictions of all folds as one submission. The command can be interrupted and run again. Machines that share "
        "OUTPUT_DIR can train different --folds. Processes of torchrun fill the cache together, then train one fold "
        "each at a time."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_config_arguments(parser, "num_workers", "batch_size", "max_epochs")
        parser.add_argument("--output-dir", required=True, help="folder of the folds and the results")
        parser.add_argument("--folds", metavar="N,N", help="train only these, as 0,1,2 or 0-4 (default: all)")
        parser.add_argument("--bootstrap", type=int, default=1000, help="bootstrap samples of scans; 0 for no interval")
        add_distributed_argument(parser, "train as many folds at once in")
        add_overrides_argument(parser)

    def main(self) -> int:
        """Train the folds that are not done yet, and evaluate those that are done.

        Returns:
            0, also when other folds are still missing.

        Raises:
            LunaError: when the data, the configuration or an override is bad, or the folds were trained differently.
        """
        arguments = self.cli_args
        output_dir, files = Path(arguments.output_dir), config_files(arguments.config)
        given = given_settings(argparse.Namespace(**vars(arguments) | {"output_dir": None}), arguments.overrides)
        for key in given.keys() & {"fold", "resume", "output_dir", "finetune"}:
            raise LunaError(f"{key}={given[key]}: crossval sets this key itself, for each fold; leave it out")
        subsets = None if arguments.folds is None else parse_numbers("--folds", arguments.folds)
        if launch(self):
            return 0
        from luna_monai.metrics.froc import check_bootstrap
        from luna_monai.training import launched

        check_bootstrap(arguments.bootstrap)
        process = launched()
        workflow = _load(files, given)
        get = workflow.parser.get_parsed_content
        with unwrapped_luna_errors():
            if get("finetune") is not None:
                raise LunaError("finetune is set: the folds of a cross-validation start from fresh weights; remove it")
            all_folds = _folds_of(workflow.parser)
        folds = all_folds if subsets is None else subsets
        for fold in folds:
            if fold not in all_folds:
                known = ", ".join(map(str, all_folds))
                raise LunaError(f"--folds {arguments.folds}: fold {fold} has no scans with candidates; folds: {known}")
        if is_launched():
            given.setdefault("device", str(_fill_cache_together(files, given)))
        for fold in folds[process.rank :: process.world_size]:
            _train(fold, output_dir, files, given)
        if process.rank > 0:
            return 0  # the first process evaluates
        while is_launched() and not all(_is_done(output_dir, fold) for fold in folds):
            time.sleep(1)  # torchrun ends this process when another one fails
        done = [fold for fold in all_folds if _is_done(output_dir, fold)]
        missing = [fold for fold in all_folds if fold not in done]
        if done:
            from luna_monai.reports.crossval import write_results

            write_results(output_dir, done, get("candidates"), get("scans"), arguments.bootstrap, missing)
        for fold in all_folds if missing else ():
            begun = "begun" if (output_dir / f"fold{fold}" / "config.yaml").is_file() else "not begun"
            logger.info("Fold %d: %s", fold, "done" if fold in done else begun)
        return 0


def _train(fold: int, output_dir: Path, files: Sequence[str], given: Mapping[str, Any]) -> None:
    """Train a fold to its end, unless it is done; continue where it was interrupted."""
    folder = output_dir / f"fold{fold}"
    resume = any(folder.glob("checkpoint*.pt"))
    settings = {"fold": fold, "output_dir": literal(str(folder)), "comment": f"fold{fold}", "resume": resume}
    workflow = _load(files, {**given, **settings})
    _check_same_settings(workflow.parser["configuration"], output_dir)
    if _is_done(output_dir, fold):
        logger.info("Fold %d: done", fold)
        return
    logger.info("Fold %d: %s", fold, "continuing" if resume else "starting from fresh weights")
    run_workflow(workflow)
    write_json(folder / DONE, {"fold": fold})


def _load(files: Sequence[str], given: Mapping[str, Any]) -> ConfigWorkflow:
    from luna_monai.training import launched

    workflow = load_workflow("training", files, given)
    if launched().rank > 0:  # of several processes only the first logs; loading has just set up the log
        logging.getLogger().setLevel(logging.WARNING)
    return workflow


def _is_done(output_dir: Path, fold: int) -> bool:
    return (output_dir / f"fold{fold}" / DONE).is_file()


def _fill_cache_together(files: Sequence[str], given: Mapping[str, Any]) -> torch.device:
    """Crop what the cache lacks, a part in each process, wait for all, and return the device of this process.

    They part again afterwards: each fold is a training of one process, which must not see the others.
    """
    import torch

    from luna_monai.training import local_device

    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else each process would take some memory of the first GPU too
    together = [*files, *distributed_overlay()]
    run_workflow(load_workflow("precache", together, {**given, "device": "cpu"}))
    return device


def _folds_of(parser: ConfigParser) -> list[int]:
    from luna_monai.data import folds_of

    target = str(parser.get("split#_target_"))
    if not target.endswith("split_by_subset"):
        raise LunaError(f"split: {target} has no folds; crossval needs luna_monai.data.split_by_subset")
    candidates, scans, patients = map(parser.get_parsed_content, ("candidates", "scans", "patients_file"))
    folds = sorted(folds_of(candidates, scans, patients).unique().tolist())
    if len(folds) < 2:
        raise LunaError(f"{scans.dataset_dir}: scans in subset{folds[0]} only; a cross-validation needs two subsets")
    return folds


def _check_same_settings(settings: Mapping[str, Any], output_dir: Path) -> None:
    """Refuse settings that change the result of a fold, against every fold that is done or has begun."""
    from luna_monai.training.checkpoint import first_difference

    for path in sorted(output_dir.glob("fold*/config.yaml")):
        # A fold that has begun may become longer.
        ignored = ["fold"] if (path.parent / DONE).is_file() else ["fold", "max_epochs"]
        if difference := first_difference(read_config(path), settings, ignored):
            raise LunaError(
                f"{path.parent} was trained with other settings: {difference}; use the same for all folds, or another "
                "--output-dir"
            )
