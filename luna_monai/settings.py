"""Checks of a run's settings, with one schema for commands, overlays and ``python -m monai.bundle``."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from luna_monai.errors import LunaError
from luna_monai.literals import leaves_and_sections, literal, text_of
from luna_monai.share import bundle_dir, schema

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

# YAML 1.1 reads 1e-3 as a string.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def check_settings(kind: str) -> Mapping[str, Any]:
    """Check the configuration that ``python -m monai.bundle run`` is resolving.

    ``monai.bundle run`` gives an expression no access to the parser, so this function takes the parser from the call
    stack. Commands of this package replace this call by the result of :func:`checked`.

    Args:
        kind: ``train`` or ``inference``.

    Returns:
        The configuration, see :func:`checked`.

    Raises:
        LunaError: when a setting is not valid; see :func:`checked`.
    """
    from monai.bundle import ConfigParser

    callers = (frame.frame.f_locals.get("self") for frame in inspect.stack(context=0))
    parser = next(caller for caller in callers if isinstance(caller, ConfigParser))
    configuration = checked(parser, kind)
    parser.parse(reset=True)
    return configuration


def checked(parser: ConfigParser, kind: str, given: Iterable[str] | None = None) -> Mapping[str, Any]:
    """Check a configuration before any component is created, and convert text to numbers, devices and None.

    Args:
        parser: holds the configuration, which is changed in place.
        kind: ``train`` or ``inference``.
        given: keys that were given on the command line; each must have an effect. If None, each key that differs from
            the bundle's configuration must have an effect.

    Returns:
        The configuration without metadata, which can be written as YAML and run again. Paths are absolute.

    Raises:
        LunaError: for an unknown key, a value of the wrong type or range, a section that is replaced by only a part of
            it, and a key that must have an effect and has none.
    """
    config = {key: value for key, value in parser.get().items() if key != "_meta_"}
    rules = schema(kind)["properties"]
    _normalize(config, rules)
    for key, value in config.items():
        parser[key] = value
    references = _references(config)
    _check_schema(config, kind, references)
    _check_effect(config, kind, references, given)
    if not is_code(config["device"]):
        parser["device"] = f"$torch.device({config['device']!r})"
    for key in rules:
        text = text_of(config.get(key))
        if rules[key].get("format") == "path" and isinstance(text, str) and not is_code(config[key]):
            text = text.replace("::", "#") if given is None else text  # MONAI replaces # when it reads files
            parser[key] = literal(text)
            config[key] = literal(str(Path(text).resolve()))
    return MappingProxyType(_as_recorded(config))


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown key: the most similar known key, or where the keys are."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the keys are in {bundle_dir() / 'configs'}"


def is_code(value: Any) -> bool:
    """Return whether MONAI would evaluate a value, or replace it by another one that it refers to."""
    return isinstance(value, str) and value.startswith(("$", "@", "%")) and text_of(value) == value


def _as_recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a configuration with ``::`` in place of ``#``, as MONAI's parser stores it."""
    return json.loads(json.dumps(config, default=str).replace("#", "::"))  # type: ignore[no-any-return]


def _normalize(config: Any, rules: Mapping[Any, Any]) -> None:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        types = rules.get(key, {}).get("type", ())
        if isinstance(value, dict | list):
            _normalize(value, rules.get(key, {}).get("properties", {}))
        elif value in ("null", "None") and "null" in types:
            config[key] = None
        elif isinstance(value, str) and _NUMBER.fullmatch(value) and "string" not in types:
            config[key] = value = float(value)
        if isinstance(value, float) and value.is_integer() and "integer" in types:
            config[key] = int(value)


def _references(config: Mapping[str, Any]) -> set[str]:
    """List the keys that a configuration refers to."""
    from monai.bundle import ReferenceResolver

    texts = [value for _, value in leaves_and_sections(config) if isinstance(value, str)]
    return {name.replace("::", "#") for text in texts for name in ReferenceResolver.match_refs_pattern(text)}


def _check_schema(config: Mapping[str, Any], kind: str, references: set[str]) -> None:
    from jsonschema import Draft202012Validator

    for key, value in leaves_and_sections(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise LunaError(f"{key}: {value} is not a finite number")

    # A key that is not in the schema is allowed if the configuration refers to it, or if it is a list of steps to run.
    steps = {key for key, value in config.items() if isinstance(value, list) and value and all(map(is_code, value))}
    used = {f"{name}#" for name in references | steps}
    for error in Draft202012Validator(schema(kind)).iter_errors(dict(config)):
        key, found = "#".join(map(str, error.absolute_path)), error.instance
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for full in (f"{key}#{name}".strip("#") for name in found if name not in known):
                if not any(name.startswith(f"{full}#") for name in used):
                    hint = nearest(full, [f"{key}#{name}".strip("#") for name in known])
                    raise LunaError(f"{full!r} is not a key of the configuration; {hint}")
        elif error.validator == "required":
            part = next(iter(found), "KEY")
            advice = f"'{key}#{part}: …' in a file or {key}#{part}=… on the command line"
            raise LunaError(f"{key}: {found!s:.80} replaces the whole section; to change one value, write {advice}")
        elif not is_code(found):  # the value of an expression is known only later
            raise LunaError(f"{key}: {error.message:.200}")


def _check_effect(config: Mapping[str, Any], kind: str, references: set[str], given: Iterable[str] | None) -> None:
    """Refuse changes of keys that the bundle's configuration refers to, and this configuration does not."""
    from monai.bundle import ConfigParser

    base, recorded = ConfigParser.load_config_file(bundle_dir() / "configs" / f"{kind}.yaml"), _as_recorded(config)
    if given is None:
        given = [key for key, value in _as_recorded(base).items() if recorded.get(key, value) != value]
    foreign = {key for key in given if key in schema(kind)["properties"] and key not in base}
    wanted = {name.split("#")[0] for name in _references(base)} | foreign
    unused = wanted - {name.split("#")[0] for name in references}
    for key in unused.intersection(given):
        raise LunaError(f"{key}: has no effect, because nothing in this configuration refers to it; leave it out")
