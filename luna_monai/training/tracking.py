"""Recording a run in MLflow."""

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

_PARAMS_AT_ONCE = 100  # limit of MLflow


def sqlite_uri(folder: str | Path, name: str = "mlruns.db") -> str:
    """Make the URI of an MLflow store in an SQLite file, in the form that the installed SQLAlchemy expects.

    SQLAlchemy 2.1 decodes percent-encoded paths, earlier versions do not. MONAI's ``path_to_sqlite_uri`` always encodes
    them, so that SQLAlchemy 2.0 creates a wrong folder if the path contains a space.

    Args:
        folder: folder of the SQLite file.
        name: name of the file.

    Returns:
        A URI that starts with ``sqlite:///``.

    Raises:
        LunaError: if SQLAlchemy is not installed.
    """
    database = Path(folder, name).absolute().as_posix()
    return import_extra("sqlalchemy", "mlflow").URL.create("sqlite", database=database).render_as_string()


@dataclass(eq=False)
class MLflowTracking:
    """Records a training run in MLflow: configuration, metrics of each epoch, weights.

    MONAI's ``MLFlowHandler`` uses the same names for training and validation metrics, sets no status when a run fails,
    and without a run name continues the latest unfinished run of the experiment, whoever started it. MLflow's usage
    statistics are disabled. Add this handler after :class:`~luna_monai.training.run_folder.RunFolder`, whose files it
    records. With several processes, only the first one records. Errors after the start are logged as warnings. The run
    folder is complete in any case.

    Args:
        tracking_uri: MLflow's store: ``sqlite:///PATH`` or the URL of a server. The environment variable
            ``MLFLOW_TRACKING_URI`` overrides it. An SQLite store keeps its files in ``mlruns`` in the same folder.
        experiment_name: MLflow's experiment; created if it does not exist.
        run_state: the state of the run. Its start time and comment are the default name of the MLflow run.
        config: the configuration of the run.
        cache: the cache that the run reads; its fingerprint is recorded.
        validator: the engine that validates.
        run_name: name of the MLflow run; None for the default name.

    Raises:
        LunaError: if MLflow is not installed, or the store cannot be used.
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
        _disable_telemetry()
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._record)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._end("FINISHED"))
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        try:
            self._open()
        except Exception as error:  # exceptions of MLflow, of its database or of its HTTP client
            raise LunaError(f"tracking_uri {self.store}: MLflow cannot use it ({reason_of(error)})") from error
        logger.info("MLflow: experiment '%s' in %s", self.experiment_name, self.store)

    def _open(self) -> None:
        names, files = self.run_state.names, None  # a server chooses the place of the files
        if self.store.startswith("sqlite:///"):
            folder = Path(import_extra("sqlalchemy", "mlflow").make_url(self.store).database).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            files = (folder / "mlruns").as_uri()
        self.client = self.mlflow.MlflowClient(self.store)
        experiment = self.client.get_experiment_by_name(self.experiment_name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(self.experiment_name, files)
        if "mlflow_run" not in names:  # else the MLflow run is continued
            name = self.run_name or f"{names['time']} {names['comment']}"
            names["mlflow_run"] = self.client.create_run(number, run_name=name).info.run_id
        self.client.update_run(names["mlflow_run"], status="RUNNING")
        known = self.client.get_run(names["mlflow_run"]).data.params
        values = {"cache_fingerprint": self.cache.fingerprint, **pd.json_normalize(dict(self.config), sep="/").iloc[0]}
        new = {key: str(value) for key, value in values.items() if not isinstance(value, list) and key not in known}
        params = [self.mlflow.entities.Param(key, value) for key, value in new.items()]
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
        raise error  # ignite does not raise an exception that a handler receives

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.warning("MLflow cannot record in %s (%s)", self.store, reason_of(error))


def _disable_telemetry() -> None:
    """Disable MLflow's usage statistics, and the log lines of its database migrations."""
    from mlflow.telemetry import set_telemetry_client

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    set_telemetry_client()  # replaces the client that the import has created
    for name in ("alembic", "mlflow.store"):
        logging.getLogger(name).setLevel(logging.WARNING)
