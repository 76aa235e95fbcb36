"""``--distributed``: a command in several processes of this machine, started and watched by torchrun.

``python -m luna_monai.torchrun COMMAND …`` is one of these processes; torchrun runs it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from luna_monai.errors import LunaError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from luna_monai.apps.cli import App


def is_launched() -> bool:
    """Tell whether torchrun has started this process, by ``--distributed`` or by hand."""
    return "TORCHELASTIC_RUN_ID" in os.environ  # as torch.distributed.is_torchelastic_launched, which takes a second


def launch(app: App) -> bool:
    """Run a command in several processes of this machine where ``--distributed`` asks for it, and wait for all.

    The first one's output is shown. When one fails, torchrun ends the others.

    Args:
        app: the command; its arguments are passed on.

    Returns:
        Whether other processes have done the work.

    Raises:
        LunaError: when a process has ended for a reason that a user can act on, or was killed.
        RuntimeError: when one has failed otherwise; the message holds its traceback.
        KeyboardInterrupt: when this process was told to stop.
    """
    if app.cli_args.distributed is None or is_launched():
        return False
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from luna_monai.data import available_cores

    gpus, cores = torch.cuda.device_count(), available_cores()
    processes, limit = app.cli_args.distributed or gpus, gpus or 2 * cores
    if not 1 <= processes <= limit:
        raise LunaError(
            f"--distributed {processes}: give from 1 to {limit} processes (this machine: {gpus} GPUs, {cores} cores)"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // processes, 1)))
    # torchrun's report of a failure is a table of many lines; we say the same in one.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory(prefix="luna-monai-") as logs:
        options = ["--standalone", "--nproc-per-node", str(processes), "--local-ranks-filter", "0", "--log-dir", logs]
        module = ["--module", "luna_monai.torchrun", app.name]
        try:
            torchrun.run(torchrun.parse_args([*options, *module, *app.sys_argv]))
        except ChildFailedError as error:
            raise _reason(error.failures, processes) from None
        except SignalException:
            raise KeyboardInterrupt from None
    return True


def _reason(failures: dict[int, ProcessFailure], processes: int) -> Exception:
    """Find the cause among the failures of processes; the failure of one makes others fail."""
    for rank, failure in failures.items():
        # SIGTERM is what torchrun itself ends the others by.
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return LunaError(
                f"process {rank + 1} of {processes} was ended by {failure.signal_name()}, and the others were stopped; "
                "what was written before is whole. Was the memory used up?"
            )
    messages: list[Any] = [failure.message for failure in failures.values()]
    recorded = [message for message in messages if isinstance(message, dict)]  # by run_app
    for kind, _, text in (message["message"].partition(": ") for message in recorded):
        if kind == LunaError.__name__:
            return LunaError(text)
    traces = "\n".join(message["extraInfo"]["py_callstack"] for message in recorded)
    return RuntimeError(f"{len(failures)} of {processes} processes failed, and the others were stopped\n{traces}")


def main() -> int:
    """Run a command as one of the processes that :func:`launch` has started.

    Its error is left to that process to show, in the file that torchrun has named for it. When that process is killed,
    which leaves it no time to end the others, they end by themselves.

    Returns:
        The exit status.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from luna_monai.apps.cli import command_class, run_app

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    command, *arguments = sys.argv[1:]
    return run_app(command_class(command), arguments, report=get_error_handler().record_exception)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
