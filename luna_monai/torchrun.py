"""``--distributed``: run a command in several processes of this machine, which torchrun starts and monitors.

torchrun starts each process as ``python -m luna_monai.torchrun COMMAND …``.
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


# For glibc's malloc: freed memory is kept and used again, in large pages. Otherwise, a tenth of the time of training on
# a CPU is spent on returning it to the system and getting it back. Prediction would need a fifth more memory.
_KEEP_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=4294967296:glibc.malloc.mmap_threshold=4294967296"


def is_launched() -> bool:
    """Return whether torchrun started this process, because of ``--distributed`` or because the user ran torchrun."""
    # The same as torch.distributed.is_torchelastic_launched, without the import, which takes a second.
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(app: App) -> bool:
    """Run a command in several processes of this machine if ``--distributed`` is given, and wait for all of them.

    Only the output of the first process is shown. If one process fails, torchrun ends the others.

    Args:
        app: the command; its arguments are passed on to the processes.

    Returns:
        Whether the command ran in other processes. If not, the caller runs it.

    Raises:
        LunaError: when a process was killed, or failed with an error that a user can act on.
        RuntimeError: when a process failed with another error; the message contains its traceback.
        KeyboardInterrupt: when this process is interrupted.
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
        machine = f"this machine: {gpus} GPUs, {cores} cores"
        raise LunaError(f"--distributed {processes}: use from 1 to {limit} processes ({machine})")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // processes, 1)))
    os.environ.setdefault("GLIBC_TUNABLES", _KEEP_MEMORY if app.name == "train" else "")
    # torchrun logs a failure as a table of many lines; the exceptions below say the same in one line.
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
    """Find the cause among the failures of processes; the failure of one process causes others to fail."""
    for rank, failure in failures.items():
        # torchrun itself ends the other processes with SIGTERM.
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return LunaError(
                f"process {rank + 1} of {processes} was ended by {failure.signal_name()}, and the others were stopped; "
                "files that were written are complete. If memory ran out, use fewer processes"
            )
    messages: list[Any] = [failure.message for failure in failures.values()]
    recorded = [message for message in messages if isinstance(message, dict)]  # by run_app
    for kind, _, text in (message["message"].partition(": ") for message in recorded):
        if kind == LunaError.__name__:
            return LunaError(text)
    traces = "\n".join(message["extraInfo"]["py_callstack"] for message in recorded)
    return RuntimeError(f"{len(failures)} of {processes} processes failed, and the others were stopped\n{traces}")


def main() -> int:
    """Run a command as one of the processes that :func:`launch` starts.

    An error is written to the file that torchrun provides for it, and the launching process shows it. This process
    ends when the launching process has ended, even if that was killed.

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
