"""``luna-monai cache status | verify | gc``: list the files of the cache, check them, remove unused ones."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from luna_monai.bundle_app import BundleApp
from luna_monai.errors import LunaError
from luna_monai.files import readable_size
from luna_monai.literals import literal
from luna_monai.share import configs_dir
from luna_monai.workflow import config_files, load_workflow

logger = logging.getLogger(__name__)


class LunaCacheApp(BundleApp):
    """Inspect and clean the cache.

    status: list the files of this dataset that the configuration does not use. verify: compare the checksums of all
    files; the exit status is 1 if one is damaged. gc: list the files of this dataset that neither this configuration
    nor any in configs/ uses. Only --yes removes files.
    """

    name = "cache"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("action", choices=("status", "verify", "gc"), help="what to do")
        super().add_arguments(parser)
        parser.add_argument("--yes", action="store_true", help="remove what gc lists as unused, or verify as damaged")

    def run(self) -> int:
        """List or check the files of the cache, and remove some where ``--yes`` allows it."""
        action, given = self.cli_args.action, self.given()
        parser = self.load("precache", given).parser
        folder, dataset_dir = map(parser.get_parsed_content, ("cache_dir", "dataset_dir"))
        if folder is None or not Path(folder).is_dir():
            raise LunaError(
                f"cache_dir {folder}: no such folder; give --cache-dir, or fill it with 'luna-monai precache'"
            )
        if action == "verify":
            found = _damaged(Path(folder))
        else:
            parsers = [parser]
            if action == "gc":
                given |= {"cache_dir": literal(str(folder)), "dataset_dir": literal(str(dataset_dir))}
                for overlays in ([], *([str(path)] for path in sorted(configs_dir().glob("*.yaml")))):
                    parsers.append(load_workflow("precache", config_files(overlays), given).parser)
            found = _unused([one.get_parsed_content("cache") for one in parsers])
        for path, reason in found.items():
            logger.info("%s: %s", path.name, reason)
        size = readable_size(sum(path.stat().st_size for path in found))
        kind = "damaged" if action == "verify" else "unused"
        logger.info("%s: %d files, %s; only gc and verify with --yes remove them", kind, len(found), size)
        if action != "status" and self.cli_args.yes:
            for path in found:
                path.unlink(missing_ok=True)
            logger.info("removed: %d files", len(found))
        return int(action == "verify" and bool(found) and not self.cli_args.yes)


def _unused(caches: list[Any]) -> dict[Path, str]:
    from luna_monai.data.cache_files import take_inventory

    needed, unused = take_inventory(caches[0].cache_dir, [cache.names for cache in caches])
    size = readable_size(sum(path.stat().st_size for path in needed))
    logger.info("%s: %d files in use, %s", caches[0].cache_dir, len(needed), size)
    logger.info(
        "missing: %d of %d series; 'luna-monai precache' cuts them", len(caches[0].missing()), len(caches[0].data)
    )
    return unused


def _damaged(folder: Path) -> dict[Path, str]:
    from luna_monai.data.cache_files import cached_files, find_damage
    from luna_monai.training import enumerate_with_estimate

    reasons = {path: find_damage(path) for _, path in enumerate_with_estimate(cached_files(folder), "verify")}
    return {path: reason for path, reason in reasons.items() if reason is not None}
