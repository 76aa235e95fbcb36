"""Recording a run in MLflow."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import MLFlowHandler
from monai.utils import path_to_uri

from luna_monai.data.cache import SeriesCache
from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.training.run_files import CONFIG, METRICS
from luna_monai.training.run_folder import MODEL, engines_of_epoch
from luna_monai.training.run_state import RunState

logger = logging.getLogger(__name__)

_PARAMS_AT_ONCE = 100  # MLflow takes no more
_LONGEST_PARAM = 6000  # characters, as above


def sqlite_uri(path: str | Path) -> str:
    """Make the address of an MLflow store in an SQLite file, as the installed SQLAlchemy reads it.

    SQLAlchemy 2.1 decodes the path of an address, earlier versions do not. MONAI's ``path_to_sqlite_uri`` encodes it
    always, so that SQLAlchemy 2.0 makes another folder for a name with a space.

    Args:
        path: of the file.

    Raises:
        LunaError: when SQLAlchemy is not installed.
    """
    database = Path(path).absolute().as_posix()
    return import_extra("sqlalchemy", "mlflow").URL.create("sqlite", database=database).render_as_string()


class MLflowTracking(MLFlowHandler):
    """Records a training run in MLflow: configuration, metrics of each epoch, weights.

    MONAI's ``MLFlowHandler`` with metrics of training and validation under names of their own (``trn/…``, ``val/…``),
    one MLflow run for a run that is resumed, and status FAILED when training fails. MLflow's usage statistics are
    switched off. List it after :class:`RunFolder`, whose files it records. Only the first process of several does so.
    What cannot be recorded after the start is logged as a warning; the run's folder has it all.

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

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_state: RunState,
        config: Mapping[str, Any],
        cache: SeriesCache,
        validator: Evaluator,
        run_name: str | None = None,
    ) -> None:
        self.run_state = run_state
        self.run_name: str | None = run_name
        values = pd.json_normalize(dict(config), sep="/").to_dict("records")[0]
        plain = {str(key): str(value)[:_LONGEST_PARAM] for key, value in values.items() if not isinstance(value, list)}
        self.params = {"cache_fingerprint": cache.fingerprint, **plain}
        self.validator = validator
        self.store = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri
        if idist.get_rank() > 0:
            return
        import_extra("mlflow", "mlflow")
        _be_quiet()
        self.files: str | None = None  # where the server says
        if self.store.startswith("sqlite:///"):
            folder = Path(import_extra("sqlalchemy", "mlflow").make_url(self.store).database).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            self.files = path_to_uri(folder / "mlruns")  # MONAI's own choice fails for a name with a space
        artifacts = [run_state.output_dir / name for name in (CONFIG, METRICS, MODEL)]
        options = {"iteration_log": False, "close_on_complete": True, "artifacts": artifacts}
        self._or_fail(
            super().__init__,
            tracking_uri,
            experiment_name=experiment_name,
            run_name=run_name,
            **options,
        )

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if idist.get_rank() == 0:
            super().attach(engine)
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def start(self, engine: Engine) -> None:
        """Open the MLflow run of this run, a new one where there is none, and record the configuration.

        Raises:
            LunaError: when the store cannot be used.
        """
        self._or_fail(self._start, engine)
        logger.info("MLflow: run '%s' of experiment '%s' in %s", self.run_name, self.experiment_name, self.store)

    def _start(self, engine: Engine) -> None:
        names = self.run_state.names
        if self.client.get_experiment_by_name(self.experiment_name) is None:
            self.client.create_experiment(self.experiment_name, artifact_location=self.files)
        self._set_experiment()
        if "mlflow_run" not in names:  # else it is that of the run which is resumed, or goes on
            self.run_name = self.run_name or f"{names['time']} {names['comment']}"
            created = self.client.create_run(self.experiment.experiment_id, run_name=self.run_name)
            names["mlflow_run"] = created.info.run_id
        self.client.update_run(names["mlflow_run"], status="RUNNING")
        self.cur_run = self.client.get_run(names["mlflow_run"])
        self.run_name = self.cur_run.info.run_name
        super().start(engine)
        params = dict(self.params)
        self._delete_exist_param_in_dict(params)
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            self._log_params(dict(list(params.items())[first : first + _PARAMS_AT_ONCE]))

    def epoch_completed(self, engine: Engine) -> None:
        """Record the metrics of the epoch."""
        values = {
            f"{split}/{name}": float(value)
            for split, source in engines_of_epoch(engine, self.validator).items()
            for name, value in source.state.metrics.items()
            if isinstance(value, Real) and math.isfinite(value)
        }
        self._or_warn(self._log_metrics, values, step=engine.state.epoch)

    def complete(self) -> None:
        """Record the files."""
        self._or_warn(super().complete)

    def close(self) -> None:
        """End the MLflow run."""
        self._or_warn(super().close)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self.run_finish_status = "FAILED"
        self.complete()
        self.close()
        raise error  # ignite drops an exception that a handler listens to

    # MLflow raises exceptions of its own, those of its database and those of its HTTP client.
    def _or_fail(self, act: Callable, *args: Any, **kwargs: Any) -> None:
        try:
            act(*args, **kwargs)
        except Exception as error:
            raise LunaError(f"tracking_uri {self.store}: cannot be used by MLflow ({_reason(error)})") from error

    def _or_warn(self, record: Callable, *args: Any, **kwargs: Any) -> None:
        try:
            record(*args, **kwargs)
        except Exception as error:
            logger.warning("MLflow: not recorded in %s (%s)", self.store, _reason(error))


def _be_quiet() -> None:
    """Keep MLflow from sending usage statistics, and its database from logging its migrations."""
    from mlflow.telemetry import set_telemetry_client

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    set_telemetry_client()  # it was made when MLflow was imported; now there is none
    for name in ("alembic", "mlflow.store"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
