"""The folder of a run: weights, checkpoint, metrics and predictions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
import torch
import yaml
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.training.atomic import save_table, save_tensors
from luna_monai.training.best_epoch import BestEpoch
from luna_monai.training.checkpoint import (
    CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    Stateful,
    read_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    set_random_state,
    unwrap,
)
from luna_monai.training.samples import TrainingSamples
from luna_monai.training.tensorboard import TIME_FORMAT

logger = logging.getLogger(__name__)

MODEL = "model.pt"
METRICS = "metrics.csv"
PREDICTIONS = "predictions"
CONFIG = "config.yaml"
#: Sections of the configuration that a checkpoint brings back as they were when the run began.
_RESTORED = ("optimizer", "lr_scheduler")
#: What moves in the state of a learning-rate schedule; all else is as it was made.
_MOVING = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}

#: What :class:`RunFolder` writes.
RESULTS = (MODEL, CHECKPOINT, PREVIOUS_CHECKPOINT, METRICS, PREDICTIONS, CONFIG)

PREDICTION_COLUMNS = (
    "row", "seriesuid", "coordX", "coordY", "coordZ", "class", "diameter_mm", "probability", "loss",
)  # fmt: skip


def set_aside_previous_run(output_dir: str | Path) -> Path | None:
    """Move what an earlier run left in a folder to ``previous-TIME`` inside it, so that nothing is lost.

    TensorBoard's ``runs`` stay, because each run has its own there.

    Args:
        output_dir: folder of the run; need not exist.

    Returns:
        The new folder, or None when there was nothing to move.

    Raises:
        LunaError: when it can't be moved.
    """
    output_dir = Path(output_dir)
    if not any((output_dir / name).exists() for name in RESULTS):
        return None
    stem = f"previous-{datetime.now().strftime(TIME_FORMAT)}"
    try:
        previous = output_dir / stem
        number = 1
        while previous.exists():
            number += 1
            previous = output_dir / f"{stem}-{number}"
        previous.mkdir()
        for name in RESULTS:
            if (output_dir / name).exists():
                (output_dir / name).rename(previous / name)
    except OSError as error:
        raise LunaError(f"{output_dir}: the earlier run there can't be moved ({error.strerror or error})") from error
    logger.info("%s holds an earlier run: moved to %s", output_dir, previous)
    return previous


def write_predictions(path: Path, records: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Write what a model said about each candidate, in the order of the candidate table.

    Args:
        path: the CSV file.
        records: ``row``, ``class``, ``probability`` and ``loss``.
        candidates: the candidate table, indexed by row.

    Raises:
        LunaError: when the file can't be written.
    """
    places = candidates.drop(columns="class", errors="ignore")
    table = records.sort_values("row", kind="stable").join(places, on="row")
    save_table(path, table[list(PREDICTION_COLUMNS)])


class RunFolder:
    """Writes a run's folder at the end of each epoch, every file whole or not at all.

    - ``model.pt``: ``state_dict`` of the best epoch, of the last one as long as none is the best;
    - ``predictions/trn.csv`` and ``val.csv``: what the model said in that epoch;
    - ``metrics.csv``: a row for each epoch and split, undefined values empty;
    - ``config.yaml``: the configuration, at the start; the bundle runs again from it;
    - ``checkpoint.pt``: all that a resumed run needs, and ``checkpoint-previous.pt``, the epoch before.

    List it last among the ``train_handlers``, after the validation. The files of an earlier run in the same folder are
    moved aside when training starts, see :func:`set_aside_previous_run`. Only the first process of several writes.

    Args:
        output_dir: the folder.
        network: the network that is trained.
        optimizer: its optimizer.
        candidates: the candidate table, indexed by row.
        training_samples: counts the samples.
        best_epoch: knows the best epoch; listed among the validator's handlers.
        validator: the engine that validates; None when nothing does.
        lr_scheduler: its learning-rate schedule, if there is one.
        extra: what else has a state, by name: a gradient scaler, a sampler, the TensorBoard run.
        resume: go on from the checkpoint in the folder.
        config: the configuration of the run, for ``config.yaml``; none is written when None.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        candidates: pd.DataFrame,
        training_samples: TrainingSamples,
        best_epoch: BestEpoch,
        validator: Evaluator | None = None,
        lr_scheduler: Stateful | None = None,
        extra: Mapping[str, Stateful] | None = None,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.candidates = candidates
        self.training_samples = training_samples
        self.best_epoch = best_epoch
        self.validator = validator
        self.resume = resume
        self.config = config
        self._rows: list[dict[str, Any]] = []
        self._objects: dict[str, Stateful] = {
            "network": unwrap(network),
            "optimizer": optimizer,
            "training_samples": training_samples,
            "best_epoch": best_epoch,
            **({} if lr_scheduler is None else {"lr_scheduler": lr_scheduler}),
            **(extra or {}),
        }

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        self.training_samples.attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        if self.resume:
            self._resume(engine)
        elif idist.get_rank() == 0:
            set_aside_previous_run(self.output_dir)
        if idist.get_rank() == 0:
            self._check_writable()
            if self.config is not None:
                text = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True)
                write_bytes(self.output_dir / CONFIG, text.encode())

    def _check_writable(self) -> None:
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output_dir):
                pass
            for path in self.output_dir.rglob(".*.tmp"):  # what a killed run was writing
                path.unlink(missing_ok=True)
        except OSError as error:
            raise LunaError(
                f"{self.output_dir}: can't be written ({error.strerror or error}); choose another output_dir"
            ) from error

    def _resume(self, engine: Engine) -> None:
        content = read_checkpoint(self.output_dir)
        self._check_restored_settings(content["state"])
        restore_checkpoint(content, self._objects, self.output_dir)
        # Other processes keep the states that their own seeds gave them, or all would draw the same numbers.
        if idist.get_rank() == 0:
            set_random_state(content["random"])
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
        self._rows = _read_rows(self.output_dir / METRICS, content["epoch"])
        predictions = self.output_dir / PREDICTIONS / "val.csv"
        if self.best_epoch.epoch is not None and predictions.is_file():
            records = pd.read_csv(predictions, usecols=["row", "class", "probability", "loss"])
            self.best_epoch.records = records.astype({"probability": "float32", "loss": "float32"})
        logger.info("%s: resumed after epoch %d", self.output_dir, content["epoch"])

    def _check_restored_settings(self, state: Mapping[str, Any]) -> None:
        path = self.output_dir / CONFIG
        if self.config is None or not path.is_file():
            return
        recorded = yaml.safe_load(path.read_text(encoding="utf-8"))
        schedule = self._objects.get("lr_scheduler")
        before = _settings(recorded, state.get("lr_scheduler", {}))
        now = _settings(self.config, {} if schedule is None else schedule.state_dict())
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise LunaError(
                    f"{path}: the run began with {key} {before.get(key)}, and this configuration makes it "
                    f"{now.get(key)}; a resumed run goes on as it began. Resume with the settings of then, or start "
                    f"anew from its weights with finetune={self.output_dir / MODEL}"
                )

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        epoch = engine.state.epoch
        engines = engines_of_epoch(engine, self.validator)
        # The checkpoint comes last: after a kill before it, the resumed run does this epoch and its files again.
        if self.best_epoch.epoch in (None, epoch):
            save_tensors(self.output_dir / MODEL, unwrap(self.network).state_dict())
            for split, source in engines.items():
                path = self.output_dir / PREDICTIONS / f"{split}.csv"
                write_predictions(path, source.state.records, self.candidates)
        samples = self.training_samples.count
        for split, source in engines.items():
            self._rows.append({"epoch": epoch, "split": split, "samples": samples, **_scalars(source.state.metrics)})
        save_table(self.output_dir / METRICS, pd.DataFrame(self._rows))
        save_checkpoint(self.output_dir, epoch, engine.state.iteration, self._objects)


def engines_of_epoch(trainer: Engine, validator: Engine | None) -> dict[str, Engine]:
    """List the engines that have run in the trainer's epoch: ``trn``, and ``val`` where it was validated."""
    engines = {"trn": trainer}
    if validator is not None and validator.state.epoch == trainer.state.epoch:
        engines["val"] = validator
    return engines


def _settings(config: Mapping[str, Any], schedule: Mapping[str, Any]) -> dict[str, Any]:
    """List what a checkpoint brings back; of the schedule also what expressions have made, such as its length."""
    sections = pd.json_normalize({name: config.get(name) for name in _RESTORED}, sep="#").to_dict("records")[0]
    made = {
        f"lr_scheduler#{key}": value
        for key, value in schedule.items()
        if isinstance(value, bool | int | float | str) and key not in _MOVING and not key.startswith("_")
    }
    return {str(key): value for key, value in sections.items()} | made


def _scalars(metrics: Mapping[str, Any]) -> dict[str, Real]:
    return {name: value for name, value in metrics.items() if isinstance(value, Real)}


def _read_rows(path: Path, last_epoch: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    table = pd.read_csv(path)
    return table[table["epoch"] <= last_epoch].to_dict("records")  # type: ignore[return-value]
