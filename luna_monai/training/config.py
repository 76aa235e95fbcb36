"""What a bundle's config needs to know about itself."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from luna_monai.literals import literal, text_of

#: Keys whose values are paths; a recorded configuration holds them absolute, so that it works from anywhere.
_PATH_KEYS = ("dataset_dir", "cache_dir", "output_dir", "patients_file", "finetune", "weights")


def current_config() -> dict[str, Any]:
    """Return the configuration that is being resolved: all files merged, all overrides applied.

    MONAI gives an expression no name for the configuration that it stands in, so the parser is looked for among the
    callers. Call it from a ``$`` expression of a config.

    Returns:
        The merged configuration without metadata, ready to be written as YAML and to be run again.

    Raises:
        RuntimeError: when no ``ConfigParser`` is resolving this call.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            config = {key: value for key, value in parser.get().items() if key != "_meta_"}
            for key in _PATH_KEYS:
                value = text_of(config.get(key))
                if isinstance(value, str) and not (value == config[key] and value.startswith(("$", "@", "%"))):
                    config[key] = literal(str(Path(value).resolve()))
            return config
        frame = frame.f_back
    raise RuntimeError("current_config() works only inside an expression of a bundle configuration")
