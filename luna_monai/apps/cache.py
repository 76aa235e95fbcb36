"""``luna-monai cache status | verify | gc``: what the cache holds, whether it is complete, what can go."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import readable_size
from luna_monai.share import configs_dir
from luna_monai.workflow import add_config_arguments, config_files, given_settings, load_workflow

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

    from luna_monai.data import SeriesCache
    from luna_monai.data.inventory import Inventory

logger = logging.getLogger(__name__)


class LunaCacheApp(App):
    """Look at the cache and tidy it up.

    Args:
        sys_argv: arguments; see ``luna-monai cache --help``.
    """

    name = "cache"
    description = (
        "status: list what the cache holds, and what is stale. verify: read every file and compare its checksums; the "
        "exit status is 1 if one is damaged. gc: list the files of this dataset that no configuration needs; remove "
        "them with --yes."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("action", choices=("status", "verify", "gc"), help="what to do")
        add_config_arguments(parser, workers=None)
        parser.add_argument(
            "--yes", action="store_true", help="remove the files that gc lists as not needed, or verify as damaged"
        )

    def main(self) -> int:
        """Do what was asked.

        Returns:
            1 when ``verify`` has found damage and left it there, else 0.

        Raises:
            LunaError: when the data or the configuration is bad, or there is no cache.
        """
        return {"status": self._status, "verify": self._verify, "gc": self._gc}[self.cli_args.action]()

    def _status(self) -> int:
        from luna_monai.data.inventory import take_inventory

        self._cache_dir()
        cache = _open(self._parser(self.cli_args.config))
        inventory = take_inventory([cache])
        logger.info("%s", cache.cache_dir)
        size = readable_size(inventory.needed_bytes)
        logger.info("needed: %d of %d series, %s", len(inventory.needed), len(cache.data), size)
        if inventory.missing[0]:
            logger.info("missing: %d series; 'luna-monai precache' cuts them", inventory.missing[0])
        _list_unneeded(inventory)
        return 0

    def _gc(self) -> int:
        from luna_monai.data.inventory import take_inventory

        folder = self._cache_dir()
        inventory = take_inventory(self._all_caches(folder))
        _list_unneeded(inventory)
        paths = [path for path, _, _ in inventory.unneeded]
        if not paths:
            logger.info("gc: nothing to remove; all %d files are needed", len(inventory.needed))
        elif self.cli_args.yes:
            _remove(folder, paths)
        else:
            logger.info("gc: nothing was removed; --yes removes these %d files", len(paths))
        return 0

    def _verify(self) -> int:
        from luna_monai.data.inventory import verify
        from luna_monai.training import enumerate_with_estimate

        folder = self._cache_dir()
        damaged = verify(folder, enumerate_with_estimate)
        for path, reason in damaged.items():
            logger.info("damaged: %s: %s", path, reason)
        if not damaged:
            logger.info("verify: every file in %s is complete", folder)
        elif self.cli_args.yes:
            _remove(folder, list(damaged))
            logger.info("'luna-monai precache' makes them again")
        else:
            logger.info("verify: %d damaged files; --yes removes them, precache makes them again", len(damaged))
            return 1
        return 0

    def _parser(self, overlays: list[str]) -> ConfigParser:
        return load_workflow("precache", config_files(overlays), given_settings(self.cli_args)).parser

    def _cache_dir(self) -> Path:
        """Find the folder without looking at the dataset, which need not be at hand."""
        folder = self._parser(self.cli_args.config).get_parsed_content("cache_dir")
        if folder is None:
            raise LunaError("cache_dir is null: there is no cache to look at")
        if not Path(folder).is_dir():
            raise LunaError(f"{folder}: no such folder; give --cache-dir, or fill it with 'luna-monai precache'")
        return Path(folder)

    def _all_caches(self, folder: Path) -> list[SeriesCache]:
        """Open the cache of the configuration that was given, and of each experiment that has the same folder."""
        caches: list[SeriesCache] = []
        seen = []
        for overlays in [self.cli_args.config, [], *([str(path)] for path in sorted(configs_dir().glob("*.yaml")))]:
            parser = self._parser(overlays)
            inputs = _inputs(parser, "cache", {})
            if inputs in seen:
                continue
            seen.append(inputs)
            other = parser.get_parsed_content("cache_dir")
            if other is None or Path(other).resolve() != folder.resolve():
                continue
            try:
                caches.append(_open(parser))
            except LunaError as error:
                if not caches:
                    raise
                name = overlays[-1] if overlays else "train.yaml"
                raise LunaError(
                    f"cannot tell which files {name} needs ({error}); give --dataset-dir, for all of them"
                ) from None
        return caches


def _open(parser: ConfigParser) -> SeriesCache:
    with unwrapped_luna_errors():
        return parser.get_parsed_content("cache")


def _inputs(parser: ConfigParser, key: str, found: dict[str, Any]) -> dict[str, Any]:
    """Collect the settings that a part of the configuration refers to, directly or not."""
    from monai.bundle import ReferenceResolver

    if key not in found:
        found[key] = parser.get(key)
        for reference in ReferenceResolver.find_refs_in_config(found[key], key):
            _inputs(parser, reference, found)
    return found


def _list_unneeded(inventory: Inventory) -> None:
    for path, size, reason in inventory.unneeded:
        logger.info("not needed: %s, %s: %s", path.name, readable_size(size), reason)
    if inventory.unneeded:
        total = readable_size(sum(size for _, size, _ in inventory.unneeded))
        logger.info("not needed: %d files, %s", len(inventory.unneeded), total)
    if inventory.others:
        logger.info("%d files are of series that are not in this dataset; they stay", inventory.others)


def _remove(folder: Path, paths: list[Path]) -> None:
    from luna_monai.data.inventory import write_manifest

    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise LunaError(f"{path}: cannot be removed ({error.strerror})") from None
    logger.info("removed %d files from %s", len(paths), folder)
    write_manifest(folder)
