"""``luna-monai COMMAND``: the base class of all commands. Only commands that need PyTorch import it."""

import argparse
import importlib
import io
import logging
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NoReturn

from luna_monai.errors import LunaError, find_luna_error, unwrapped_luna_errors

#: Command name -> (module in luna_monai.apps, class, one line for ``--help``).
COMMANDS = {
    "synth": ("synth", "LunaSynthApp", "write a synthetic LUNA16 dataset"),
    "doctor": ("doctor", "LunaDoctorApp", "check the files and tables of a dataset folder"),
    "precache": ("cache", "LunaPrecacheApp", "crop all candidates of a dataset into the cache"),
    "cache": ("cache", "LunaCacheApp", "list, check and remove files of the cache"),
    "train": ("training", "LunaTrainingApp", "train and validate LunaModel"),
    "evaluate": ("evaluate", "LunaEvaluateApp", "evaluate weights: metrics, calibration, thresholds"),
    "predict": ("predict", "LunaPredictApp", "find nodules in chest CTs, with probabilities and sizes"),
    "crossval": ("crossval", "LunaCrossvalApp", "train and evaluate a model for each fold"),
    "froc": ("froc", "LunaFrocApp", "evaluate a submission as LUNA16 does: FROC, CPM"),
    "export": ("export", "LunaExportApp", "write the network as TorchScript or ONNX"),
    "report": ("report", "LunaReportApp", "write a report of a training run as one HTML file"),
}


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises ``LunaError`` for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        raise LunaError(f"{message}; see '{self.prog} --help'")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option, except None, False and empty lists."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:  # 0 is shown
            return action.help
        return super()._get_help_string(action)


class App(ABC):
    """A command of ``luna-monai``. Python code can call it as ``SomeApp(argv).main()``, as in the book.

    The docstring of a command is the description in its ``--help``.

    Args:
        sys_argv: arguments of the command; None for the arguments of the process. The book also passes numbers, so
            all values are converted to strings.

    Raises:
        LunaError: if an argument is unknown or has a wrong value.
    """

    name = ""

    def __init__(self, sys_argv: Sequence[object] | None = None) -> None:
        parser = _Parser(prog=f"luna-monai {self.name}", description=self.__doc__, formatter_class=_HelpFormatter)
        self.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self.sys_argv = sys.argv[1:] if sys_argv is None else [str(value) for value in sys_argv]
        self.cli_args = parser.parse_intermixed_args(self.sys_argv)  # overrides may stand between options

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments on ``parser``."""

    @abstractmethod
    def run(self) -> int | None:
        """Run the command and return its exit status, or None for 0; see :meth:`main`."""

    def main(self) -> int:
        """Run the command.

        Returns:
            The exit status: 0, or 1 if the command found errors in the data that it checked.

        Raises:
            LunaError: if the input is wrong.
        """
        with unwrapped_luna_errors():
            return self.run() or 0


def run_app(
    app_class: type[App],
    sys_argv: Sequence[object] | None = None,
    report: Callable[[BaseException], object] | None = None,
) -> int:
    """Run a command like a process: log to standard output, and write one line to standard error for wrong input.

    Args:
        app_class: the command.
        sys_argv: arguments of the command; None for the arguments of the process.
        report: called with an error, which is then not written to standard error.

    Returns:
        The exit status: that of the command, 1 for wrong input, 130 if interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a console or log may be unable to show a file name
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        return app_class(sys_argv).main()
    except KeyboardInterrupt:
        if report is None:
            sys.stderr.write(f"luna-monai {app_class.name}: interrupted\n")
        return 130
    except Exception as error:
        found = find_luna_error(error)
        if report is not None:
            report(found or error)
        elif found is None:
            raise
        else:
            if "--debug" in (sys.argv if sys_argv is None else sys_argv):
                traceback.print_exception(error)
            sys.stderr.write(f"luna-monai {app_class.name}: error: {found}\n")
        return 1


def command_class(command: str) -> type[App]:
    """Import the class of a command."""
    module_name, class_name, _ = COMMANDS[command]
    return getattr(importlib.import_module(f"luna_monai.apps.{module_name}"), class_name)  # type: ignore[no-any-return]


def main(sys_argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        sys_argv: name and arguments of the command; None for the arguments of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="luna-monai",
        description="Lung-nodule classification on LUNA16 with MONAI. Not for clinical use.",
        epilog="commands:\n" + "\n".join(f"  {name:10} {entry[2]}" for name, entry in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"luna-monai {version('luna-monai')}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below; each has its own --help")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    arguments = sys.argv[1:] if sys_argv is None else sys_argv
    if not arguments:
        parser.print_help()
        return 0
    parsed = parser.parse_args(arguments)
    logging.raiseExceptions = False  # 'luna-monai doctor | head' would print a traceback for each line
    return run_app(command_class(parsed.command), parsed.arguments)
