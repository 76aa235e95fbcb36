"""Cleaning up when a run ends in an exception."""

from __future__ import annotations

from collections.abc import Callable

from ignite.engine import Engine, Events


def call_on_exception(engine: Engine, callback: Callable[[], None]) -> None:
    """Let an engine call something when it ends in an exception, and raise that exception all the same.

    ignite swallows an exception as soon as one handler listens to it, and the first handler that raises it again keeps
    the others from being called: so all callbacks come first, and one handler after them raises.

    Args:
        engine: the engine.
        callback: what to call, without arguments.
    """
    if engine.has_event_handler(_raise_again, Events.EXCEPTION_RAISED):
        engine.remove_event_handler(_raise_again, Events.EXCEPTION_RAISED)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: callback())
    engine.add_event_handler(Events.EXCEPTION_RAISED, _raise_again)


def _raise_again(engine: Engine, error: BaseException) -> None:
    raise error
