"""``luna-monai precache``: cut all candidates of a dataset into the cache (the book's ``LunaPrepCacheApp``)."""

from __future__ import annotations

import argparse
import sys

from luna_monai.apps.base import App, run_app
from luna_monai.apps.workflow import add_config_arguments, given_options, run_bundle


class LunaPrecacheApp(App):
    """Fill the cache that training reads, so that the first epoch is as fast as the others.

    Args:
        sys_argv: arguments; see ``luna-monai precache --help``.
    """

    name = "precache"
    description = "Cut all candidates of a dataset into the cache. May be interrupted and run again at any time."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_config_arguments(parser)

    def main(self) -> int:
        """Fill the cache.

        Raises:
            LunaError: when the data or the configuration is bad, or the disk is too small.
        """
        options = {
            "dataset_dir": self.cli_args.dataset_dir,
            "cache_dir": self.cli_args.cache_dir,
            "precache_workers": self.cli_args.num_workers,
        }
        run_bundle("precache", self.cli_args.config, given_options(options))
        return 0


if __name__ == "__main__":
    sys.exit(run_app(LunaPrecacheApp))
