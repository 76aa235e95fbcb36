"""Recording a run in MLflow."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine
from monai.engines import Evaluator
from monai.handlers import MLFlowHandler
from monai.utils import path_to_uri

from luna_monai.data.cache import SeriesCache
from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.training.exceptions import call_on_exception
from luna_monai.training.run_folder import CONFIG, METRICS, MODEL, engines_of_epoch
from luna_monai.training.tensorboard import TensorBoardRun

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_PARAMS_AT_ONCE = 100  # MLflow takes no more
_LONGEST_PARAM = 6000  # characters, as above


class MLflowTracking(MLFlowHandler):
    """Records a training run in MLflow: configuration, fingerprint of the cache, metrics of each epoch, weights.

    MONAI's ``MLFlowHandler`` with what it leaves out: metrics of training and validation under names of their own
    (``trn/…``, ``val/…``), one MLflow run for a run that is resumed, and an end of the MLflow run when training fails.
    MLflow's usage statistics are switched off.

    List it after :class:`RunFolder`, whose files it records. Only the first process of several does so. What can't be
    recorded once training goes is logged as a warning; the run's folder has it all.

    Args:
        tracking: ``"mlflow"``.
        tracking_uri: MLflow's store: ``sqlite:///PATH`` or a server. The environment variable ``MLFLOW_TRACKING_URI``,
            where set, comes before it. Files of a store in SQLite lie in ``mlruns`` beside it.
        experiment_name: MLflow's experiment; made when missing.
        tensorboard: knows when the run was started and its comment, which together are its name.
        output_dir: folder of the run.
        config: the configuration of the run.
        cache: the cache that the run reads.
        validator: the engine that validates; None when nothing does.
        resume: go on in the MLflow run of the run that is resumed.

    Raises:
        LunaError: when ``tracking`` is something else, MLflow is not installed, or the store can't be used.
    """

    def __init__(
        self,
        tracking: str,
        tracking_uri: str,
        experiment_name: str,
        tensorboard: TensorBoardRun,
        output_dir: str | Path,
        config: Mapping[str, Any],
        cache: SeriesCache,
        validator: Evaluator | None = None,
        resume: bool = False,
    ) -> None:
        if tracking != "mlflow":
            raise LunaError(f"tracking: {tracking!r} is not known; 'mlflow', or null for none")
        self.tracking_uri = tracking_uri
        self.tensorboard = tensorboard
        self.config = config
        self.cache = cache
        self.validator = validator
        self.resume = resume
        if idist.get_rank() > 0:
            return
        import_extra("mlflow", "mlflow")
        _be_quiet()
        with self._one_line():
            files = None  # where the server says
            if self._store.startswith("sqlite:///"):
                folder = Path(unquote(self._store.removeprefix("sqlite:///"))).absolute().parent
                folder.mkdir(parents=True, exist_ok=True)
                files = path_to_uri(folder / "mlruns")
            super().__init__(
                tracking_uri=tracking_uri,
                iteration_log=False,
                experiment_name=experiment_name,
                artifacts=[Path(output_dir) / name for name in (CONFIG, METRICS, MODEL)],
                close_on_complete=True,
                artifact_location=files,  # MONAI's own choice goes wrong for a folder with a space in its name
            )

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if idist.get_rank() > 0:
            return
        super().attach(engine)
        call_on_exception(engine, self._fail)

    def start(self, engine: Engine) -> None:
        """Open the MLflow run, or that of the run which is resumed, and record the configuration.

        Raises:
            LunaError: when the store can't be used.
        """
        with self._one_line():
            self.run_name = f"{self.tensorboard.time_str} {self.tensorboard.comment}"
            self._set_experiment()
            self.cur_run = self._find_run() if self.resume else None
            if self.cur_run is None:
                self.cur_run = self.client.create_run(self.experiment.experiment_id, run_name=self.run_name)
            else:
                self.client.update_run(self.cur_run.info.run_id, status="RUNNING")
            super().start(engine)
            known = self.client.get_run(self.cur_run.info.run_id).data.params
            params = {"cache_fingerprint": self.cache.fingerprint, **_plain_values(self.config)}
            new = [(name, value) for name, value in params.items() if name not in known]
            for first in range(0, len(new), _PARAMS_AT_ONCE):
                self._log_params(dict(new[first : first + _PARAMS_AT_ONCE]))
        logger.info("MLflow: run '%s' of experiment '%s' in %s", self.run_name, self.experiment_name, self._store)

    def _find_run(self) -> Run | None:
        # The newest of that name comes first. Runs that were started in the same second share theirs.
        found = self.client.search_runs([self.experiment.experiment_id], f"run_name = '{_quoted(self.run_name)}'")
        here = [run for run in found if run.data.params.get("output_dir") == str(self.config["output_dir"])]
        return next(iter(here or found), None)

    def epoch_completed(self, engine: Engine) -> None:
        """Record the metrics of the epoch."""
        values = {
            f"{split}/{name}": float(value)
            for split, source in engines_of_epoch(engine, self.validator).items()
            for name, value in source.state.metrics.items()
            if isinstance(value, Real) and math.isfinite(value)
        }
        with self._or_warning():
            self._log_metrics(values, step=engine.state.epoch)

    def complete(self) -> None:
        """Record the files."""
        with self._or_warning():
            super().complete()

    def close(self) -> None:
        """End the MLflow run."""
        with self._or_warning():
            super().close()

    def _fail(self) -> None:
        self.run_finish_status = "FAILED"
        self.complete()
        self.close()

    @property
    def _store(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or self.tracking_uri

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except LunaError:
            raise
        except Exception as error:  # MLflow raises its own, those of its database and those of its HTTP client
            raise LunaError(f"tracking_uri {self._store}: can't be used by MLflow ({_reason(error)})") from error

    @contextmanager
    def _or_warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above
            logger.warning("MLflow: not recorded in %s (%s)", self._store, _reason(error))


def _be_quiet() -> None:
    """Keep MLflow from sending usage statistics, and its database from telling how it is made."""
    from mlflow.telemetry import set_telemetry_client

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    set_telemetry_client()  # it was made when MLflow was imported; now there is none
    for name in ("alembic", "mlflow.store"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _plain_values(config: Mapping[str, Any]) -> dict[str, str]:
    """List the plain values of a configuration under names that MLflow takes, ``train/augmentation/noise``."""
    values = pd.json_normalize(dict(config), sep="/").to_dict("records")[0]
    return {str(name): str(value)[:_LONGEST_PARAM] for name, value in values.items() if not isinstance(value, list)}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
