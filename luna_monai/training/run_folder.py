"""The folder of a run: weights, checkpoint, metrics and predictions."""

import hashlib
import logging
import math
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pandas as pd
import torch
import yaml
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import LrScheduleHandler, ValidationHandler

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError, reason_of
from luna_monai.files import lock, remove_abandoned, write_bytes, write_errors, write_table, write_tensors
from luna_monai.literals import leaves_and_sections
from luna_monai.networks import LunaModel
from luna_monai.training.checkpoint import CHECKPOINT, PREVIOUS_CHECKPOINT, restore_checkpoint, save_checkpoint
from luna_monai.training.run_files import CONFIG, METRICS, PREDICTION_COLUMNS, PREDICTIONS
from luna_monai.training.run_state import TIME_FORMAT, RunState

logger = logging.getLogger(__name__)

MODEL = "model.pt"
_TOKEN = uuid.uuid4().hex[:8]  # processes in containers may have the same number and host name
_OTHERS = ("report.html", "evaluation", "model.ts", "model.onnx")
#: Files and folders that :class:`RunFolder` and the commands for a finished run write.
RESULTS = (MODEL, CHECKPOINT, PREVIOUS_CHECKPOINT, METRICS, PREDICTIONS, CONFIG, *_OTHERS)


def write_predictions(path: Path, records: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Write the probability and loss of each candidate, in the order of the candidate table.

    Args:
        path: the CSV file.
        records: table with ``row``, ``class``, ``probability`` and ``loss``.
        candidates: the candidate table, indexed by row.

    Raises:
        LunaError: if the file cannot be written.
    """
    table = records.sort_values("row", kind="stable").join(candidates.drop(columns="class"), on="row")
    write_table(path, table[PREDICTION_COLUMNS])


@dataclass(eq=False)
class RunFolder:
    """Writes the run folder at the end of each epoch, and logs the results at the end of the run.

    - ``model.pt``: ``state_dict`` of the best epoch, or of the last epoch while there is no best epoch; that of a
      :class:`~luna_monai.networks.LunaModel` has no batch normalizations, see its ``folded``;
    - ``predictions/trn.csv`` and ``val.csv``: the predictions of that epoch, if they are finite;
    - ``metrics.csv``: a row for each epoch and split; undefined values are empty;
    - ``config.yaml``: the configuration, written at the start; ``python -m monai.bundle run`` can read it;
    - ``checkpoint.pt``: the full state of the run, and ``checkpoint-previous.pt``, the state one epoch earlier.

    Each file is written atomically. Add this handler to the ``train_handlers`` after the validation and the
    learning-rate schedule. When training starts, the files of an earlier run in the same folder, except TensorBoard's
    ``runs``, are moved to ``previous-TIME``. If the same trainer runs again, it continues its own run instead. With
    several processes, only the first one writes.

    Args:
        run_state: its ``output_dir`` is the run folder.
        network: the network that is trained, without wrappers such as ``DistributedDataParallel``.
        optimizer: the optimizer of the network.
        candidates: the candidate table, indexed by row.
        validator: the engine that validates.
        config: the configuration of the run, for ``config.yaml``.
        lr_scheduler: the learning-rate schedule; None for a constant learning rate.
        extra: more objects with a ``state_dict`` to save in the checkpoint, by name.
        resume: continue from the checkpoint in the folder.
    """

    run_state: RunState
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    candidates: pd.DataFrame
    validator: Evaluator
    config: Mapping[str, Any]
    lr_scheduler: Any = None
    extra: Mapping[str, Any] | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        self.output_dir = Path(self.run_state.output_dir)
        objects = {"network": self.network, "optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        objects |= {"run_state": self.run_state, **(self.extra or {})}
        self._objects = {name: item for name, item in objects.items() if item is not None}
        # A resumed run must also have the same schedule and the same candidate table, which depend on the dataset.
        rows = pd.util.hash_pandas_object(self.candidates[["seriesuid", *COORDINATES, "class"]]).to_numpy()
        digest = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
        schedule = {} if self.lr_scheduler is None else self.lr_scheduler.state_dict()
        values = dict(leaves_and_sections(schedule))  # also of nested schedules
        scalars = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
        self._settings = {**self.config, "schedule": scalars}
        self._settings["candidates (the table on disk)"] = f"{len(rows)} rows, SHA-256 {digest}"
        self._started = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
            engine.add_event_handler(Events.COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:
        first = idist.get_rank() == 0
        if first:
            self._lock = _locked(self.output_dir / ".lock")
            for folder in (self.output_dir, self.output_dir / PREDICTIONS):  # temporary files of a killed run
                remove_abandoned(folder)
        if self._started:
            return
        if self.resume:
            content = restore_checkpoint(self.output_dir, self._objects, self._settings)
            engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
            logger.info("%s: resumed after epoch %d", self.output_dir, content["epoch"])
        elif first:
            _set_aside_previous_run(self.output_dir)
        if first:
            # In ASCII, because MONAI reads configurations in the encoding of the system, which may not be UTF-8.
            write_bytes(self.output_dir / CONFIG, yaml.safe_dump(dict(self.config), sort_keys=False).encode())
        self._started = True

    def _write(self, engine: Engine) -> None:
        state, epoch = self.run_state, engine.state.epoch
        engines = engines_of_epoch(engine, self.validator)
        # The checkpoint is written last: if the process is killed before, the resumed run repeats this epoch.
        if state.best_epoch in (None, epoch):
            network = self.network.folded() if isinstance(self.network, LunaModel) else self.network
            write_tensors(self.output_dir / MODEL, network.state_dict())
            for split, source in engines.items():
                if np.isfinite(source.state.records["probability"]).all():
                    path = self.output_dir / PREDICTIONS / f"{split}.csv"
                    write_predictions(path, source.state.records, self.candidates)
        for split, source in engines.items():
            # Checkpoints cannot contain numbers of NumPy.
            values = {key: np.asarray(one).item() for key, one in source.state.metrics.items() if isinstance(one, Real)}
            state.history.append({"epoch": epoch, "split": split, "samples": state.samples, **values})
        write_table(self.output_dir / METRICS, pd.DataFrame(state.history))
        content = {"epoch": epoch, "iteration": engine.state.iteration, "settings": self._settings}
        save_checkpoint(self.output_dir, content, self._objects)

    def _end(self, engine: Engine) -> None:
        best, epochs = self.run_state.best_metrics, engine.state.epoch
        if best:
            text = "Best epoch: %d of %d, %.1f%% of the validation candidates correct, ROC AUC %.4f"
            values = (best.get(name, math.nan) for name in ("correct/all", "roc_auc"))
            logger.info(text, self.run_state.best_epoch, epochs, *values)
        else:
            logger.info("No best epoch: the validation metrics are undefined")
        titles = ("Weights:     ", "Metrics:     ", "Predictions: ", "Plots:       tensorboard --logdir ")
        for title, name in zip(titles, (MODEL, METRICS, f"{PREDICTIONS}/val.csv", "runs"), strict=True):
            if (self.output_dir / name).exists():
                logger.info("%s%s", title, self.output_dir / name)
        os.close(self._lock)


class Validation(ValidationHandler):
    """MONAI's ``ValidationHandler``, which also validates the last epoch.

    Args:
        interval: validate every N epochs.
        validator: the evaluator.
    """

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs


class LrSchedule(LrScheduleHandler):
    """MONAI's ``LrScheduleHandler``, which also accepts no schedule.

    Args:
        lr_scheduler: the schedule; None for a constant learning rate.
        epoch_level: True for a step after each epoch, False for a step after each batch.

    Raises:
        LunaError: if the schedule is ``ReduceLROnPlateau``, or one of its steps fails.
    """

    def __init__(self, lr_scheduler: Any, epoch_level: bool = True) -> None:
        super().__init__(lr_scheduler, print_lr=False, epoch_level=epoch_level)
        if isinstance(lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise LunaError("lr_scheduler: ReduceLROnPlateau needs a metric and is not supported; use another schedule")

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.lr_scheduler is not None:
            super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        """Make one step of the schedule."""
        try:
            super().__call__(engine)
        except Exception as error:  # each schedule raises its own types for wrong settings
            raise LunaError(f"lr_scheduler: {type(self.lr_scheduler).__name__}: {reason_of(error)}") from error


def engines_of_epoch(trainer: Engine, validator: Engine) -> dict[str, Engine]:
    """Return the engines that ran in the current epoch by split: ``trn``, and ``val`` if the epoch was validated."""
    return {"trn": trainer, **({"val": validator} if validator.state.epoch == trainer.state.epoch else {})}


def _set_aside_previous_run(output_dir: Path) -> None:
    found = [output_dir / name for name in RESULTS if (output_dir / name).exists()]
    if found:
        previous = output_dir / f"previous-{datetime.now().strftime(TIME_FORMAT)}"
        while previous.exists():  # of a run that ended within this second
            previous = previous.with_name(f"{previous.name}-2")
        with write_errors(previous):
            previous.mkdir()
            for path in found:
                path.rename(previous / path.name)
        logger.info("Files of an earlier run in %s: moved to %s", output_dir, previous)


def _locked(path: Path) -> int:
    """Lock a file until this process ends or closes the file descriptor that is returned."""
    this_process = f"process {os.getpid()} on {socket.gethostname()} ({_TOKEN})"
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(file, wait=False)
    except BlockingIOError:
        owner = path.read_text(errors="replace")
        if owner != this_process:  # else a failed trainer of this process still holds the lock
            raise LunaError(f"{path.parent}: in use by {owner}; wait for its end, or set another output_dir") from None
    except OSError as error:
        logger.debug("%s: this file system does not support locks (%s)", path, error)
    os.ftruncate(file, 0)
    os.write(file, this_process.encode())
    return file
