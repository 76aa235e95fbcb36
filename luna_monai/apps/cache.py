"""``luna-monai cache status | verify | gc``: what the cache holds, whether it is complete, what can go."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import readable_size
from luna_monai.share import configs_dir
from luna_monai.workflow import add_config_arguments, config_files, given_settings, load_workflow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from monai.bundle import ConfigParser

    from luna_monai.data import SeriesCache

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
        parser = self._parser(self.cli_args.config)
        folder = parser.get_parsed_content("cache_dir")
        if folder is None:
            raise LunaError("cache_dir is null: there is no cache to look at")
        if not Path(folder).is_dir():
            raise LunaError(f"{folder}: no such folder; give --cache-dir, or fill it with 'luna-monai precache'")
        if self.cli_args.action == "verify":
            return self._verify(Path(folder))
        self._look(parser, Path(folder))
        return 0

    def _parser(self, overlays: list[str]) -> ConfigParser:
        return load_workflow("precache", config_files(overlays), given_settings(self.cli_args)).parser

    def _look(self, parser: ConfigParser, folder: Path) -> None:
        """List what is needed and what is not; gc asks for the needs of all experiments, and may remove the rest."""
        from luna_monai.data.inventory import take_inventory

        is_gc = self.cli_args.action == "gc"
        cache = _open(parser)
        needed, unneeded = take_inventory([cache, *self._other_caches(folder)] if is_gc else [cache])
        logger.info("%s: %d files are needed, %s", folder, len(needed), _size_of(needed))
        if missing := cache.missing():
            logger.info("missing: %d of %d series; 'luna-monai precache' cuts them", len(missing), len(cache.data))
        for path, reason in unneeded.items():
            logger.info("not needed: %s: %s", path.name, reason)
        if unneeded:
            logger.info("not needed: %d files, %s", len(unneeded), _size_of(unneeded))
        if is_gc:
            self._remove(unneeded)

    def _verify(self, folder: Path) -> int:
        from luna_monai.data.cache_files import cached_files, find_damage
        from luna_monai.training import enumerate_with_estimate

        paths = [file.path for file in cached_files(folder)]
        damage = {path: find_damage(path) for _, path in enumerate_with_estimate(paths, "verify")}
        damaged = {path: reason for path, reason in damage.items() if reason is not None}
        for path, reason in damaged.items():
            logger.info("damaged: %s: %s", path, reason)
        logger.info("verify: %d of %d files are damaged; precache makes them again", len(damaged), len(paths))
        self._remove(damaged)
        return int(len(damaged) > 0 and not self.cli_args.yes)

    def _remove(self, paths: Iterable[Path]) -> None:
        if not self.cli_args.yes:
            logger.info("nothing was removed; --yes removes these %d files", len([*paths]))
            return
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise LunaError(f"{path}: cannot be removed ({error.strerror})") from None
        logger.info("removed %d files", len([*paths]))

    def _other_caches(self, folder: Path) -> list[SeriesCache]:
        """Open the caches of the bundle's configuration and of each experiment that has the same folder."""
        caches = []
        for overlays in [[], *([str(path)] for path in sorted(configs_dir().glob("*.yaml")))]:
            parser = self._parser(overlays)
            other = parser.get_parsed_content("cache_dir")
            if other is None or Path(other).resolve() != folder.resolve():
                continue
            try:
                caches.append(_open(parser))
            except LunaError as error:
                name = overlays[0] if overlays else "train.yaml"
                raise LunaError(
                    f"cannot tell which files {name} needs ({error}); give --dataset-dir, for all of them"
                ) from None
        return caches


def _open(parser: ConfigParser) -> SeriesCache:
    with unwrapped_luna_errors():
        return parser.get_parsed_content("cache")


def _size_of(paths: Iterable[Path]) -> str:
    return readable_size(sum(path.stat().st_size for path in paths))
