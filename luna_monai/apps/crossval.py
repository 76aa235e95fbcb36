"""``luna-monai crossval``: LUNA16's ten-fold cross-validation, each fold a run of its own."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.base import App, run_app
from luna_monai.apps.torchrun import add_distributed_argument, distributed_overlay, is_launched, launch
from luna_monai.apps.workflow import (
    add_config_arguments,
    add_overrides_argument,
    config_files,
    given_options,
    load_workflow,
    parse_override,
    run_workflow,
)
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.literals import literal

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from monai.bundle import ConfigWorkflow

logger = logging.getLogger(__name__)

#: In a fold's folder: written when the fold has been trained to its end, with the settings it was trained with.
DONE = "fold.json"

# Keys that may differ between the processes that share a cross-validation.
_MACHINE_KEYS = (
    "dataset_dir", "cache_dir", "output_dir", "fold", "resume", "num_workers", "precache_workers", "comment",
    "tb_prefix", "device", "tracking_uri", "experiment_name",
)  # fmt: skip


class LunaCrossvalApp(App):
    """Train a model for each fold, and judge them together on the scans that each has not seen.

    Args:
        sys_argv: arguments; see ``luna-monai crossval --help``.
    """

    name = "crossval"
    description = (
        "Cross-validate: for each LUNA16 subset a fresh model that is trained on the others, in OUTPUT_DIR/foldN; then "
        "the predictions of all folds together, as one submission with LUNA16's score. May be interrupted and run "
        "again. Several processes and machines may work on one OUTPUT_DIR: each takes the next fold that nobody has. "
        "Processes of torchrun fill the cache together first; the first one waits for all folds and shows the results."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_config_arguments(parser)
        parser.add_argument("--output-dir", required=True, help="folder of the folds and the results")
        parser.add_argument(
            "--folds", default=None, metavar="0,1,2", help="train these only (default: all that have scans)"
        )
        parser.add_argument("--batch-size", type=int, default=None, help="candidates in a batch")
        parser.add_argument("--epochs", type=int, default=None, help="epochs to train for")
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
        if arguments.bootstrap < 0:
            raise LunaError(f"--bootstrap must not be negative, found {arguments.bootstrap}")
        if arguments.distributed is not None and not is_launched():
            launch(self, arguments.distributed)
            return 0
        output_dir = Path(arguments.output_dir)
        files = config_files(arguments.config)
        given = given_options(
            {
                "dataset_dir": arguments.dataset_dir,
                "cache_dir": arguments.cache_dir,
                "num_workers": arguments.num_workers,
                "batch_size": arguments.batch_size,
                "max_epochs": arguments.epochs,
            }
        )
        given |= dict(parse_override(text) for text in arguments.overrides if text)
        for key in ("fold", "resume", "output_dir", "finetune"):
            if key in given:
                raise LunaError(f"{key}={given[key]}: crossval sets this key itself, for each fold; leave it out")
        with unwrapped_luna_errors():
            workflow = _load(files, given)
            if workflow.parser.get("finetune") is not None:
                raise LunaError("finetune is set: the folds of a cross-validation start from fresh weights; remove it")
            candidates = workflow.parser.get_parsed_content("candidates")
            all_folds = _folds_of(workflow, candidates)
        folds = all_folds if arguments.folds is None else _parse_folds(arguments.folds, all_folds)
        if is_launched():
            given.setdefault("device", f"$torch.device('{_fill_cache_together(files, given)}')")
        for fold in folds:
            self._take(fold, output_dir, files, given)
        if is_launched():
            if _is_quiet():
                return 0  # the first process puts the results together
            for fold in folds:
                if not (output_dir / f"fold{fold}" / DONE).is_file():
                    logger.info("Fold %d: waiting for the process that trains it", fold)
                    # Its lock is free when it is done, or has been left unfinished: then it goes on here.
                    self._take(fold, output_dir, files, given, wait=True)
        done = [fold for fold in all_folds if (output_dir / f"fold{fold}" / DONE).is_file()]
        if done != all_folds:
            missing = ", ".join(str(fold) for fold in all_folds if fold not in done)
            logger.info("Folds still to be trained: %s; results come with the last one", missing)
            return 0
        from luna_monai.reports.crossval import write_results

        write_results(
            output_dir, done, candidates, workflow.parser.get_parsed_content("scans"), bootstrap=arguments.bootstrap
        )
        return 0

    def _take(
        self, fold: int, output_dir: Path, files: Sequence[str], given: Mapping[str, Any], wait: bool = False
    ) -> None:
        folder = output_dir / f"fold{fold}"
        with _lock(output_dir / f".fold{fold}.lock", wait) as mine:
            if not mine:
                logger.info("Fold %d: another process has taken it", fold)
                return
            resume = (folder / "checkpoint.pt").is_file() or (folder / "checkpoint-previous.pt").is_file()
            settings = {"fold": fold, "output_dir": literal(str(folder)), "comment": f"fold{fold}", "resume": resume}
            workflow = _load(files, {**given, **settings})
            recorded = _recorded_settings(workflow)
            _check_same_settings(recorded, output_dir)
            if (folder / DONE).is_file():
                logger.info("Fold %d: done", fold)
                return
            logger.info("Fold %d: %s", fold, "going on" if resume else "starting from fresh weights")
            train_fold(workflow, fold, output_dir)
            from luna_monai.files import write_json

            write_json(folder / DONE, {"fold": fold, "settings": recorded})


def train_fold(workflow: ConfigWorkflow, fold: int, output_dir: Path) -> None:
    """Train one fold, after making sure that its network and optimizer have not been trained before.

    Args:
        workflow: the configuration of the fold, nothing of it made yet.
        fold: its number.
        output_dir: the folder of all folds.

    Raises:
        LunaError: when the weights are not fresh, or the data are bad.
    """
    with unwrapped_luna_errors():
        workflow.initialize()
        network, optimizer = (workflow.parser.get_parsed_content(name) for name in ("network_def", "optimizer"))
        assert_fresh(network, optimizer, fold, output_dir)
        workflow.run()
        workflow.finalize()


def assert_fresh(network: torch.nn.Module, optimizer: torch.optim.Optimizer, fold: int, output_dir: Path) -> None:
    """Refuse a network that has been trained: by its batch normalisation, its optimizer, or another fold's weights.

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


def _is_quiet() -> bool:
    from luna_monai.training import launched

    return launched().rank > 0


def _load(files: Sequence[str], given: Mapping[str, Any]) -> ConfigWorkflow:
    workflow = load_workflow("training", files, given)
    # Of several processes the first alone logs, and the bundle has just set up the log.
    if _is_quiet():
        logging.getLogger().setLevel(logging.WARNING)
    return workflow


def _fill_cache_together(files: Sequence[str], given: Mapping[str, Any]) -> torch.device:
    """Cut what the cache lacks, a part in each process, and wait for all of them.

    They part again afterwards: each fold is a training of one process, which must not see the others.

    Returns:
        Where this process is to train.
    """
    import torch

    from luna_monai.training import local_device

    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else each process would take some memory of the first GPU too
    together = [*files, *distributed_overlay()]
    run_workflow(load_workflow("precache", together, {**given, "device": "$torch.device('cpu')"}))
    return device


def _folds_of(workflow: ConfigWorkflow, candidates: pd.DataFrame) -> list[int]:
    from luna_monai.data import folds_of

    target = str(workflow.parser.get("split#_target_"))
    if not target.endswith("split_by_subset"):
        raise LunaError(f"split: {target} has no folds; crossval needs luna_monai.data.split_by_subset")
    scans, patients_file = map(workflow.parser.get_parsed_content, ("scans", "patients_file"))
    folds = sorted(folds_of(candidates, scans, patients_file).unique().tolist())
    if len(folds) < 2:
        raise LunaError(f"{scans.dataset_dir}: scans in subset{folds[0]} only; a cross-validation needs two subsets")
    return folds


def _parse_folds(text: str, all_folds: Sequence[int]) -> list[int]:
    known = ",".join(map(str, all_folds))
    try:
        folds = [int(part) for part in text.split(",")]
    except ValueError:
        raise LunaError(f"--folds {text}: expected numbers separated by commas, such as {known}") from None
    unknown = [fold for fold in folds if fold not in all_folds]
    if unknown:
        raise LunaError(f"--folds {text}: no scans with candidates in subset{unknown[0]}; folds with scans: {known}")
    return folds


def _recorded_settings(workflow: ConfigWorkflow) -> dict[str, Any]:
    config = {key: value for key, value in workflow.parser.get().items() if key not in (*_MACHINE_KEYS, "_meta_")}
    # A copy, because resolving changes the configuration in place; by JSON, because that is what it is compared with.
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]


def _check_same_settings(settings: Mapping[str, Any], output_dir: Path) -> None:
    for path in sorted(output_dir.glob(f"fold*/{DONE}")):
        try:
            other = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise LunaError(f"{path}: damaged; delete {path.parent} to train this fold again") from None
        if settings != other:
            differing = sorted(key for key in settings.keys() | other.keys() if settings.get(key) != other.get(key))
            raise LunaError(
                f"{path.parent} was trained with other settings ({', '.join(differing)}); "
                "use the same for all folds, or another --output-dir"
            )


@contextlib.contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a file lock, which ends with the process however that ends; yield whether it was free, or wait for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise LunaError(f"{path.parent}: can't be written ({error.strerror}); choose another --output-dir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


if __name__ == "__main__":
    sys.exit(run_app(LunaCrossvalApp))
