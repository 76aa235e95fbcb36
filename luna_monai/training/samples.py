"""How many samples a model has been trained on: the x-axis of the book's plots."""

from __future__ import annotations

from collections.abc import Mapping

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.utils import CommonKeys


class TrainingSamples:
    """Counts the training samples of a run, over all its epochs and processes.

    The handlers that need the count attach it to the trainer before themselves, so it is in no list of handlers.

    Attributes:
        count: samples seen up to the end of the last epoch; a sample drawn twice counts twice.
    """

    def __init__(self) -> None:
        self.count = 0
        self._in_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, once."""
        if engine.has_event_handler(self._add, Events.ITERATION_COMPLETED):
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def _start(self) -> None:
        self._in_epoch = 0

    def _add(self, engine: Engine) -> None:
        self._in_epoch += len(engine.state.output[CommonKeys.LABEL])

    def _complete(self) -> None:
        self.count += int(idist.all_reduce(self._in_epoch))

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.count = int(state["count"])
