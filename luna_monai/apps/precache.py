"""``luna-monai precache``: crop all candidates of a dataset into the cache (the book's ``LunaPrepCacheApp``)."""

from __future__ import annotations

import argparse

from luna_monai.bundle_app import BundleApp
from luna_monai.workflow import given_options, numbers, run_workflow


class LunaPrecacheApp(BundleApp):
    """Crop all candidates of a dataset into the cache, so that the first epoch is as fast as the others.

    The command can be interrupted and run again at any time. Machines that share the folder can divide the work by
    --shard.
    """

    name = "precache"
    settings = (*BundleApp.settings, "precache_workers")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        super().add_arguments(parser)
        parser.add_argument(
            "--subsets", type=numbers, metavar="N,N", help="LUNA16 subsets to crop, as 0,1,2 or 0-4 (default: all)"
        )
        parser.add_argument("--shard", type=shard, metavar="K/N", help="crop the K-th of N parts, K from 1 to N")
        parser.add_argument("--dry-run", action="store_true", help="only show the plan")

    def run(self) -> None:
        """Fill the cache, or show the plan."""
        arguments = self.cli_args
        options = {"precacher#subsets": arguments.subsets, "precacher#shard": arguments.shard}
        run_id = "precache_plan" if arguments.dry_run else "precache"
        run_workflow(self.load(run_id, self.given() | given_options(options)))


def shard(text: str) -> list[int]:
    """Turn ``3/8`` into ``[2, 8]``; the type of an argument."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return [part - 1, parts]
