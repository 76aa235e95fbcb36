"""Ending a run that gets no better."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events

from luna_monai.errors import LunaError
from luna_monai.training.best_epoch import BestEpoch

logger = logging.getLogger(__name__)


class EarlyStopping:
    """Ends training when the best epoch lies too many epochs back.

    ignite's handler of this name (and MONAI's around it) compares metrics by a rule of its own and takes a NaN for an
    improvement; here :class:`~luna_monai.training.best_epoch.BestEpoch` has the say, whose state is in the checkpoint,
    so a resumed run stops where the uninterrupted one would.

    List it after :class:`~luna_monai.training.run_folder.RunFolder`, which restores that state.

    Args:
        best_epoch: knows the best epoch.
        patience: epochs after the best one, counted from the start while none is; None never stops.

    Raises:
        LunaError: when ``patience`` is below 1.
    """

    def __init__(self, best_epoch: BestEpoch, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise LunaError(f"early stopping: patience must be at least 1 epoch, found {patience}; null never stops")
        self.best_epoch = best_epoch
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self._check, self.patience)

    def _check(self, engine: Engine, patience: int) -> None:
        epoch, best = engine.state.epoch, self.best_epoch.epoch
        if epoch - (best or 0) >= patience:
            logger.info(
                "E%d: training stops early, the best epoch %s",
                epoch,
                "has not come" if best is None else f"was {best}, {epoch - best} epochs ago",
            )
            engine.terminate()
