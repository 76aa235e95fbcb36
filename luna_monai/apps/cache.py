"""``luna-monai cache status | verify | gc``: what the cache holds, whether it is whole, what can go."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.base import App
from luna_monai.apps.workflow import add_config_arguments, config_files, given_settings, load_workflow
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import readable_size
from luna_monai.share import configs_dir

if TYPE_CHECKING:
    from luna_monai.data import SeriesCache

logger = logging.getLogger(__name__)

_MADE_OF = ("dataset_dir", "cache_dir", "candidates", "candidates_file", "outside_volume", "cache")


class LunaCacheApp(App):
    """Look at the cache and tidy it up.

    Args:
        sys_argv: arguments; see ``luna-monai cache --help``.
    """

    name = "cache"
    description = (
        "status: what the cache holds, what is stale and why. verify: read every file and compare its checksums; exit "
        "status 1 if one is damaged. gc: list the files that no present configuration needs; remove them with --yes."
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

        cache = self._cache(self.cli_args.config)
        inventory = take_inventory([cache])
        logger.info("%s", cache.cache_dir)
        logger.info(
            "needed: %d of %d series, %s", len(inventory.needed), len(cache.data), readable_size(inventory.needed_bytes)
        )
        if inventory.missing[0]:
            logger.info("missing: %d series; 'luna-monai precache' cuts them", inventory.missing[0])
        self._list_unneeded(inventory.unneeded)
        return 0

    def _gc(self) -> int:
        from luna_monai.data.inventory import take_inventory
        from luna_monai.data.manifest import write_manifest

        caches = self._all_caches()
        inventory = take_inventory(caches)
        self._list_unneeded(inventory.unneeded)
        if not inventory.unneeded:
            logger.info("gc: nothing to remove; all %d files are needed", len(inventory.needed))
        elif self.cli_args.yes:
            _remove([entry.path for entry in inventory.unneeded])
            write_manifest(_folder(caches[0]))
        else:
            logger.info("gc: nothing was removed; --yes removes these %d files", len(inventory.unneeded))
        return 0

    def _verify(self) -> int:
        from luna_monai.data.inventory import verify
        from luna_monai.data.manifest import write_manifest
        from luna_monai.training import enumerate_with_estimate

        folder = self._cache_dir()
        damaged = verify(folder, enumerate_with_estimate)
        for path, reason in damaged.items():
            logger.info("damaged: %s: %s", path, reason)
        if not damaged:
            logger.info("verify: every file in %s is whole", folder)
            return 0
        if not self.cli_args.yes:
            logger.info("verify: %d damaged files; --yes removes them, precache makes them again", len(damaged))
            return 1
        _remove(list(damaged))
        write_manifest(folder)
        logger.info("'luna-monai precache' makes them again")
        return 0

    def _cache_dir(self) -> Path:
        """Find the folder without looking at the data set, which need not be at hand."""
        workflow = load_workflow("precache", config_files(self.cli_args.config), given_settings(self.cli_args))
        folder = workflow.parser.get_parsed_content("cache_dir")
        if folder is None:
            raise LunaError("cache_dir is null: there is no cache to look at")
        if not Path(folder).is_dir():
            raise LunaError(f"{folder}: no such folder; give --cache-dir, or fill it with 'luna-monai precache'")
        return Path(folder)

    def _cache(self, overlays: list[str]) -> SeriesCache:
        self._cache_dir()
        workflow = load_workflow("precache", config_files(overlays), given_settings(self.cli_args))
        with unwrapped_luna_errors():
            return workflow.parser.get_parsed_content("cache")

    def _all_caches(self) -> list[SeriesCache]:
        """Open the cache of the configuration that was given, and of each experiment that has the same folder."""
        folder = self._cache_dir()
        caches, seen = [], []
        experiments = [[str(path)] for path in sorted(configs_dir().glob("*.yaml"))]
        for overlays in [self.cli_args.config, [], *experiments]:
            parser = load_workflow("precache", config_files(overlays), given_settings(self.cli_args)).parser
            made_of = [parser.get(key) for key in _MADE_OF] + [parser.get("train")["deterministic_transforms"]]
            if made_of in seen:
                continue
            seen.append(made_of)
            other = parser.get_parsed_content("cache_dir")
            if other is None or Path(other).resolve() != folder.resolve():
                continue
            try:
                with unwrapped_luna_errors():
                    caches.append(parser.get_parsed_content("cache"))
            except LunaError as error:
                if not caches:
                    raise
                raise LunaError(
                    f"can't tell which files {overlays[-1] if overlays else 'train.yaml'} needs ({error}); "
                    "give --dataset-dir, for all of them"
                ) from None
        return caches

    @staticmethod
    def _list_unneeded(unneeded: list[Any]) -> None:
        for entry in unneeded:
            logger.info("not needed: %s, %s: %s", entry.path.name, readable_size(entry.bytes), entry.reason)
        if unneeded:
            logger.info(
                "not needed: %d files, %s", len(unneeded), readable_size(sum(entry.bytes for entry in unneeded))
            )


def _remove(paths: list[Path]) -> None:
    removed = Counter[str]()
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise LunaError(f"{path}: can't be removed ({error.strerror})") from None
        removed[str(path.parent)] += 1
    for folder, count in removed.items():
        logger.info("removed %d files from %s", count, folder)


def _folder(cache: SeriesCache) -> Path:
    if cache.cache_dir is None:
        raise LunaError("cache_dir is null: there is no cache to look at")
    return cache.cache_dir
