"""``luna-monai precache``: crop all candidates of a dataset into the cache (the book's ``LunaPrepCacheApp``)."""

from __future__ import annotations

import argparse
import logging
import re

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.torchrun import is_launched
from luna_monai.workflow import (
    add_config_arguments,
    config_files,
    given_options,
    given_settings,
    load_workflow,
    parse_numbers,
    run_workflow,
)

logger = logging.getLogger(__name__)


class LunaPrecacheApp(App):
    """Fill the cache that training reads, so that the first epoch is as fast as the others.

    Args:
        sys_argv: arguments; see ``luna-monai precache --help``.
    """

    name = "precache"
    description = (
        "Crop all candidates of a dataset into the cache. The command can be interrupted and run again at any time. "
        "Machines that share the folder can divide the work, by --shard or by 'torchrun ... -m luna_monai precache'."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_config_arguments(parser, "precache_workers")
        parser.add_argument("--subsets", metavar="N,N", help="LUNA16 subsets to crop, as 0,1,2 or 0-4 (default: all)")
        parser.add_argument("--shard", metavar="K/N", help="crop the K-th of N parts, K from 1 to N")
        parser.add_argument("--dry-run", action="store_true", help="only show the plan")

    def main(self) -> int:
        """Fill the cache, or show the plan.

        Raises:
            LunaError: when the data, the configuration or an argument is bad, or the disk is too small.
        """
        arguments = self.cli_args
        shard = _parse_shard(arguments.shard) if arguments.shard is not None else None
        workers = arguments.precache_workers
        if is_launched():
            if shard is not None:
                raise LunaError("--shard and torchrun both divide the work; use one of them")
            from luna_monai.data import available_cores
            from luna_monai.training import launched, share_of_cores

            process = launched()
            shard = [process.rank, process.world_size]
            logger.info("torchrun: this process does shard %d/%d", shard[0] + 1, shard[1])
            workers = share_of_cores(available_cores()) if workers is None else workers
        subsets = None if arguments.subsets is None else parse_numbers("--subsets", arguments.subsets)
        options = {"precache_workers": workers, "precacher#subsets": subsets, "precacher#shard": shard}
        given = given_settings(arguments) | given_options(options)
        run_id = "precache_plan" if arguments.dry_run else "precache"
        run_workflow(load_workflow(run_id, config_files(arguments.config), given))
        return 0


def _parse_shard(text: str) -> list[int]:
    """Turn ``3/8`` into ``[2, 8]``."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise LunaError(f"--shard {text}: expected K/N with K from 1 to N, for example 3/8")
    return [int(found[1]) - 1, int(found[2])]
