"""``--distributed``: a command in several processes of this machine, started and watched by torchrun.

``python -m luna_monai.torchrun COMMAND …`` is one of these processes; torchrun runs it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, find_luna_error
from luna_monai.share import bundle_dir

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

#: ``--distributed`` without a number.
_ALL_GPUS = -1


def add_distributed_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare ``--distributed``.

    Args:
        parser: of a command.
        what: what the processes do together.
    """
    parser.add_argument(
        "--distributed",
        nargs="?",
        type=int,
        const=_ALL_GPUS,
        metavar="N",
        help=f"{what} N processes of this machine, each with its own GPU or a part of the cores; N defaults to the "
        "number of GPUs. For several machines use 'torchrun ... -m luna_monai' instead",
    )


def is_launched() -> bool:
    """Tell whether torchrun has started this process, by ``--distributed`` or by hand."""
    return "TORCHELASTIC_RUN_ID" in os.environ  # as torch.distributed.is_torchelastic_launched, which takes a second


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def distributed_overlay(work: str = "train") -> list[str]:
    """List the overlay that lets the processes of torchrun work together; nothing without torchrun.

    Args:
        work: ``train``, which is for evaluation too, or ``inference``.
    """
    return [str(bundle_dir() / "configs" / f"multi_gpu_{work}.yaml")] if is_launched() else []


def launch(app: App, processes: int) -> None:
    """Run a command in several processes of this machine, and wait for all of them.

    The first one's output is shown. When one fails, torchrun ends the others.

    Args:
        app: the command; its arguments are passed on.
        processes: how many; negative for one for each GPU.

    Raises:
        LunaError: when a process has ended for a reason that a user can act on, or was killed.
        RuntimeError: when one has failed otherwise; the message holds its traceback.
        KeyboardInterrupt: when this process was told to stop.
    """
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gpus = torch.cuda.device_count()
    if processes < 0 and gpus == 0:
        raise LunaError("--distributed: there is no GPU here to start a process for; give the number of processes")
    processes = gpus if processes < 0 else processes
    if processes < 1:
        raise LunaError(f"--distributed {processes}: at least 1 process")
    if gpus and processes > gpus:
        raise LunaError(
            f"--distributed {processes}: this machine has {gpus} GPUs, and each process needs one of its own"
        )
    if processes > 2 * cores():
        raise LunaError(f"--distributed {processes}: too many for the {cores()} cores of this machine")
    threads = max(cores() // processes, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with _signal_handlers_kept(), _logging_disabled(), tempfile.TemporaryDirectory(prefix="luna-monai-") as logs:
        options = ["--standalone", "--nproc-per-node", str(processes), "--local-ranks-filter", "0", "--log-dir", logs]
        module = ["--module", "luna_monai.torchrun", app.name]
        try:
            torchrun.run(torchrun.parse_args([*options, *module, *app.sys_argv]))
        except ChildFailedError as error:
            raise _reason(error.failures, processes) from None
        except SignalException:
            raise KeyboardInterrupt from None


def _reason(failures: dict[int, ProcessFailure], processes: int) -> Exception:
    """Find out why processes have failed; the failure of one makes others fail, which is not worth a word."""
    # What main() has recorded; a str where a process could record nothing.
    recorded: dict[int, Any] = {rank: failure.message for rank, failure in failures.items()}
    messages = {rank: message for rank, message in recorded.items() if isinstance(message, dict)}
    for rank, failure in failures.items():
        # SIGTERM is what torchrun itself ends the others by.
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            return LunaError(
                f"process {rank + 1} of {processes} was ended by {failure.signal_name()}, and the others were stopped; "
                "what was written before is whole. Was the memory used up?"
            )
    for message in messages.values():
        kind, _, text = message["message"].partition(": ")
        if kind == LunaError.__name__:
            return LunaError(text)
    # What others say when it has left them comes later. By the files, for torch's own times are whole seconds.
    rank = min(
        messages, key=lambda rank: Path(failures[rank].error_file).stat().st_mtime_ns, default=next(iter(failures))
    )
    trace = messages[rank]["extraInfo"]["py_callstack"] if messages else f"exit code {failures[rank].exitcode}"
    return RuntimeError(f"process {rank + 1} of {processes} failed, and the others were stopped\n{trace}")


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # Windows has the first two
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    kept = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _logging_disabled() -> Iterator[None]:
    # torchrun's report of a failure is a table of many lines; we say the same in one.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def main(sys_argv: Sequence[str] | None = None) -> int:
    """Run a command as one of the processes that :func:`launch` has started.

    Its error is left to that process to show, in the file that torchrun has named for it. When that process is killed,
    which leaves it no time to end the others, they end by themselves.

    Args:
        sys_argv: the command and its arguments; the process's own when None.

    Returns:
        The exit status.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from luna_monai.apps.cli import COMMANDS

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    command, *arguments = sys.argv[1:] if sys_argv is None else sys_argv
    module_name, class_name, _ = COMMANDS[command]
    app: App = getattr(importlib.import_module(f"luna_monai.apps.{module_name}"), class_name)(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        return app.main()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        found = find_luna_error(error)
        get_error_handler().record_exception(error if found is None else found)
        return 1


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
