"""``luna-monai cache status | verify | gc``: list the files of the cache, check them, remove unused ones."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import readable_size
from luna_monai.literals import literal
from luna_monai.share import configs_dir
from luna_monai.workflow import add_config_arguments, config_files, given_settings, load_workflow

logger = logging.getLogger(__name__)


class LunaCacheApp(App):
    """Inspect and clean the cache.

    Args:
        sys_argv: arguments; see ``luna-monai cache --help``.
    """

    name = "cache"
    description = (
        "status: list the files of the cache that this configuration needs, lacks, or does not use. verify: compare "
        "the checksums of all files; the exit status is 1 if one is damaged. gc: list the files of this dataset that "
        "neither this configuration nor any in configs/ uses. Only --yes removes files."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("action", choices=("status", "verify", "gc"), help="what to do")
        add_config_arguments(parser)
        parser.add_argument("--yes", action="store_true", help="remove what gc lists as unused, or verify as damaged")

    def main(self) -> int:
        """List or check the files of the cache, and remove some where ``--yes`` allows it.

        Returns:
            1 when ``verify`` has found damage and has not removed it, else 0.

        Raises:
            LunaError: when the data or the configuration is bad, or there is no cache.
        """
        action, given = self.cli_args.action, given_settings(self.cli_args)
        parser = load_workflow("precache", config_files(self.cli_args.config), given).parser
        folder, dataset_dir = map(parser.get_parsed_content, ("cache_dir", "dataset_dir"))
        if folder is None:
            raise LunaError("cache_dir is null: there is no cache to look at")
        if not Path(folder).is_dir():
            raise LunaError(f"{folder}: no such folder; give --cache-dir, or fill it with 'luna-monai precache'")
        if action == "verify":
            damaged = _verify(Path(folder))
            self._remove(damaged)
            return int(len(damaged) > 0 and not self.cli_args.yes)
        from luna_monai.data.cache_files import take_inventory

        parsers = [parser]
        if action == "gc":
            given |= {"cache_dir": literal(str(folder)), "dataset_dir": literal(str(dataset_dir))}
            for overlays in ([], *([str(path)] for path in sorted(configs_dir().glob("*.yaml")))):
                parsers.append(load_workflow("precache", config_files(overlays), given).parser)
        with unwrapped_luna_errors():
            caches = [one.get_parsed_content("cache") for one in parsers]
        needed, unused = take_inventory(Path(folder), [cache.names for cache in caches])
        missing = caches[0].missing()
        logger.info("%s: %d files in use, %s", folder, len(needed), _size_of(needed))
        if missing:
            logger.info("missing: %d of %d series; 'luna-monai precache' cuts them", len(missing), len(caches[0].data))
        for path, reason in unused.items():
            logger.info("unused: %s: %s", path.name, reason)
        logger.info("unused: %d files, %s; files of other datasets do not count", len(unused), _size_of(unused))
        if action == "gc":
            self._remove(unused)
        return 0

    def _remove(self, paths: Iterable[Path]) -> None:
        paths = list(paths)
        if not self.cli_args.yes:
            logger.info("removed: nothing; --yes removes these %d files", len(paths))
            return
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise LunaError(f"{path}: cannot be removed ({error.strerror})") from None
        logger.info("removed: %d files", len(paths))


def _verify(folder: Path) -> list[Path]:
    from luna_monai.data.cache_files import cached_files, find_damage
    from luna_monai.training import enumerate_with_estimate

    paths, damaged = cached_files(folder), []
    for _, path in enumerate_with_estimate(paths, "verify"):
        if (reason := find_damage(path)) is not None:
            logger.info("damaged: %s: %s", path, reason)
            damaged.append(path)
    logger.info("verify: %d of %d files are damaged; 'luna-monai precache' cuts them again", len(damaged), len(paths))
    return damaged


def _size_of(paths: Iterable[Path]) -> str:
    return readable_size(sum(path.stat().st_size for path in paths))
