"""Running the bundle from a command: its arguments, its configuration files, and which code in them is trusted."""

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


def add_settings(parser: argparse.ArgumentParser, *keys: str, kind: str = "train") -> None:
    """Declare an option for each of some keys of the configuration: type and help are those of the schema.

    Args:
        parser: of a command.
        keys: of the configuration.
        kind: ``train`` or ``inference``.
    """
    for key in keys:
        rules, value = schema(kind)["properties"][key], _defaults(kind)[key]
        names = {"dest": key, "help": rules["description"]}
        if not (value is None or value is False or is_code(value)):
            names["help"] += f" (default: {value}, or as --config says)"
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
    """Refuse a path that is not there before anything takes time; the type of an argument.

    Raises:
        LunaError: naming the path.
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

    Raises:
        LunaError: when there is no such file.
    """
    files = [bundle_dir() / "configs" / f"{kind}.yaml"]
    for overlay in overlays:
        places = [Path(overlay), configs_dir() / overlay, configs_dir() / f"{overlay}.yaml"]
        found = next(filter(Path.is_file, places), None)
        if found is None:
            names = ", ".join(sorted(path.stem for path in configs_dir().glob("*.yaml")))
            raise LunaError(f"--config {overlay}: no such file, nor one of the experiments {names}")
        files.append(found)
    return list(map(str, files))


def numbers(text: str) -> list[int]:
    """Turn ``0,2,5-7`` into ``[0, 2, 5, 6, 7]``, numbers of LUNA16's subsets; the type of an argument."""
    found: set[int] = set()
    for part in text.split(","):
        first, last = int(part[:1]), int(part[-1:])
        if part not in (str(first), f"{first}-{last}") or last < first:
            raise ValueError(part)
        found.update(range(first, last + 1))
    return sorted(found)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value``, the value in YAML. Paths and free text are literal, other values may be expressions.

    Raises:
        LunaError: when it is not of that form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise LunaError(f"{text!r}: an override has the form key=value, for example fold=3")
    is_code = value.startswith(("$", "@", "%"))
    try:
        content = value if is_code else yaml.safe_load(value)  # code is no plain YAML
    except yaml.YAMLError:
        raise LunaError(f"{text!r}: the value is not valid YAML") from None
    is_text = any("format" in schema(kind)["properties"].get(key, {}) for kind in ("train", "inference"))
    return key.replace("::", "#"), content if is_code and not is_text else literals(content)


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the options that were given on the command line, with ``null`` as YAML's nothing.

    Args:
        options: values by key of the configuration; None where the option was not given. Text is literal: MONAI's
            parser evaluates nothing in it.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    return {key: None if value == "null" else literals(value) for key, value in given.items()}


def given_settings(arguments: argparse.Namespace, overrides: Sequence[str] = (), kind: str = "train") -> dict[str, Any]:
    """Collect what was given for keys of the configuration.

    Args:
        arguments: of a command; those that are named like a key are for it.
        overrides: texts of the form ``key=value``.
        kind: ``train`` or ``inference``.

    Returns:
        Values by key.

    Raises:
        LunaError: when an override has another form.
    """
    options = {key: value for key, value in vars(arguments).items() if key in schema(kind)["properties"]}
    return given_options(options) | dict(map(parse_override, overrides))


def load_workflow(
    run_id: str, files: Sequence[str], overrides: Mapping[str, Any], kind: str = "train"
) -> ConfigWorkflow:
    """Read configurations, merge them, apply overrides and check the result, without making anything yet.

    Args:
        run_id: ``training``, ``precache``, …
        files: configurations, each laid over those before it.
        overrides: values by key; nested keys are joined by ``#``.
        kind: ``train`` or ``inference``.

    Returns:
        MONAI's workflow; its ``parser`` holds the configuration.

    Raises:
        LunaError: for a file that cannot be read, and for all that :func:`~luna_monai.settings.checked` refuses.
    """
    with deferred_imports():
        from monai.bundle import ConfigWorkflow
        from monai.bundle.utils import merge_kv

    contents = [(file, read_config(Path(file))) for file in files]
    # It is said for every configuration that is read, and some commands read one for each fold.
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
    """Make what a configuration describes, run it and clean up."""
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def run_config(run: Path, overlays: Sequence[str]) -> str:
    """Return the configuration of a run, after checking that it runs no code of its own.

    A run may come from anyone, and MONAI evaluates each text that starts with ``$`` and calls each ``_target_``. Those
    must be in the same place of the bundle's configurations, or of a file that was given with ``--config``.

    Args:
        run: folder of a run.
        overlays: the files that were given, which are trusted.

    Returns:
        The path of its ``config.yaml``.

    Raises:
        LunaError: when it is missing or damaged, or would run other code.
    """
    path = run / "config.yaml"
    shipped = [*(bundle_dir() / "configs").glob("*.yaml"), *configs_dir().glob("*.yaml"), *map(Path, overlays)]
    trusted = {code for file in shipped for code in _code_in(read_config(file))}
    for key, value in _code_in(read_config(path)):
        if (key, value) not in trusted:
            raise LunaError(
                f"{path}: {key}: {value!r} is code that does not come with luna-monai, and is not run. If you trust "
                f"this file as you trust a program, add '--config {path}'"
            )
    return str(path)


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a configuration as MONAI reads it, so that what is checked is what runs.

    Raises:
        LunaError: when it cannot be read, is empty, or holds no keys.
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
    """List what MONAI would run, each with its key; the items of a list have the key of the list."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            part = str(name).removeprefix("+").replace("::", "#")
            yield from _code_in(item, f"{key}#{part}" if key else part)
    elif isinstance(value, list):
        for item in value:
            yield from _code_in(item, key)
    elif key.endswith(("_target_", "_mode_")) or (str(value).startswith(("$", "%")) and text_of(value) == value):
        yield "#".join(part for part in key.split("#") if not part.isdigit()), str(value).replace("::", "#")
