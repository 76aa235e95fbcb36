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
from luna_monai.literals import literal
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, is_launched, launch
from luna_monai.trust import read_config
from luna_monai.workflow import (
    add_config_arguments,
    add_overrides_argument,
    config_files,
    given_settings,
    load_workflow,
    run_workflow,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from monai.bundle import ConfigWorkflow

logger = logging.getLogger(__name__)

#: In a fold's folder: written when the fold has been trained to its end.
DONE = "fold.json"


class LunaCrossvalApp(App):
    """Train a model for each fold, and evaluate them together on the scans that each has not seen.

    Args:
        sys_argv: arguments; see ``luna-monai crossval --help``.
    """

    name = "crossval"
    description = (
        "Cross-validate: for each LUNA16 subset a fresh model that is trained on the others, in OUTPUT_DIR/foldN; then "
        "the predictions of all folds together, as one submission with LUNA16's score. May be interrupted and run "
        "again. Machines that share OUTPUT_DIR can train different --folds. Processes of torchrun fill the cache "
        "together, then train one fold each at a time."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_config_arguments(parser)
        parser.add_argument("--output-dir", required=True, help="folder of the folds and the results")
        parser.add_argument("--folds", metavar="0,1,2", help="train these only (default: all that have scans)")
        parser.add_argument("--batch-size", type=int, help="candidates in a batch")
        parser.add_argument("--epochs", dest="max_epochs", type=int, help="epochs to train for")
        parser.add_argument("--bootstrap", type=int, default=1000, help="bootstrap samples of scans; 0 for no interval")
        add_distributed_argument(parser, "train as many folds at once in")
        add_overrides_argument(parser)

    def main(self) -> int:
        """Train the folds that are not done yet, and put together what there is.

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
        if launch(self):
            return 0
        from luna_monai.metrics.froc import check_bootstrap

        check_bootstrap(arguments.bootstrap)
        with unwrapped_luna_errors():
            workflow = _load(files, given)
            get = workflow.parser.get_parsed_content
            if get("finetune") is not None:
                raise LunaError("finetune is set: the folds of a cross-validation start from fresh weights; remove it")
            all_folds = _folds_of(workflow)
        folds = all_folds if arguments.folds is None else _parse_folds(arguments.folds, all_folds)
        if is_launched():
            given.setdefault("device", str(_fill_cache_together(files, given)))
        process = _process()
        for fold in folds[process.rank :: process.world_size]:
            _train(fold, output_dir, files, given)
        if process.rank > 0:
            return 0  # the first process puts the results together
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
        if missing:
            logger.info("Still to be trained: %s; all results come with the last one", ", ".join(map(str, missing)))
        return 0


def _train(fold: int, output_dir: Path, files: Sequence[str], given: Mapping[str, Any]) -> None:
    """Train a fold to its end, unless it is done; go on where it was interrupted."""
    from luna_monai.files import write_json

    folder = output_dir / f"fold{fold}"
    resume = any(folder.glob("checkpoint*.pt"))
    settings = {"fold": fold, "output_dir": literal(str(folder)), "comment": f"fold{fold}", "resume": resume}
    workflow = _load(files, {**given, **settings})
    _check_same_settings(workflow.parser["configuration"], output_dir)
    if _is_done(output_dir, fold):
        logger.info("Fold %d: done", fold)
        return
    logger.info("Fold %d: %s", fold, "going on" if resume else "starting from fresh weights")
    with unwrapped_luna_errors():
        workflow.initialize()
        network, optimizer = map(workflow.parser.get_parsed_content, ("network_def", "optimizer"))
        assert_fresh(network, optimizer, fold, output_dir)
        workflow.run()
        workflow.finalize()
    write_json(folder / DONE, {"fold": fold})


def _is_done(output_dir: Path, fold: int) -> bool:
    return (output_dir / f"fold{fold}" / DONE).is_file()


def assert_fresh(network: torch.nn.Module, optimizer: torch.optim.Optimizer, fold: int, output_dir: Path) -> None:
    """Refuse a network that has been trained: by its batch normalization, its optimizer, or another fold's weights.

    Args:
        network: as it is before training.
        optimizer: its optimizer.
        fold: the number of the fold.
        output_dir: the folder of all folds.

    Raises:
        LunaError: saying what shows it.
    """
    import torch

    from luna_monai.networks import load_weights

    own = network.state_dict()
    signs = [f"{name} is {int(own[name])}" for name in own if name.endswith("num_batches_tracked") and own[name]]
    if optimizer.state:
        signs.append(f"the optimizer has a state of {len(optimizer.state)} parameters")
    for path in sorted(output_dir.glob("fold*/model.pt")):
        trained = load_weights(path)
        if trained.keys() == own.keys() and all(torch.equal(trained[name], own[name].cpu()) for name in own):
            signs.append(f"the weights are those of {path}")
    if signs:
        raise LunaError(f"fold {fold}: must start from fresh weights, but {', and '.join(signs)}")


def _process() -> Any:
    from luna_monai.training import launched

    return launched()


def _load(files: Sequence[str], given: Mapping[str, Any]) -> ConfigWorkflow:
    workflow = load_workflow("training", files, given)
    # Of several processes the first alone logs, and the bundle has just set up the log.
    if _process().rank > 0:
        logging.getLogger().setLevel(logging.WARNING)
    return workflow


def _fill_cache_together(files: Sequence[str], given: Mapping[str, Any]) -> torch.device:
    """Cut what the cache lacks, a part in each process, wait for all of them, and return where this one is to train.

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


def _folds_of(workflow: ConfigWorkflow) -> list[int]:
    from luna_monai.data import folds_of

    target = str(workflow.parser.get("split#_target_"))
    if not target.endswith("split_by_subset"):
        raise LunaError(f"split: {target} has no folds; crossval needs luna_monai.data.split_by_subset")
    parts: list[pd.DataFrame | Any] = [
        workflow.parser.get_parsed_content(name) for name in ("candidates", "scans", "patients_file")
    ]
    folds = sorted(folds_of(*parts).unique().tolist())
    if len(folds) < 2:
        raise LunaError(f"{parts[1].dataset_dir}: scans in subset{folds[0]} only; a cross-validation needs two subsets")
    return folds


def _parse_folds(text: str, all_folds: Sequence[int]) -> list[int]:
    known = {str(fold): fold for fold in all_folds}
    for part in text.split(","):
        if part.strip() not in known:
            raise LunaError(
                f"--folds {text}: {part!r} is not one of the folds with scans and candidates, {','.join(known)}"
            )
    return [known[part.strip()] for part in text.split(",")]


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
