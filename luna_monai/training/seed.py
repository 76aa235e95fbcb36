"""Random numbers that depend on the epoch and the process alone."""

from __future__ import annotations

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from ignite.utils import manual_seed


class SeedEachEpoch:
    """Seeds the generators of Python, NumPy and torch at the start of each epoch, by seed, epoch and process.

    A checkpoint holds the states of one process. With this handler no other states are needed: the processes draw
    different numbers for their augmentations, and a run that is resumed draws those that it would have drawn, if the
    number of processes is the same.

    Args:
        seed: the seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        sequence = np.random.SeedSequence([self.seed, engine.state.epoch, idist.get_rank()])
        manual_seed(int(sequence.generate_state(1)[0]))
