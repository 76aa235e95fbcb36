"""Running the bundle from a command: arguments, configuration files, and the check for untrusted code in them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luna_monai.errors import LunaError, reason_of
from luna_monai.lazy import deferred_imports
from luna_monai.literals import leaves_and_sections, literals, text_of
from luna_monai.settings import checked, is_code, nearest
from luna_monai.share import bundle_dir, configs_dir, schema

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


def add_settings(parser: argparse.ArgumentParser, command: str, kind: str) -> None:
    """Add the options of a command that set keys of the configuration, with the types and help of the schema.

    Args:
        parser: argument parser of the command.
        command: name of the command.
        kind: ``train`` or ``inference``.
    """
    for key, rules in schema(kind)["properties"].items():
        if command not in rules.get("commands", ()):
            continue
        names, value = {"dest": key, "help": rules["description"]}, _defaults(kind)[key]
        if not (value is None or value is False or is_code(value)):
            names["help"] += f" (default: {value}, or the value in --config)"
        types = [rules.get("type", "string")] if isinstance(rules.get("type", ""), str) else rules["type"]
        name = rules.get("option", key)
        metavar = rules.get("metavar", None if "enum" in rules else name.upper())
        options: dict[str, Any] = {"metavar": metavar, "choices": rules.get("enum")}
        kinds: dict[str, Any] = {"integer": int, "number": float}
        options["type"] = existing if rules.get("mustExist") else kinds.get(types[0], str)
        if types[0] == "boolean":
            options = {"action": "store_true", "default": None}
        parser.add_argument(f"--{name.replace('_', '-')}", **names, **options)


def existing(path: str) -> str:
    """Check that a path exists before the command starts; used as the type of an argument.

    Raises:
        LunaError: when the path does not exist.
    """
    if path != "null" and not Path(path).exists():
        raise LunaError(f"{path}: no such file or folder")
    return path


@cache
def _defaults(kind: str) -> dict[str, Any]:
    text = (bundle_dir() / "configs" / f"{kind}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # type: ignore[no-any-return]


def config_files(overlays: Sequence[str], kind: str = "train") -> list[str]:
    """List the configuration files of a run: the bundle's own, then the overlays.

    Args:
        overlays: paths, or names of files in ``configs/`` with or without ``.yaml``.
        kind: ``train`` or ``inference``.

    Returns:
        The paths, the bundle's configuration first.

    Raises:
        LunaError: when an overlay does not exist.
    """
    files = [bundle_dir() / "configs" / f"{kind}.yaml"]
    for overlay in overlays:
        places = [Path(overlay), configs_dir() / overlay, configs_dir() / f"{overlay}.yaml"]
        found = next(filter(Path.is_file, places), None)
        if found is None:
            names = ", ".join(sorted(path.stem for path in configs_dir().glob("*.yaml")))
            raise LunaError(f"--config {overlay}: no such file or experiment; the experiments are {names}")
        files.append(found)
    return list(map(str, files))


def numbers(text: str) -> list[int]:
    """Turn ``0,2,5-7`` into ``[0, 2, 5, 6, 7]``, numbers of LUNA16's subsets; used as the type of an argument."""
    found: set[int] = set()
    for part in text.split(","):
        first, last = int(part[:1]), int(part[-1:])
        if part not in (str(first), f"{first}-{last}") or last < first:
            raise ValueError(part)
        found.update(range(first, last + 1))
    return sorted(found)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` and parse the value as YAML. Paths and free text are literal; others may be expressions.

    Raises:
        LunaError: when the text does not have this form, or the value is not valid YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise LunaError(f"{text!r}: an override has the form key=value, for example fold=3")
    is_code = value.startswith(("$", "@", "%"))
    try:
        content = value if is_code else yaml.safe_load(value)  # an expression need not be valid YAML
    except yaml.YAMLError:
        raise LunaError(f"{text!r}: the value is not valid YAML") from None
    is_text = any("format" in schema(kind)["properties"].get(key, {}) for kind in ("train", "inference"))
    return key.replace("::", "#"), content if is_code and not is_text else literals(content)


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the options that were given on the command line; ``null`` becomes None.

    Args:
        options: values by key of the configuration; None if the option was not given. Text is literal: MONAI's parser
            does not evaluate it.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    return {key: None if value == "null" else literals(value) for key, value in given.items()}


def given_settings(arguments: argparse.Namespace, overrides: Sequence[str] = (), kind: str = "train") -> dict[str, Any]:
    """Collect the values that were given on the command line for keys of the configuration.

    Args:
        arguments: parsed arguments of a command; an argument that has the name of a key sets this key.
        overrides: texts of the form ``key=value``.
        kind: ``train`` or ``inference``.

    Returns:
        Values by key.

    Raises:
        LunaError: when an override does not have this form.
    """
    options = {key: value for key, value in vars(arguments).items() if key in schema(kind)["properties"]}
    return given_options(options) | dict(map(parse_override, overrides))


def load_workflow(
    run_id: str, files: Sequence[str], overrides: Mapping[str, Any], kind: str = "train"
) -> ConfigWorkflow:
    """Read configurations, merge them, apply overrides and check the result. No component is created yet.

    Args:
        run_id: key of the steps to run, such as ``training`` or ``precache``.
        files: configuration files; each one overrides those before it.
        overrides: values by key; nested keys are joined by ``#``.
        kind: ``train`` or ``inference``.

    Returns:
        MONAI's workflow; its ``parser`` holds the configuration.

    Raises:
        LunaError: when a file cannot be read, or :func:`~luna_monai.settings.checked` refuses a setting.
    """
    with deferred_imports():
        from monai.bundle import ConfigWorkflow
        from monai.bundle.utils import merge_kv

    contents = [(file, read_config(Path(file))) for file in files]
    # MONAI logs every configuration that it reads, and some commands read one per fold.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)
    workflow = ConfigWorkflow(
        config_file=files[0],
        meta_file=str(bundle_dir() / "configs" / "metadata.json"),
        logging_file=str(bundle_dir() / "configs" / "logging.conf"),
        run_id=run_id,
        workflow_type={"train": "train", "inference": "infer"}[kind],
    )
    parser = workflow.parser
    for source, settings in [*((f"{file}: ", content) for file, content in contents[1:]), ("", overrides)]:
        for key, value in settings.items():
            try:
                merge_kv(parser, key, value)
            except (KeyError, IndexError, ValueError, TypeError):
                hint = nearest(str(key).lstrip("+").replace("::", "#"), dict(leaves_and_sections(parser.get())))
                raise LunaError(f"{source}{key!r} is not a key of the configuration; {hint}") from None
    parser["configuration"] = checked(parser, kind, overrides)
    return workflow


def run_workflow(workflow: ConfigWorkflow) -> None:
    """Create the components of a configuration, run them and clean up."""
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def run_config(run: Path, overlays: Sequence[str]) -> str:
    """Return the configuration of a run, after checking that it contains no untrusted code.

    MONAI evaluates each text that starts with ``$`` and calls each ``_target_``, and a run folder may come from an
    untrusted source. Each of these values must have the same key in one of the bundle's configurations, or in a file
    that was given with ``--config``.

    Args:
        run: folder of a run.
        overlays: files that were given with ``--config``, which are trusted.

    Returns:
        The path of the run's ``config.yaml``.

    Raises:
        LunaError: when ``config.yaml`` is missing or damaged, or contains other code.
    """
    path = run / "config.yaml"
    shipped = [*(bundle_dir() / "configs").glob("*.yaml"), *configs_dir().glob("*.yaml"), *map(Path, overlays)]
    trusted = {code for file in shipped for code in _code_in(read_config(file))}
    for key, value in _code_in(read_config(path)):
        if (key, value) not in trusted:
            advice = f"If you trust this file as you trust a program, add '--config {path}'"
            raise LunaError(f"{path}: {key}: {value!r} is code that is not part of luna-monai, and not run. {advice}")
    return str(path)


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a configuration with MONAI's parser, so that the checked content is the content that runs.

    Raises:
        LunaError: when the file cannot be read, is empty, or contains no keys.
    """
    from monai.bundle import ConfigParser

    try:
        content = ConfigParser.load_config_file(path)
    except (ValueError, yaml.YAMLError) as error:
        raise LunaError(f"{path}: cannot be read as YAML ({reason_of(error)}); indent with spaces, not tabs") from None
    if not isinstance(content, Mapping):
        raise LunaError(f"{path}: expected keys and values, such as 'max_epochs: 3', found {content!r:.60}")
    return content


def _code_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """List the code that MONAI would run, each with its key; items of a list have the key of the list."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            part = str(name).removeprefix("+").replace("::", "#")
            yield from _code_in(item, f"{key}#{part}" if key else part)
    elif isinstance(value, list):
        for item in value:
            yield from _code_in(item, key)
    elif key.endswith(("_target_", "_mode_")) or (str(value).startswith(("$", "%")) and text_of(value) == value):
        yield "#".join(part for part in key.split("#") if not part.isdigit()), str(value).replace("::", "#")
