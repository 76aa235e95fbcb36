"""``luna-monai COMMAND``: finds the command and runs it, without importing torch before it must."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

#: Command name -> (module in luna_monai.apps, class, one line for ``--help``).
COMMANDS = {
    "synth": ("synth", "LunaSynthApp", "write a synthetic LUNA16 dataset"),
    "doctor": ("doctor", "LunaDoctorApp", "report what is wrong with a dataset folder, and what to do"),
    "precache": ("precache", "LunaPrecacheApp", "cut all candidates of a dataset into the cache"),
    "cache": ("cache", "LunaCacheApp", "what the cache holds, whether it is whole, what can go"),
    "train": ("training", "LunaTrainingApp", "train and validate LunaModel"),
    "evaluate": ("evaluate", "LunaEvaluateApp", "evaluate weights: metrics, calibration, thresholds"),
    "predict": ("predict", "LunaPredictApp", "nodule probabilities for any chest CT"),
    "crossval": ("crossval", "LunaCrossvalApp", "train and evaluate a model for each fold"),
    "froc": ("froc", "LunaFrocApp", "evaluate a submission as LUNA16 does: FROC, CPM"),
    "export": ("export", "LunaExportApp", "write the network as TorchScript or ONNX"),
    "report": ("report", "LunaReportApp", "show a run's curves and mistakes in one HTML file"),
}


def main(sys_argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        sys_argv: command name and its arguments; the process's own when None.

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
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's arguments")
    arguments = sys.argv[1:] if sys_argv is None else sys_argv
    if not arguments:
        parser.print_help()
        return 0
    parsed = parser.parse_args(arguments)
    module_name, class_name, _ = COMMANDS[parsed.command]
    from luna_monai.apps.base import run_app

    app_class = getattr(importlib.import_module(f"luna_monai.apps.{module_name}"), class_name)
    return run_app(app_class, parsed.arguments)


if __name__ == "__main__":
    sys.exit(main())
