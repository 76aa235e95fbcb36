"""``luna-monai crossval``: LUNA16's ten-fold cross-validation, with one run per fold."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luna_monai.apps.bundle_app import BundleApp
from luna_monai.errors import LunaError
from luna_monai.files import write_json
from luna_monai.literals import literal
from luna_monai.workflow import numbers, read_config, run_workflow

logger = logging.getLogger(__name__)

#: File in the folder of a fold that is written when its training is complete.
DONE = "fold.json"


class LunaCrossvalApp(BundleApp):
    """Run LUNA16's cross-validation.

    For each subset N, a model is trained on the other subsets, in OUTPUT_DIR/foldN. The predictions of all folds are
    then evaluated as one submission. The command can be interrupted, and continues when it is run again. GPUs and
    machines that share OUTPUT_DIR can train different --folds at the same time.
    """

    name = "crossval"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        super().add_arguments(parser)
        parser.add_argument(
            "--output-dir", dest="folder", metavar="OUTPUT_DIR", required=True, help="folder of the folds and results"
        )
        parser.add_argument("--folds", type=numbers, metavar="N,N", help="folds to train, as 0,2 or 0-4 (default: all)")
        parser.add_argument("--bootstrap", type=int, default=1000, help="bootstrap samples of scans; 0 for no interval")

    def run(self) -> None:
        """Train the folds that are not complete, and evaluate all complete folds."""
        from luna_monai.data import folds_of
        from luna_monai.metrics.froc import check_bootstrap
        from luna_monai.reports.crossval import write_results

        check_bootstrap(self.cli_args.bootstrap)
        folder, given = Path(self.cli_args.folder), self.given()
        get = self.load("training", given).parser.get_parsed_content
        candidates, scans = get("candidates"), get("scans")
        folds = folds_of(candidates, scans, get("patients_file"))
        present = sorted(folds.unique().tolist())
        wanted = self.cli_args.folds or present
        if unknown := set(wanted) - set(present):
            raise LunaError(f"fold {min(unknown)} has no scans with candidates; folds: {', '.join(map(str, present))}")
        for fold in wanted:
            self._train(fold, folder / f"fold{fold}", given, scans)
        done = [fold for fold in present if (folder / f"fold{fold}" / DONE).is_file()]
        write_results(folder, candidates, folds, scans, done, self.cli_args.bootstrap)

    def _train(self, fold: int, folder: Path, given: Mapping[str, Any], scans: Mapping[str, Any]) -> None:
        """Train a fold unless it is complete. An interrupted fold is resumed."""
        from luna_monai.training.checkpoint import first_difference
        from luna_monai.training.run_files import PREDICTIONS

        resume = any(folder.glob("checkpoint*.pt"))
        own = {"fold": fold, "output_dir": literal(str(folder)), "comment": f"fold{fold}", "resume": resume}
        own["finetune"] = None
        for key in given.keys() & own.keys():
            raise LunaError(f"{key}={given[key]}: crossval sets this key for each fold; remove it")
        workflow = self.load("training", {**given, **own})
        for path in sorted(folder.parent.glob("fold*/config.yaml")):
            if difference := first_difference(read_config(path), workflow.parser["configuration"], "fold"):
                advice = "use the same for all folds, or another --output-dir"
                raise LunaError(f"{path.parent} was trained with other settings: {difference}; {advice}")
        if (folder / DONE).is_file():
            logger.info("Fold %d: already trained", fold)
            return
        logger.info("Fold %d: %s", fold, "resuming" if resume else "training from random weights")
        workflow.parser["scans"] = {"_target_": lambda: scans}  # lists the folder and reads headers once for all folds
        run_workflow(workflow)
        if not (folder / PREDICTIONS / "val.csv").is_file():
            found = f"fold {fold}: the training diverged, so there are no validation predictions"
            raise LunaError(f"{found}; use other settings, such as a lower optimizer#lr, and another --output-dir")
        write_json(folder / DONE, {"fold": fold})
