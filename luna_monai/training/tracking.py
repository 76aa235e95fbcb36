"""Recording a run in MLflow."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from luna_monai.data.cache import SeriesCache
from luna_monai.errors import LunaError, reason_of
from luna_monai.extras import import_extra
from luna_monai.training.run_files import CONFIG, METRICS
from luna_monai.training.run_folder import MODEL, engines_of_epoch
from luna_monai.training.run_state import RunState

logger = logging.getLogger(__name__)

_PARAMS_AT_ONCE = 100  # MLflow takes no more


@dataclass(eq=False)
class MLflowTracking:
    """Records a training run in MLflow: configuration, metrics of each epoch, weights.

    MONAI's ``MLFlowHandler`` has one name for the metrics of training and validation, a new MLflow run for a run that
    is resumed, and no status for one that fails. MLflow's usage statistics are switched off. List it after
    :class:`RunFolder`, whose files it records. Only the first process of several does so. What cannot be recorded after
    the start is logged as a warning; the run's folder has it all.

    Args:
        tracking_uri: MLflow's store: ``sqlite:///PATH`` or a server. The environment variable ``MLFLOW_TRACKING_URI``,
            where set, overrides it. Files of a store in SQLite are in ``mlruns`` beside it.
        experiment_name: MLflow's experiment; made when missing.
        run_state: its folder, and its start and comment, which are the MLflow run's name.
        config: the configuration of the run.
        cache: the cache that the run reads, whose fingerprint is recorded.
        validator: the engine that validates.
        run_name: name of the MLflow run instead.

    Raises:
        LunaError: when MLflow is not installed, or the store cannot be used.
    """

    tracking_uri: str
    experiment_name: str
    run_state: RunState
    config: Mapping[str, Any]
    cache: SeriesCache
    validator: Evaluator
    run_name: str | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if idist.get_rank() > 0:
            return
        self.store = os.environ.get("MLFLOW_TRACKING_URI") or self.tracking_uri
        self.mlflow = import_extra("mlflow", "mlflow")
        _be_quiet()
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._record)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._end("FINISHED"))
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        try:
            self._open()
        except Exception as error:  # MLflow's own, those of its database and those of its HTTP client
            raise LunaError(f"tracking_uri {self.store}: cannot be used by MLflow ({reason_of(error)})") from error
        logger.info("MLflow: experiment '%s' in %s", self.experiment_name, self.store)

    def _open(self) -> None:
        names, files = self.run_state.names, None  # the server says where files are
        if self.store.startswith("sqlite:///"):
            folder = Path(unquote(self.store.removeprefix("sqlite:///"))).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            files = (folder / "mlruns").as_uri()
        self.client = self.mlflow.MlflowClient(self.store)
        experiment = self.client.get_experiment_by_name(self.experiment_name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(self.experiment_name, files)
        if "mlflow_run" not in names:  # else it is that of the run which is resumed, or goes on
            name = self.run_name or f"{names['time']} {names['comment']}"
            names["mlflow_run"] = self.client.create_run(number, run_name=name).info.run_id
        self.client.update_run(names["mlflow_run"], status="RUNNING")
        known = self.client.get_run(names["mlflow_run"]).data.params
        values = {"cache_fingerprint": self.cache.fingerprint, **pd.json_normalize(dict(self.config), sep="/").iloc[0]}
        params = [
            self.mlflow.entities.Param(key, str(value))
            for key, value in values.items()
            if not isinstance(value, list) and key not in known
        ]
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            self.client.log_batch(names["mlflow_run"], params=params[first : first + _PARAMS_AT_ONCE])

    def _record(self, engine: Engine) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self.mlflow.entities.Metric(f"{split}/{name}", float(value), now, engine.state.epoch)
            for split, source in engines_of_epoch(engine, self.validator).items()
            for name, value in source.state.metrics.items()
            if isinstance(value, Real) and math.isfinite(value)
        ]
        with self._warnings():
            self.client.log_batch(self.run_state.names["mlflow_run"], metrics=metrics)

    def _end(self, status: str) -> None:
        with self._warnings():
            files = (Path(self.run_state.output_dir, name) for name in (CONFIG, METRICS, MODEL))
            for path in filter(Path.exists, files):
                self.client.log_artifact(self.run_state.names["mlflow_run"], str(path))
        with self._warnings():
            self.client.set_terminated(self.run_state.names["mlflow_run"], status)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if "mlflow_run" in self.run_state.names:
            self._end("FAILED")
        raise error  # ignite drops an exception that a handler listens to

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.warning("MLflow: not recorded in %s (%s)", self.store, reason_of(error))


def _be_quiet() -> None:
    """Keep MLflow from sending usage statistics, and its database from logging its migrations."""
    from mlflow.telemetry import set_telemetry_client

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    set_telemetry_client()  # it was made when MLflow was imported; now there is none
    for name in ("alembic", "mlflow.store"):
        logging.getLogger(name).setLevel(logging.WARNING)
