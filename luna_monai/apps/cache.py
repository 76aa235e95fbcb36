"""``luna-monai precache`` fills the cache, and ``luna-monai cache`` lists, checks and removes its files."""

import argparse
import logging
from pathlib import Path

from luna_monai.apps.bundle_app import BundleApp
from luna_monai.errors import LunaError
from luna_monai.files import readable_size
from luna_monai.literals import literal
from luna_monai.progress import enumerate_with_estimate
from luna_monai.share import configs_dir
from luna_monai.workflow import config_files, given_options, load_workflow, numbers, run_workflow

logger = logging.getLogger(__name__)


class LunaPrecacheApp(BundleApp):
    """Crop all candidates of a dataset into the cache, so that the first epoch is as fast as the others.

    The command can be interrupted at any time, and continues when it is run again. Machines that share the cache folder
    can divide the work with --shard.
    """

    name = "precache"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        super().add_arguments(parser)
        parser.add_argument(
            "--subsets", type=numbers, metavar="N,N", help="LUNA16 subsets, for example 0,1,2 or 0-4 (default: all)"
        )
        parser.add_argument("--shard", type=shard, metavar="K/N", help="crop part K of N, K from 1 to N (default: all)")
        parser.add_argument("--dry-run", action="store_true", help="show the plan, and crop nothing")

    def run(self) -> None:
        """Fill the cache, or show the plan."""
        arguments = self.cli_args
        options = {"precacher#subsets": arguments.subsets, "precacher#shard": arguments.shard}
        run_id = "precache_plan" if arguments.dry_run else "precache"
        run_workflow(self.load(run_id, self.given() | given_options(options)))


class LunaCacheApp(BundleApp):
    """List, check and remove files of the cache.

    status: list the files of this dataset that the configuration does not use. verify: compare the checksums of all
    files; the exit status is 1 if a file is damaged. gc: list the files of this dataset that neither this configuration
    nor any configuration in configs/ uses. Files are removed only with --yes.
    """

    name = "cache"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("action", choices=("status", "verify", "gc"), help="what to do")
        super().add_arguments(parser)
        parser.add_argument("--yes", action="store_true", help="remove the files that gc or verify lists")

    def run(self) -> int:
        """List or check the files of the cache, and remove them if ``--yes`` is given."""
        from luna_monai.data.cache_files import cached_files, find_damage, take_inventory

        action, given = self.cli_args.action, self.given()
        parser = self.load("precache", given).parser
        folder, dataset_dir = map(parser.get_parsed_content, ("cache_dir", "dataset_dir"))
        if folder is None or not Path(folder).is_dir():
            raise LunaError(f"cache_dir {folder}: no such folder; give --cache-dir, or run 'luna-monai precache'")
        if action == "verify":
            checked = enumerate_with_estimate(cached_files(Path(folder)), "verify")
            found = {path: reason for _, path in checked if (reason := find_damage(path))}
        else:
            parsers = [parser]
            if action == "gc":
                given = {"cache_dir": literal(str(folder)), "dataset_dir": literal(str(dataset_dir))}
                for overlays in ([], *([str(path)] for path in sorted(configs_dir().glob("*.yaml")))):
                    parsers.append(load_workflow("precache", config_files(overlays), given).parser)
                    # All configurations share the object that lists the folder and reads headers.
                    parsers[-1]["scans"] = {"_target_": lambda: parser.get_parsed_content("scans")}
            caches = [one.get_parsed_content("cache") for one in parsers]
            needed, found = take_inventory(caches)
            size = readable_size(sum(path.stat().st_size for path in needed))
            logger.info("%s: %d files in use, %s", folder, len(needed), size)
            missing, total = len(caches[0].missing()), len(caches[0].data)
            logger.info("missing: %d of %d series; 'luna-monai precache' adds them", missing, total)
        for path, reason in found.items():
            logger.info("%s: %s", path.name, reason)
        size = readable_size(sum(path.stat().st_size for path in found))
        kinds = {"status": "not used by this configuration", "gc": "unused", "verify": "damaged"}
        hint = "'luna-monai cache gc' lists unused files" if action == "status" else "--yes removes them"
        logger.info("%s: %d files, %s%s", kinds[action], len(found), size, f"; {hint}" if found else "")
        if action != "status" and self.cli_args.yes:
            for path in found:
                path.unlink(missing_ok=True)
            logger.info("removed: %d files", len(found))
        return int(action == "verify" and bool(found) and not self.cli_args.yes)


def shard(text: str) -> list[int]:
    """Parse the argument ``3/8`` to ``[2, 8]``."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return [part - 1, parts]
