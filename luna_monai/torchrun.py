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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.cli import App, command_class, run_app
from luna_monai.errors import LunaError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


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
    # What run_app has recorded is a dict; by the times of the files, because torch's own are whole seconds.
    recorded: list[Any] = [(failure.message, rank) for rank, failure in failures.items()]
    recorded = [each for each in recorded if isinstance(each[0], dict)]
    recorded.sort(key=lambda each: Path(failures[each[1]].error_file).stat().st_mtime_ns)
    for message, _ in recorded:
        kind, _, text = message["message"].partition(": ")
        if kind == LunaError.__name__:
            return LunaError(text)
    message, rank = (*recorded, ("no message", next(iter(failures))))[0]
    trace = message["extraInfo"]["py_callstack"] if isinstance(message, dict) else message
    return RuntimeError(f"process {rank + 1} of {processes} failed, and the others were stopped\n{trace}")


def main() -> int:
    """Run a command as one of the processes that :func:`launch` has started.

    Its error is left to that process to show, in the file that torchrun has named for it. When that process is killed,
    which leaves it no time to end the others, they end by themselves.

    Returns:
        The exit status.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    command, *arguments = sys.argv[1:]
    return run_app(command_class(command), arguments, report=get_error_handler().record_exception)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
