"""Running the bundle from a command."""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.literals import literals
from luna_monai.share import bundle_dir, configs_dir

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


def add_config_arguments(
    parser: argparse.ArgumentParser, workers: str | None = "threads that read batches ahead"
) -> None:
    """Declare the arguments of commands that run the bundle.

    Args:
        parser: of a command.
        workers: what ``--num-workers`` counts; there is no such argument when None.
    """
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="overlay on the bundle's train.yaml: a file, or the name of one in configs/ (may be repeated); it may run "
        "code, so use only files that you trust",
    )
    parser.add_argument("--dataset-dir", default=None, help="LUNA16 dataset folder (default: the configuration's)")
    parser.add_argument("--cache-dir", default=None, help="folder of the cache, or null (default: the configuration's)")
    if workers is not None:
        parser.add_argument("--num-workers", type=int, default=None, help=f"{workers} (default: the configuration's)")


def add_overrides_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the rest of the command line: ``key=value``, as often as wanted."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values for any other key of the configuration"
    )


def config_files(overlays: Sequence[str]) -> list[str]:
    """List the configuration files of a run: the bundle's ``train.yaml``, then the overlays.

    Args:
        overlays: paths, or names of files in ``configs/`` with or without ``.yaml``.

    Raises:
        LunaError: when there is no such file.
    """
    files = [str(bundle_dir() / "configs" / "train.yaml")]
    for overlay in overlays:
        places = [Path(overlay), configs_dir() / overlay, configs_dir() / f"{overlay}.yaml"]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            names = ", ".join(sorted(path.stem for path in configs_dir().glob("*.yaml")))
            raise LunaError(f"--config {overlay}: no such file, nor one of the experiments {names}")
        files.append(str(found))
    return files


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value``, the value in YAML.

    Raises:
        LunaError: when it is not of that form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise LunaError(f"{text!r}: an override has the form key=value, for example fold=3")
    try:
        content = yaml.safe_load(value)
        # What is not written as an expression or a reference is literal: MONAI would make 'out::7' of 'out#7'.
        return key, content if str(content).startswith(("$", "@", "%")) else literals(content)
    except yaml.YAMLError:
        raise LunaError(f"{text!r}: the value is not valid YAML") from None


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the options that were given on the command line, with ``null`` as YAML's nothing.

    Args:
        options: values by key of the configuration; None where the option was not given. Text is literal: MONAI's
            parser evaluates nothing in it.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return {key: None if value == "null" else literals(value) for key, value in given.items()}


def run_bundle(run_id: str, overlays: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Run a part of the bundle in this process, as ``python -m monai.bundle run RUN_ID`` does in one of its own.

    Args:
        run_id: ``training``, ``precache``, …
        overlays: configurations to lay over ``train.yaml``.
        overrides: values by key; nested keys are joined by ``#``.

    Raises:
        LunaError: for a key that the configuration does not have, and for bad data.
    """
    run_workflow(load_workflow(run_id, config_files(overlays), overrides))


def load_workflow(
    run_id: str, files: Sequence[str], overrides: Mapping[str, Any], workflow_type: str = "train"
) -> ConfigWorkflow:
    """Read configurations, merge them and apply overrides, without making anything yet.

    Args:
        run_id: ``training``, ``precache``, …
        files: configurations, each laid over those before it.
        overrides: values by key; nested keys are joined by ``#``.
        workflow_type: ``train`` or ``infer``, by which MONAI looks for the keys that a bundle must have.

    Returns:
        MONAI's workflow; its ``parser`` holds the configuration.

    Raises:
        LunaError: for a key that the configuration does not have.
    """
    from monai.bundle import ConfigWorkflow

    logging.getLogger("monai.bundle.workflows").addFilter(_is_of_use)
    workflow = ConfigWorkflow(
        config_file=list(files),
        meta_file=str(bundle_dir() / "configs" / "metadata.json"),
        logging_file=str(bundle_dir() / "configs" / "logging.conf"),
        run_id=run_id,
        workflow_type=workflow_type,
    )
    known = set(_keys(workflow.parser.get()))
    for key in overrides:
        if key.replace("::", "#") not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are in {files[0]}"
            raise LunaError(f"{key!r} is not a key of the configuration; {hint}")
    workflow.parser.update(dict(overrides))
    return workflow


def run_workflow(workflow: ConfigWorkflow) -> None:
    """Make what a configuration describes, run it and clean up.

    Raises:
        LunaError: for bad data or configuration.
    """
    with unwrapped_luna_errors():
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def _is_of_use(record: logging.LogRecord) -> bool:
    # MONAI warns about every overlay that is not in the bundle's own folder; here that is how experiments are made. And
    # it says for every configuration that is read, some commands read one a fold, where it has set up the log from.
    text = record.getMessage()
    return "Not all config files are in" not in text and "Setting logging properties" not in text


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    entries: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(config, Mapping):
        entries = iter(config.items())
    elif isinstance(config, list):
        entries = iter(enumerate(config))
    for key, value in entries:
        if key == "_meta_":
            continue
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}#")
